//! Shows a channel: what is published, and what the draft changes.

use buildos_channel::Channel;

use super::place::Place;
use super::size::size;
use super::{changes, objects, tree};
use crate::commands::check;
use crate::term::{columns, row};

/// Returns the channel as text.
pub(super) fn show(place: &Place) -> Result<String, String> {
    let draft = tree::draft(place)?;
    let published = tree::published(place)?;
    let mut out = match &published {
        None => format!("{} was not published yet\n", place.channel),
        Some(channel) => published_text(channel),
    };
    let changes = changes::changes(published.as_ref(), &draft);
    if !changes.is_empty() {
        out += "\nThe draft changes:\n";
        for change in changes {
            out += &format!("  {change}\n");
        }
    }
    for fault in objects::faults(&place.tree, &draft) {
        out += &format!("missing: {fault}\n");
    }
    Ok(out)
}

fn published_text(channel: &Channel) -> String {
    let mut out = format!(
        "{}: serial {}, valid until {}{}, {} % of the hosts\n",
        channel.name,
        channel.serial,
        channel.valid_until,
        match channel.valid_until <= check::now() {
            true => " (expired)",
            false => "",
        },
        channel.rollout.percent
    );
    let mut rows = Vec::new();
    if let Some(os) = &channel.os {
        rows.push(row(&["os", "buildos", os.version.as_str()]));
    }
    for agent in &channel.agents {
        rows.push(row(&["agent", agent.name.as_str(), agent.version.as_str()]));
    }
    for toolchain in &channel.toolchains {
        let (name, version) = (toolchain.name.as_str(), toolchain.version.as_str());
        rows.push(row(&["toolchain", name, version]));
    }
    for machine in &channel.machines {
        let increments: Vec<_> = machine
            .increments
            .iter()
            .map(|increment| size(increment.stream.size))
            .collect();
        let revision = format!("revision {}", machine.revision);
        let whole = format!("{} on the wire", size(machine.whole.size));
        let after = match increments.is_empty() {
            true => String::new(),
            false => format!("{} from previous revisions", increments.join(" or ")),
        };
        rows.push(row(&[
            "machine",
            machine.name.as_str(),
            &revision,
            &whole,
            &after,
        ]));
    }
    out += &columns(&rows);
    out
}
