//! Publishes a revision of a machine into the draft.
//!
//! ```text
//! DIR ─snapshot→ DIR/../.buildos-published/NAME/REVISION
//!                    ├─ files → contents: id, size, what changed
//!                    └─ btrfs send | zstd → pieces: whole, and from the last two revisions
//! ```
//!
//! The snapshots of the last two revisions stay, as the next increments begin at them. The
//! revision counts only once its record, `desk/machines/NAME/REVISION`, is written: what an
//! interrupted run left is replaced by the next one.

use std::fs;
use std::path::{Path, PathBuf};

use buildos_channel::Name;
use buildos_channel::contents::{Change, Contents};
use buildos_channel::model::{Increment, Kind, Limits, Machine, Stream};
use buildos_channel::pieces::Cutter;
use buildos_channel::write;
use buildos_types::Escaped;
use buildos_updated::scan;

use super::packages::{self, Packages};
use super::place::Place;
use super::size::size;
use super::{objects, tree};
use crate::files::{read_limited, replace};
use crate::programs::btrfs;

/// A machine to publish.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// The subvolume with its files.
    pub(crate) directory: PathBuf,
    #[allow(missing_docs)]
    pub(crate) name: Name,
    #[allow(missing_docs)]
    pub(crate) kind: Kind,
}

/// Bytes of a record: some ten million files.
const RECORD: usize = 1 << 30;
/// Bytes of dpkg's status; that of a desktop has some 5 MB.
const STATUS: usize = 64 << 20;
/// Changed files that are listed.
const LISTED: usize = 40;

/// A revision that was published before.
struct Revision {
    number: u64,
    contents: Contents,
    snapshot: PathBuf,
}

/// Publishes a revision and returns what changed.
pub(super) fn publish(place: &Place, source: &Source) -> Result<String, String> {
    let mut draft = tree::draft(place)?;
    let mut others = draft
        .machines
        .iter()
        .filter(|other| other.kind != source.kind);
    if let Some(other) = others.find(|other| other.name == source.name) {
        return Err(format!(
            "{} is a {} in this channel: a {} needs another name",
            source.name, other.kind, source.kind
        ));
    }
    let directory = fs::canonicalize(&source.directory)
        .map_err(|error| format!("cannot find {}: {error}", source.directory.display()))?;
    btrfs::need_subvolume(&directory)?;
    let before = scan::marks(&directory)?;
    if before.is_empty() {
        return Err(format!("{} is empty", directory.display()));
    }
    let snapshots = snapshots(&directory, &source.name)?;
    let records = place.tree.join("desk/machines").join(source.name.as_str());
    for path in [&snapshots, &records] {
        fs::create_dir_all(path)
            .map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    }
    let numbers = numbers(&records)?;
    let number = numbers.last().map_or(1, |last| last.saturating_add(1));
    if number > Limits::NUMBER {
        return Err("the number of the revision has reached its limit".to_owned());
    }
    let snapshot = snapshots.join(number.to_string());
    if snapshot.exists() {
        btrfs::delete(&snapshot)?;
    }
    btrfs::snapshot(&directory, &snapshot)?;
    let bases = revisions(&records, &snapshots, &numbers)?;
    let made = make(place, source, number, &snapshot, &bases)
        .and_then(|made| unchanged(&directory, &snapshot, &before).map(|()| made));
    let (machine, contents, text) = match made {
        Ok(Some(made)) => made,
        Ok(None) => {
            btrfs::delete(&snapshot)?;
            return Ok(format!(
                "{} has the files of revision {}: nothing to publish\n",
                source.name,
                number.saturating_sub(1)
            ));
        }
        Err(error) => {
            // The first error is the one to report.
            let _ = btrfs::delete(&snapshot);
            return Err(error);
        }
    };
    draft.machines.retain(|other| other.name != machine.name);
    draft.machines.push(machine);
    draft.machines.sort_by(|a, b| a.name.cmp(&b.name));
    if draft.machines.len() > Limits::MACHINES {
        let _ = btrfs::delete(&snapshot);
        return Err(format!(
            "a channel has at most {} machines",
            Limits::MACHINES
        ));
    }
    replace(&records.join(number.to_string()), &contents.text())?;
    replace(&place.draft(), write::text(&draft).as_bytes())?;
    for old in numbers.iter().filter(|old| old.saturating_add(2) <= number) {
        let old = snapshots.join(old.to_string());
        if old.exists() {
            btrfs::delete(&old)?;
        }
    }
    Ok(text)
}

/// Returns the directory of the snapshots: beside the machine, on its file system.
fn snapshots(directory: &Path, name: &Name) -> Result<PathBuf, String> {
    let parent = directory.parent().ok_or_else(|| {
        let place = directory.display();
        format!("{place} has no directory above it, in which snapshots could be kept")
    })?;
    Ok(parent.join(".buildos-published").join(name.as_str()))
}

/// Returns the numbers of the recorded revisions, in order.
fn numbers(records: &Path) -> Result<Vec<u64>, String> {
    let failed = |error| format!("cannot read {}: {error}", records.display());
    let mut numbers = Vec::new();
    for entry in fs::read_dir(records).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // `5.new` is half of a record.
        numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads the last two revisions, the last one first.
fn revisions(records: &Path, snapshots: &Path, numbers: &[u64]) -> Result<Vec<Revision>, String> {
    let last = numbers.iter().rev().take(Limits::INCREMENTS);
    let each = last.map(|number| {
        let record = records.join(number.to_string());
        let text = read_limited(&record, RECORD)?;
        let contents =
            Contents::parse(&text).map_err(|error| format!("{}: {error}", record.display()))?;
        Ok(Revision {
            number: *number,
            contents,
            snapshot: snapshots.join(number.to_string()),
        })
    });
    each.collect()
}

/// Fails if the directory is not what the snapshot has, or changed since the beginning.
fn unchanged(directory: &Path, snapshot: &Path, before: &scan::Marks) -> Result<(), String> {
    let taken = scan::marks(snapshot)?;
    let difference = scan::difference(before, &taken);
    let difference = match difference {
        Some(path) => Some(path),
        None => scan::difference(&taken, &scan::marks(directory)?),
    };
    match difference {
        None => Ok(()),
        Some(path) => Err(format!(
            "{} changed while it was read ({path}): end the programs that write into it",
            directory.display()
        )),
    }
}

type Made = (Machine, Contents, String);

/// Makes the objects of a revision. Returns nothing if it has the files of the last one.
fn make(
    place: &Place,
    source: &Source,
    number: u64,
    snapshot: &Path,
    bases: &[Revision],
) -> Result<Option<Made>, String> {
    let contents = scan::contents(snapshot)?;
    let id = contents.id();
    let last = bases.first();
    if last.is_some_and(|last| last.contents == contents) {
        return Ok(None);
    }
    let mut text = format!("{} revision {number}, id {id}\n", source.name);
    if let Some(last) = last {
        text += &changes(&last.contents, &contents);
        let before = installed(&last.snapshot)?;
        text += &listed(
            "packages",
            &packages::changes(&before, &installed(snapshot)?),
        );
    }
    let whole = stream(&place.tree, snapshot, None)?;
    text += &format!(
        "whole: {} of files, {} on the wire\n",
        size(contents.size()),
        size(whole.size)
    );
    let mut increments = Vec::new();
    for base in bases {
        let from = base.contents.id();
        if from == id {
            continue;
        }
        if !base.snapshot.exists() {
            text += &format!(
                "no increment: the snapshot of revision {} is gone\n",
                base.number
            );
            continue;
        }
        let stream = stream(&place.tree, snapshot, Some(&base.snapshot))?;
        let on_wire = size(stream.size);
        text += &format!("from revision {}: {on_wire} on the wire\n", base.number);
        increments.push(Increment { from, stream });
    }
    let machine = Machine {
        name: source.name.clone(),
        kind: source.kind,
        revision: number,
        id,
        size: contents.size(),
        whole,
        increments,
    };
    Ok(Some((machine, contents, text)))
}

/// Cuts the stream of a snapshot into objects, and stores the list of its pieces.
fn stream(tree: &Path, snapshot: &Path, base: Option<&Path>) -> Result<Stream, String> {
    let mut cutter = Cutter::default();
    let mut store = |sha256, piece: &[u8]| objects::store(tree, &sha256, piece).map(|_| ());
    btrfs::send(snapshot, base, |data| cutter.push(data, &mut store))?;
    let list = cutter.finish(&mut store)?;
    if list.size() > Limits::SIZE {
        return Err(format!("a stream has at most {}", size(Limits::SIZE)));
    }
    let pieces = list.digest();
    objects::store(tree, &pieces, list.text().as_bytes())?;
    Ok(Stream {
        size: list.size(),
        pieces,
    })
}

/// Returns the changed files, with their sizes.
fn changes(before: &Contents, after: &Contents) -> String {
    let changes = before.changes(after);
    let lines = changes.iter().map(|(path, change)| {
        let sizes = match change {
            Change::Added(entry) | Change::Removed(entry) => size(entry.size),
            Change::Changed(before, after) if before.size == after.size => size(after.size),
            Change::Changed(before, after) => {
                format!("{}, was {}", size(after.size), size(before.size))
            }
        };
        format!("{} {} ({sizes})", change.sign(), Escaped::from_bytes(path))
    });
    listed("files", &lines.collect::<Vec<_>>())
}

/// Returns at most 40 lines below a heading with their number.
fn listed(what: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut out = format!("{} changed {what}:\n", lines.len());
    for line in lines.iter().take(LISTED) {
        out += &format!("  {line}\n");
    }
    match lines.len().saturating_sub(LISTED) {
        0 => out,
        more => out + &format!("  and {more} more\n"),
    }
}

/// Reads dpkg's status of a revision. A machine without it has no packages.
fn installed(snapshot: &Path) -> Result<Packages, String> {
    let path = snapshot.join("var/lib/dpkg/status");
    match path.is_file() {
        false => Ok(Packages::new()),
        true => {
            let status = read_limited(&path, STATUS)?;
            Ok(packages::parse(&String::from_utf8_lossy(&status)))
        }
    }
}
