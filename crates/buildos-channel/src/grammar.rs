//! Parses the text of a channel file.
//!
//! ```toml
//! format = 1
//! name = "stable"
//! serial = 42
//! valid_until = 2027-01-31T12:00:00Z
//!
//! [os]
//! version = "0.2.0"
//! image = { sha256 = "…", size = 12345678 }
//! initrd = { sha256 = "…", size = 102345678 }
//!
//! [[agent]]
//! name = "bbot-agent"
//! version = "0.18.0"
//! extension = { sha256 = "…", size = 3456789 }
//!
//! [[toolchain]]
//! name = "public"
//! version = "0.18.0"
//! list = { sha256 = "…", size = 4321 }
//!
//! [[machine]]
//! name = "x86_64-linux_debian_13-gcc"
//! kind = "machine"
//! revision = 3
//! id = "…"
//! size = 2345678901
//! whole = { size = 987654321, pieces = "…" }
//!
//! [[machine.increment]]
//! from = "…"
//! size = 21000000
//! pieces = "…"
//!
//! [rollout]
//! percent = 10
//! since = 41
//! ```
//!
//! `[os]`, the arrays and `[rollout]` can be missing; without `[rollout]` all hosts take
//! the channel. Without `kind` a machine is one of bbot-agent.
//!
//! # Unknown keys
//!
//! They are ignored and returned in [`Parsed::unknown`]. A farm is never updated at once:
//! if older hosts refused a key of a newer version, the update that adds the key would
//! never reach them. The file is signed, so an unknown key is the operator's. At the desk
//! `buildosctl check` reports it as a mistake. A change that an older host must not ignore
//! raises `format`, which every host compares.

use std::collections::BTreeSet;

use buildos_types::Escaped;
use toml::de::DeTable;

use crate::digest::Digest;
use crate::model::{
    Agent, Channel, FORMAT, Increment, Limits, Machine, Object, Os, Rollout, Stream, Toolchain,
};
use crate::name::Name;
pub use crate::table::Problem;
use crate::table::{NUMBERS, Report, SIZES, Table};

/// A valid channel file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    #[allow(missing_docs)]
    pub channel: Channel,
    /// Keys that this version ignores.
    pub unknown: Vec<Problem>,
}

/// Parses a channel file, after its signature was verified and removed.
///
/// # Errors
///
/// Returns the mistakes, sorted by line.
pub fn parse(text: &str) -> Result<Parsed, Vec<Problem>> {
    let mut report = Report::new(text);
    let channel = read(text, &mut report);
    report.sort();
    match channel {
        Some(channel) if report.errors.is_empty() => Ok(Parsed {
            channel,
            unknown: report.unknown,
        }),
        Some(_) | None => Err(report.errors),
    }
}

fn read(text: &str, report: &mut Report<'_>) -> Option<Channel> {
    if text.len() > Limits::TEXT {
        let message = format!("{} bytes, at most {}", text.len(), Limits::TEXT);
        report.error(None, message);
        return None;
    }
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let message = format!("not TOML: {}", Escaped::received(error.message()));
            report.error(error.span().map(|span| span.start), message);
            return None;
        }
    };
    let mut document = Table::document(table);
    let format = document.number("format", (1, u64::MAX), report);
    // The mistakes in a file of a newer format would all be wrong.
    if format.is_some_and(|format| format > FORMAT) {
        let message = format!("a newer format: this version reads format {FORMAT}");
        report.errors.clear();
        report.error(None, message);
        return None;
    }
    let name = document.text("name", report);
    let serial = document.number("serial", NUMBERS, report);
    let valid_until = document.time("valid_until", report);
    let os = document.optional_table("os", report);
    let os = os.map(|table| os_of(table, report));
    let agents = document.tables("agent", Limits::PROGRAMS, report);
    let mut extensions = BTreeSet::new();
    let agent = |table: Table<'_>, report: &mut Report<'_>| {
        let at = table.at();
        let agent = agent(table, report)?;
        // Hosts name the place of an agent by the digest.
        if !extensions.insert(agent.extension.sha256) {
            let message = format!(
                "agent {}: the extension is that of another agent",
                agent.name
            );
            report.error(at, message);
        }
        Some(agent)
    };
    let agents = each(agents, report, agent, |agent| &agent.name);
    let toolchains = document.tables("toolchain", Limits::PROGRAMS, report);
    let toolchains = each(toolchains, report, toolchain, |toolchain| &toolchain.name);
    let machines = document.tables("machine", Limits::MACHINES, report);
    let machines = each(machines, report, machine, |machine| &machine.name);
    let rollout = match document.optional_table("rollout", report) {
        Some(table) => rollout(table, serial, report),
        None => serial.map(|since| Rollout {
            percent: 100,
            since,
        }),
    };
    document.end(report);
    Some(Channel {
        name: name?,
        serial: serial?,
        valid_until: valid_until?,
        os: match os {
            Some(os) => Some(os?),
            None => None,
        },
        agents,
        toolchains,
        machines,
        rollout: rollout?,
    })
}

/// Reads the tables of an array, whose names must differ.
fn each<'t, T>(
    tables: Vec<Table<'t>>,
    report: &mut Report<'_>,
    mut read: impl FnMut(Table<'t>, &mut Report<'_>) -> Option<T>,
    name: impl Fn(&T) -> &Name,
) -> Vec<T> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for table in tables {
        let at = table.at();
        let Some(item) = read(table, report) else {
            continue;
        };
        if !names.insert(name(&item).clone()) {
            report.error(at, format!("the name {} is used twice", name(&item)));
        }
        found.push(item);
    }
    found
}

fn os_of(mut table: Table<'_>, report: &mut Report<'_>) -> Option<Os> {
    let version = table.text("version", report);
    let image = object(&mut table, "image", report);
    let initrd = object(&mut table, "initrd", report);
    table.end(report);
    Some(Os {
        version: version?,
        image: image?,
        initrd: initrd?,
    })
}

fn agent(table: Table<'_>, report: &mut Report<'_>) -> Option<Agent> {
    let (name, version, extension) = program(table, "extension", report)?;
    Some(Agent {
        name,
        version,
        extension,
    })
}

fn toolchain(table: Table<'_>, report: &mut Report<'_>) -> Option<Toolchain> {
    let (name, version, list) = program(table, "list", report)?;
    Some(Toolchain {
        name,
        version,
        list,
    })
}

/// Reads a name, a version, and an object under `key`.
fn program(
    mut table: Table<'_>,
    key: &'static str,
    report: &mut Report<'_>,
) -> Option<(Name, Name, Object)> {
    let name = table.text("name", report);
    let version = table.text("version", report);
    let object = object(&mut table, key, report);
    table.end(report);
    Some((name?, version?, object?))
}

fn object(table: &mut Table<'_>, key: &'static str, report: &mut Report<'_>) -> Option<Object> {
    let mut table = table.table(key, report)?;
    let sha256 = table.text("sha256", report);
    let size = table.number("size", SIZES, report);
    table.end(report);
    Some(Object {
        sha256: sha256?,
        size: size?,
    })
}

fn machine(mut table: Table<'_>, report: &mut Report<'_>) -> Option<Machine> {
    let at = table.at();
    let name = table.text("name", report);
    let kind = table.text_or_default("kind", report);
    let revision = table.number("revision", NUMBERS, report);
    let id: Option<Digest> = table.text("id", report);
    let size = table.number("size", SIZES, report);
    let whole = table.table("whole", report);
    let whole = whole.and_then(|mut table| {
        let stream = stream(&mut table, report);
        table.end(report);
        stream
    });
    let mut increments = Vec::new();
    let mut bases: BTreeSet<Digest> = id.into_iter().collect();
    for mut table in table.tables("increment", Limits::INCREMENTS, report) {
        let at = table.at();
        let from = table.text("from", report);
        let stream = stream(&mut table, report);
        table.end(report);
        let (Some(from), Some(stream)) = (from, stream) else {
            continue;
        };
        if !bases.insert(from) {
            let message = "machine.increment.from: the id of this revision, or used twice";
            report.error(at, message.to_owned());
        }
        increments.push(Increment { from, stream });
    }
    table.end(report);
    if whole.is_some_and(|whole| whole.size == 0) {
        report.error(at, "machine.whole.size: a stream is never empty".to_owned());
    }
    Some(Machine {
        name: name?,
        kind: kind?,
        revision: revision?,
        id: id?,
        size: size?,
        whole: whole?,
        increments,
    })
}

fn stream(table: &mut Table<'_>, report: &mut Report<'_>) -> Option<Stream> {
    let size = table.number("size", SIZES, report);
    let pieces = table.text("pieces", report);
    Some(Stream {
        size: size?,
        pieces: pieces?,
    })
}

fn rollout(mut table: Table<'_>, serial: Option<u64>, report: &mut Report<'_>) -> Option<Rollout> {
    let percent = table.number("percent", (0, 100), report);
    let since = table.number("since", (1, serial.unwrap_or(Limits::NUMBER)), report);
    table.end(report);
    Some(Rollout {
        percent: u8::try_from(percent?).ok()?,
        since: since?,
    })
}
