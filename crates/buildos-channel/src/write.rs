//! Writes the text of a channel file, as [`crate::grammar`] parses it.

use std::fmt::{self, Write as _};

use crate::model::{Channel, FORMAT, Kind, Object, Stream};

/// Returns the text of a channel file. The same channel always gives the same text.
#[must_use]
pub fn text(channel: &Channel) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = channel_text(&mut out, channel);
    out
}

fn channel_text(out: &mut String, channel: &Channel) -> fmt::Result {
    // Names, digests and numbers need no escapes.
    writeln!(out, "format = {FORMAT}")?;
    writeln!(out, "name = \"{}\"", channel.name)?;
    writeln!(out, "serial = {}", channel.serial)?;
    writeln!(out, "valid_until = {}", channel.valid_until)?;
    if let Some(os) = &channel.os {
        writeln!(out, "\n[os]\nversion = \"{}\"", os.version)?;
        writeln!(out, "image = {}", object(&os.image))?;
        writeln!(out, "initrd = {}", object(&os.initrd))?;
    }
    for agent in &channel.agents {
        writeln!(out, "\n[[agent]]\nname = \"{}\"", agent.name)?;
        writeln!(out, "version = \"{}\"", agent.version)?;
        writeln!(out, "extension = {}", object(&agent.extension))?;
    }
    for toolchain in &channel.toolchains {
        writeln!(out, "\n[[toolchain]]\nname = \"{}\"", toolchain.name)?;
        writeln!(out, "version = \"{}\"", toolchain.version)?;
        writeln!(out, "list = {}", object(&toolchain.list))?;
    }
    for machine in &channel.machines {
        writeln!(out, "\n[[machine]]\nname = \"{}\"", machine.name)?;
        if machine.kind != Kind::default() {
            writeln!(out, "kind = \"{}\"", machine.kind)?;
        }
        writeln!(out, "revision = {}", machine.revision)?;
        writeln!(out, "id = \"{}\"", machine.id)?;
        writeln!(out, "size = {}", machine.size)?;
        let Stream { size, pieces } = machine.whole;
        writeln!(out, "whole = {{ size = {size}, pieces = \"{pieces}\" }}")?;
        for increment in &machine.increments {
            let Stream { size, pieces } = increment.stream;
            writeln!(
                out,
                "\n[[machine.increment]]\nfrom = \"{}\"",
                increment.from
            )?;
            writeln!(out, "size = {size}\npieces = \"{pieces}\"")?;
        }
    }
    writeln!(out, "\n[rollout]\npercent = {}", channel.rollout.percent)?;
    writeln!(out, "since = {}", channel.rollout.since)
}

fn object(object: &Object) -> String {
    format!(
        "{{ sha256 = \"{}\", size = {} }}",
        object.sha256, object.size
    )
}
