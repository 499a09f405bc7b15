//! buildos-machine-place: places and removes machines.
//!
//! It takes no arguments. The spool belongs to buildos-updated, so nothing in it is
//! believed: the channel's signatures are verified again, and each piece before a byte of it
//! is used.
//!
//! | step | after a power cut |
//! |---|---|
//! | receive into `staging/` | the next run deletes it |
//! | compare the content id | as before |
//! | write the record | it is forgotten, as its subvolume is missing |
//! | snapshot under the final name, at once and whole | the next run makes the link |
//! | link beside, renamed over the link of before | done |
//!
//! Removal begins with the link. A subvolume goes in a later run, after a minute, once no process
//! uses it: a task that has read the link opens its files in the meantime. Its record goes last.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::ExitCode;

use buildos_channel::model::{Kind, Machine};
use buildos_channel::plan::{self, Candidate};
use buildos_channel::{Channel, Digest, Name};
use buildos_service::file::overwrite;
use buildos_service::text::chain;

use super::account;
use super::holders::Holders;
use super::stream::Stream;
use super::tree::{Record, Tree};
use crate::layout::{Layout, relative};
use crate::paths::Paths;
use crate::programs::btrfs;
use crate::retention::{self, Placed, Reason, Retention, Selection};
use crate::settings::{self, Settings};
use crate::spool::{self, Spool};
use crate::state::{self, SCHEMA, Volumes};
use crate::{choices, durable, messages, offer, request, room, scan};

/// Seconds for which a revision stays after its link: a task reads the link before it opens a file.
const GRACE: u64 = 60;
/// Permissions of the state file.
const READABLE: u32 = 0o644;

/// Runs the helper.
#[must_use]
pub fn main() -> ExitCode {
    request::answer::<Volumes>("buildos-machine-place", run)
}

/// Carries out a request: brings all volumes into order and writes the state.
fn run(paths: &Paths, request: u64) -> Result<(), String> {
    let (settings, mut problems) = settings::load(paths.root());
    let trees = Tree::mounted(&paths.volumes());
    let mut state = look(paths, &trees, &mut Vec::new());
    state.handling = request;
    state.accepted = remembered(&trees, &settings);
    write(paths, &state)?;
    for tree in &trees {
        let mut work = Work {
            paths,
            settings: &settings,
            tree,
            problems: &mut problems,
        };
        let result = work.carry_out();
        if let Err(error) = result {
            problems.push(format!("volume {}: {error}", tree.name));
        }
    }
    let mut state = look(paths, &trees, &mut problems);
    state.handling = request;
    state.handled = request;
    state.accepted = remembered(&trees, &settings);
    state.problems = problems;
    write(paths, &state)
}

/// Returns serial and digest of the channel that the volume of machines has accepted.
fn remembered(trees: &[Tree], settings: &Settings) -> Option<(u64, String)> {
    let name = settings.volume.as_str();
    let tree = trees.iter().find(|tree| tree.name == name)?;
    let accepted = offer::remembered(&tree.memory())?;
    Some((accepted.serial, accepted.digest.to_string()))
}

fn write(paths: &Paths, state: &Volumes) -> Result<(), String> {
    overwrite(&paths.placed(), &state::text(state), READABLE).map_err(|error| chain(&error))
}

/// Returns what is on the volumes.
fn look(paths: &Paths, trees: &[Tree], problems: &mut Vec<String>) -> Volumes {
    let holders = Holders::read(&paths.root().join("proc"));
    let mut state = Volumes {
        schema: SCHEMA,
        ..Volumes::default()
    };
    for tree in trees {
        let records = tree.read().unwrap_or_else(|error| {
            problems.push(format!("volume {}: {error}", tree.name));
            Vec::new()
        });
        let room = spool::room(tree.top()).unwrap_or_default();
        let (settings, _) = settings::load(paths.root());
        let machine = |record: &Record| state::Machine {
            name: record.placed.name.to_string(),
            kind: record.placed.kind.to_string(),
            revision: record.placed.revision,
            id: record.placed.id.to_string(),
            path: record.path.clone(),
            current: is_current(tree, &settings.layout, record),
            used: holders.use_subvolume(&tree.subvolume(record)),
        };
        state.volumes.push(state::Volume {
            name: tree.name.clone(),
            size: room.size,
            free: room.free,
            machines: records.iter().map(machine).collect(),
            foreign: tree.foreign(&records),
        });
    }
    state
}

/// Returns true if the link of a machine names a revision.
fn is_current(tree: &Tree, layout: &Layout, record: &Record) -> bool {
    let Placed { kind, name, .. } = &record.placed;
    let link = layout.link(*kind, name);
    let target = relative(&link, &record.path);
    let found = fs::read_link(tree.machines(*kind).join(link));
    found.is_ok_and(|found| found == Path::new(&target))
}

/// The work on one volume.
struct Work<'a> {
    paths: &'a Paths,
    settings: &'a Settings,
    tree: &'a Tree,
    problems: &'a mut Vec<String>,
}

impl Work<'_> {
    fn carry_out(&mut self) -> Result<(), String> {
        self.tree.clear_staging()?;
        // Forgets what is gone.
        self.tree.read()?;
        if self.tree.name != self.settings.volume.as_str() {
            return Ok(());
        }
        if let Some(conflict) = self.settings.layout.conflict() {
            return Err(conflict.to_owned());
        }
        let Some(channel) = self.channel()? else {
            return Ok(());
        };
        let plan = self.place_all(&channel)?;
        // What was placed retires what came before.
        for (kind, name) in &plan.unlink {
            self.or_problem(name, |work| work.unlink(*kind, name));
        }
        let holders = Holders::read(&self.paths.root().join("proc"));
        for (placed, reason) in &plan.retire {
            self.or_problem(&placed.name, |work| work.retire(placed, *reason, &holders));
        }
        Ok(())
    }

    /// Places machines one after the other, and makes their links. An operator can change the
    /// choices while a machine is received, so it compares again after each.
    fn place_all(&mut self, channel: &Channel) -> Result<Retention, String> {
        let mut tried = BTreeSet::new();
        loop {
            let plan = self.compare(channel)?;
            for placed in &plan.link {
                self.or_problem(&placed.name, |work| work.link(placed));
            }
            let mut machines = plan.place.iter();
            let Some(machine) = machines.find(|machine| !tried.contains(&machine.name)) else {
                return Ok(plan);
            };
            tried.insert(machine.name.clone());
            if let Err(reason) = self.place(machine) {
                messages::not_placed(&machine.name, machine.revision, &reason);
                let (name, revision) = (&machine.name, machine.revision);
                self.problems
                    .push(format!("machine {name} revision {revision}: {reason}"));
                self.tree.clear_staging()?;
            }
        }
    }

    fn or_problem(&mut self, name: &Name, step: impl FnOnce(&mut Self) -> Result<(), String>) {
        if let Err(reason) = step(self) {
            self.problems.push(format!("machine {name}: {reason}"));
        }
    }

    /// Returns the channel of the spool, if it is accepted and includes this host.
    fn channel(&mut self) -> Result<Option<Channel>, String> {
        let path = Spool::new(&self.tree.spool()).channel();
        if !path.exists() {
            return Ok(None);
        }
        let memory = self.tree.memory();
        let last = offer::remembered(&memory);
        let offer = offer::read(&path, self.paths, self.settings, last)
            .map_err(|reason| format!("the channel is refused: {reason}"))?;
        if last != Some(offer.accepted) {
            durable::replace(&memory, offer::memory(offer.accepted).as_bytes())?;
        }
        Ok(offer.includes_host.then_some(offer.channel))
    }

    fn compare(&self, channel: &Channel) -> Result<Retention, String> {
        let records = self.tree.read()?;
        let placed: Vec<_> = records.into_iter().map(|record| record.placed).collect();
        // Choices can change while a machine is received.
        let choices = choices::load(self.paths)?;
        let selection = Selection {
            patterns: &self.settings.select,
            keep: self.settings.keep,
            choices: &choices,
        };
        Ok(retention::compare(channel, &placed, &selection))
    }

    /// Places a machine, if the spool has all pieces of a stream.
    fn place(&mut self, machine: &Machine) -> Result<(), String> {
        let installed: BTreeSet<Digest> = self
            .tree
            .read()?
            .into_iter()
            .map(|record| record.placed.id)
            .collect();
        let spool = Spool::new(&self.tree.spool());
        for candidate in plan::streams(machine, &installed) {
            let stream = Stream::new(&spool, candidate.stream)?;
            if let Some(stream) = stream.filter(|stream| stream.missing().is_none()) {
                return self.place_by(machine, &candidate, &stream);
            }
        }
        // The pieces are still to come.
        Ok(())
    }

    fn place_by(
        &mut self,
        machine: &Machine,
        candidate: &Candidate,
        stream: &Stream<'_>,
    ) -> Result<(), String> {
        let layout = &self.settings.layout;
        let path = layout.subvolume(machine.kind, &machine.name, machine.revision);
        let at = self.tree.machines(machine.kind).join(&path);
        if at.symlink_metadata().is_ok() {
            return Err(format!("{path} was put there by hand, and is left alone"));
        }
        spool::room(self.tree.top())?
            .check(room::unpacked(machine, candidate))
            .map_err(|error| error.to_string())?;
        let staging = self.tree.staging().join("receive");
        fs::create_dir(&staging)
            .map_err(|error| format!("cannot make {}: {error}", staging.display()))?;
        btrfs::receive(&staging, |out| stream.feed(out))?;
        let subvolume = only_entry(&staging)?;
        let shown = btrfs::show(&subvolume)?;
        let (true, Some(received)) = (shown.read_only, shown.received) else {
            return Err("the stream did not make a complete subvolume".to_owned());
        };
        let id = scan::contents(&subvolume)?.id();
        if id != machine.id {
            return Err(format!(
                "the content id is {id} instead of {}, although each piece is right",
                machine.id
            ));
        }
        let placed = Placed {
            kind: machine.kind,
            name: machine.name.clone(),
            revision: machine.revision,
            id,
        };
        self.tree.write(&Record {
            placed: placed.clone(),
            path: path.clone(),
            received,
            left: None,
        })?;
        // After the record, which names what an interrupted run leaves.
        self.directory(machine.kind, &path)?;
        btrfs::snapshot(&subvolume, &at)?;
        // The user of agents owns the directory, and can have led the snapshot elsewhere by a link.
        if !btrfs::is_subvolume(&at) {
            return Err(format!("{path} is no subvolume after it was made"));
        }
        self.tree.clear_staging()?;
        let how = match candidate.from {
            None => "whole",
            Some(_) => "by an increment",
        };
        messages::placed(&machine.name, machine.revision, how);
        Ok(())
    }

    /// Makes the directory of a subvolume or a link, of the agents' user.
    fn directory(&self, kind: Kind, path: &str) -> Result<(), String> {
        let Some((directory, _)) = path.split_once('/') else {
            return Ok(());
        };
        let full = self.tree.machines(kind).join(directory);
        match fs::create_dir(&full) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = full.symlink_metadata();
                return match found.is_ok_and(|found| found.is_dir()) {
                    true => Ok(()),
                    false => Err(format!("{directory} is in the way: it is no directory")),
                };
            }
            Err(error) => return Err(format!("cannot make {}: {error}", full.display())),
        }
        let build = account::find(self.paths.root(), "build")?;
        chown(&full, Some(build.uid), Some(build.gid))
            .map_err(|error| format!("cannot give {} to build: {error}", full.display()))
    }

    /// Lets the link of a machine name a revision.
    fn link(&mut self, placed: &Placed) -> Result<(), String> {
        let records = self.tree.read()?;
        let record = records.iter().find(|record| record.placed == *placed);
        let record = record.ok_or("its record is gone")?;
        if record.left.is_some() {
            self.tree.write(&Record {
                left: None,
                ..record.clone()
            })?;
        }
        let link = self.settings.layout.link(placed.kind, &placed.name);
        let at = self.tree.machines(placed.kind).join(&link);
        let target = relative(&link, &record.path);
        match at.symlink_metadata() {
            Ok(found) if !found.is_symlink() => {
                return Err(format!("{link} is in the way: it is no link"));
            }
            Ok(_) => {
                let found = fs::read_link(&at).unwrap_or_default();
                if found == Path::new(&target) {
                    return Ok(());
                }
                if !is_ours(&found, &link, &records, placed) && at.exists() {
                    return Err(format!(
                        "the link {link} was made by hand: it names {}",
                        found.display()
                    ));
                }
            }
            Err(_) => self.directory(placed.kind, &link)?,
        }
        let beside = self.tree.staging().join("link");
        let _ = fs::remove_file(&beside);
        symlink(&target, &beside)
            .and_then(|()| fs::rename(&beside, &at))
            .map_err(|error| format!("cannot make the link {link}: {error}"))
    }

    /// Removes the link of a machine, unless it was made by hand.
    fn unlink(&mut self, kind: Kind, name: &Name) -> Result<(), String> {
        let link = self.settings.layout.link(kind, name);
        let at = self.tree.machines(kind).join(&link);
        let Ok(found) = fs::read_link(&at) else {
            return Ok(());
        };
        let records = self.tree.read()?;
        let is_mine = |placed: &Placed| placed.kind == kind && placed.name == *name;
        let mine = records.iter().filter(|record| is_mine(&record.placed));
        let ours = mine
            .map(|record| relative(&link, &record.path))
            .any(|target| found == Path::new(&target));
        match ours {
            true => fs::remove_file(&at)
                .map_err(|error| format!("cannot remove the link {link}: {error}")),
            false => Ok(()),
        }
    }

    /// Deletes a revision that no process uses.
    fn retire(&mut self, placed: &Placed, reason: Reason, holders: &Holders) -> Result<(), String> {
        let records = self.tree.read()?;
        let Some(record) = records.iter().find(|record| record.placed == *placed) else {
            return Ok(());
        };
        let at = self.tree.subvolume(record);
        if is_current(self.tree, &self.settings.layout, record) {
            return Ok(());
        }
        let now = offer::now().seconds();
        match record.left {
            None => {
                let left = Some(now);
                let marked = self.tree.write(&Record {
                    left,
                    ..record.clone()
                });
                // On a full volume, the removal makes room.
                if marked.is_ok() {
                    return Ok(());
                }
            }
            // Also after the clock was set back.
            Some(left) if now.abs_diff(left) < GRACE => return Ok(()),
            Some(_) => {}
        }
        if holders.use_subvolume(&at) {
            return Ok(());
        }
        let shown = btrfs::show(&at)?;
        if shown.received.as_deref() != Some(&record.received) {
            // An operator has put another subvolume there: it is left alone.
            return self.tree.forget(record);
        }
        // By its id: the user of agents can replace the path by a link to another subvolume.
        btrfs::delete_by_id(self.tree.top(), shown.id)?;
        self.tree.forget(record)?;
        let reason = match reason {
            Reason::Superseded => "newer revisions are there",
            Reason::NotInChannel => "the channel does not have the machine any more",
            Reason::NotSelected => "machines.select does not name the machine",
            Reason::Removed => "an operator has removed the machine",
            Reason::Current
            | Reason::Previous
            | Reason::Pinned
            | Reason::PinMissing
            | Reason::Held => "",
        };
        messages::removed(&placed.name, placed.revision, reason);
        Ok(())
    }
}

/// Returns true if a link at `link` with the target `found` names a revision of the machine.
fn is_ours(found: &Path, link: &str, records: &[Record], placed: &Placed) -> bool {
    let mine = records
        .iter()
        .filter(|record| record.placed.kind == placed.kind && record.placed.name == placed.name);
    mine.map(|record| relative(link, &record.path))
        .any(|target| found == Path::new(&target))
}

/// Returns the only entry of a directory, which is a subvolume.
fn only_entry(directory: &Path) -> Result<std::path::PathBuf, String> {
    let entries = fs::read_dir(directory)
        .map_err(|error| format!("cannot read {}: {error}", directory.display()))?;
    let paths: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    match paths.as_slice() {
        [path] if btrfs::is_subvolume(path) => Ok(path.clone()),
        _ => Err("the stream did not make one subvolume".to_owned()),
    }
}
