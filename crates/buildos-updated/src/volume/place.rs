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
//! Removal begins with the link. A subvolume goes once no process uses it; its record goes
//! last.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::ExitCode;

use buildos_channel::model::Machine;
use buildos_channel::pieces::PieceList;
use buildos_channel::plan::{self, Candidate};
use buildos_channel::{Channel, Digest, Name};
use buildos_service::file::{overwrite, read_bounded};
use buildos_service::log_to_journal;
use buildos_service::text::chain;

use super::account;
use super::holders::Holders;
use super::tree::{Record, Tree};
use crate::layout::{Layout, relative};
use crate::paths::Paths;
use crate::programs::btrfs;
use crate::retention::{self, Placed, Reason};
use crate::settings::{self, Settings};
use crate::spool::{self, Spool};
use crate::state::{self, SCHEMA, Volumes};
use crate::{durable, messages, offer, room, scan};

/// Bytes of a request.
const REQUEST: usize = 64;
/// Permissions of the state file.
const READABLE: u32 = 0o644;

/// Runs the helper.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal("buildos-machine-place");
    if std::env::args_os().len() > 1 {
        tracing::error!("buildos-machine-place takes no arguments");
        return ExitCode::from(2);
    }
    let paths = Paths::new(Path::new("/"));
    loop {
        let request = request(&paths);
        match run(&paths, request) {
            // A request that came meanwhile did not start the unit, which was active.
            Ok(()) if self::request(&paths) == request => return ExitCode::SUCCESS,
            Ok(()) => {}
            Err(error) => {
                messages::helper_failed(&error);
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Returns the number of the request, or 0.
fn request(paths: &Paths) -> u64 {
    let content = read_bounded(&paths.request(), REQUEST).unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    text.trim().parse().unwrap_or(0)
}

/// Carries out a request: brings all volumes into order and writes the state.
fn run(paths: &Paths, request: u64) -> Result<(), String> {
    let (settings, mut problems) = settings::load(paths.root());
    let trees = Tree::mounted(&paths.volumes());
    let mut state = look(paths, &trees, &mut Vec::new());
    state.handling = request;
    write(paths, &state)?;
    let mut accepted = None;
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
        if tree.name == settings.volume.as_str() {
            accepted = offer::remembered(&tree.memory());
        }
    }
    let mut state = look(paths, &trees, &mut problems);
    state.handling = request;
    state.handled = request;
    state.accepted = accepted.map(|accepted| (accepted.serial, accepted.digest.to_string()));
    state.problems = problems;
    write(paths, &state)
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
            revision: record.placed.revision,
            id: record.placed.id.to_string(),
            path: record.path.clone(),
            current: is_current(tree, &settings.layout, record),
            used: holders.use_subvolume(&tree.machines().join(&record.path)),
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
    let link = layout.link(&record.placed.name);
    let target = relative(&link, &record.path);
    let found = fs::read_link(tree.machines().join(link));
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
        for machine in self.compare(&channel)?.place {
            if let Err(reason) = self.place(&machine) {
                messages::not_placed(&machine.name, machine.revision, &reason);
                let (name, revision) = (&machine.name, machine.revision);
                self.problems
                    .push(format!("machine {name} revision {revision}: {reason}"));
                self.tree.clear_staging()?;
            }
        }
        // What was placed retires what came before.
        let plan = self.compare(&channel)?;
        for placed in &plan.link {
            self.or_problem(&placed.name, |work| work.link(placed));
        }
        for name in &plan.unlink {
            self.or_problem(name, |work| work.unlink(name));
        }
        let holders = Holders::read(&self.paths.root().join("proc"));
        for (placed, reason) in &plan.retire {
            self.or_problem(&placed.name, |work| work.retire(placed, *reason, &holders));
        }
        Ok(())
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

    fn compare(&self, channel: &Channel) -> Result<retention::Retention, String> {
        let records = self.tree.read()?;
        let placed: Vec<_> = records.into_iter().map(|record| record.placed).collect();
        let settings = self.settings;
        Ok(retention::compare(
            channel,
            &placed,
            &settings.select,
            settings.keep,
        ))
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
            let Some(list) = list(&spool, &candidate)? else {
                continue;
            };
            if list
                .iter()
                .all(|(_, sha256, size)| spool.has(&sha256, size))
            {
                return self.place_by(machine, &candidate, &list, &spool);
            }
        }
        // The pieces are still to come.
        Ok(())
    }

    fn place_by(
        &mut self,
        machine: &Machine,
        candidate: &Candidate,
        list: &PieceList,
        spool: &Spool,
    ) -> Result<(), String> {
        let layout = &self.settings.layout;
        let path = layout.subvolume(&machine.name, machine.revision);
        let at = self.tree.machines().join(&path);
        if at.symlink_metadata().is_ok() {
            return Err(format!("{path} was put there by hand, and is left alone"));
        }
        spool::room(self.tree.top())?
            .check(room::unpacked(machine, candidate))
            .map_err(|error| error.to_string())?;
        let staging = self.tree.staging().join("receive");
        fs::create_dir(&staging)
            .map_err(|error| format!("cannot make {}: {error}", staging.display()))?;
        btrfs::receive(&staging, |out| feed(list, spool, out))?;
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
            name: machine.name.clone(),
            revision: machine.revision,
            id,
        };
        self.directory(&path)?;
        self.tree.write(&Record {
            placed: placed.clone(),
            path,
            received,
        })?;
        btrfs::snapshot(&subvolume, &at)?;
        self.link(&placed)?;
        self.tree.clear_staging()?;
        let how = match candidate.from {
            None => "whole",
            Some(_) => "by an increment",
        };
        messages::placed(&machine.name, machine.revision, how);
        Ok(())
    }

    /// Makes the directory of a subvolume or a link, of the agents' user.
    fn directory(&self, path: &str) -> Result<(), String> {
        let Some((directory, _)) = path.split_once('/') else {
            return Ok(());
        };
        let full = self.tree.machines().join(directory);
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
        let link = self.settings.layout.link(&placed.name);
        let at = self.tree.machines().join(&link);
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
            Err(_) => self.directory(&link)?,
        }
        let beside = self.tree.staging().join("link");
        let _ = fs::remove_file(&beside);
        symlink(&target, &beside)
            .and_then(|()| fs::rename(&beside, &at))
            .map_err(|error| format!("cannot make the link {link}: {error}"))
    }

    /// Removes the link of a machine, unless it was made by hand.
    fn unlink(&mut self, name: &Name) -> Result<(), String> {
        let link = self.settings.layout.link(name);
        let at = self.tree.machines().join(&link);
        let Ok(found) = fs::read_link(&at) else {
            return Ok(());
        };
        let records = self.tree.read()?;
        let mine = records.iter().filter(|record| record.placed.name == *name);
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
        let at = self.tree.machines().join(&record.path);
        if holders.use_subvolume(&at) || is_current(self.tree, &self.settings.layout, record) {
            return Ok(());
        }
        if btrfs::show(&at)?.received.as_deref() != Some(&record.received) {
            // An operator has put another subvolume there: it is left alone.
            return self.tree.forget(placed);
        }
        btrfs::delete(&at)?;
        self.tree.forget(placed)?;
        if let Some((directory, _)) = record.path.split_once('/') {
            // It can have files of others.
            let _ = fs::remove_dir(self.tree.machines().join(directory));
        }
        let reason = match reason {
            Reason::Superseded => "newer revisions are there",
            Reason::NotInChannel => "the channel does not have the machine any more",
            Reason::NotSelected => "machines.select does not name the machine",
            Reason::Current | Reason::Previous => "",
        };
        messages::removed(&placed.name, placed.revision, reason);
        Ok(())
    }
}

/// Returns true if a link at `link` with the target `found` names a revision of the machine.
fn is_ours(found: &Path, link: &str, records: &[Record], placed: &Placed) -> bool {
    let mine = records
        .iter()
        .filter(|record| record.placed.name == placed.name);
    mine.map(|record| relative(link, &record.path))
        .any(|target| found == Path::new(&target))
}

/// Reads and verifies the list of pieces of a stream, if the spool has it.
fn list(spool: &Spool, candidate: &Candidate) -> Result<Option<PieceList>, String> {
    let stream = candidate.stream;
    let size = PieceList::text_size(stream.size);
    if !spool.has(&stream.pieces, size) {
        return Ok(None);
    }
    let path = spool.object(&stream.pieces);
    let limit = usize::try_from(size).unwrap_or(usize::MAX);
    let text = read_bounded(&path, limit)
        .map_err(|error| format!("cannot read the list of pieces: {error}"))?;
    if Digest::of(&text) != stream.pieces {
        remove(&path);
        return Err("the list of pieces in the spool has a different digest".to_owned());
    }
    PieceList::parse(&text, stream.size)
        .map(Some)
        .map_err(|error| format!("the list of pieces is refused: {}", chain(&error)))
}

/// Passes on the pieces of a stream, each after its digest was verified.
fn feed(list: &PieceList, spool: &Spool, out: &mut dyn Write) -> Result<(), String> {
    for (index, sha256, size) in list.iter() {
        let path = spool.object(&sha256);
        let limit = usize::try_from(size).unwrap_or(usize::MAX);
        let piece = read_bounded(&path, limit)
            .map_err(|error| format!("cannot read piece {}: {error}", index + 1))?;
        if Digest::of(&piece) != sha256 {
            remove(&path);
            let number = index + 1;
            return Err(format!(
                "piece {number} in the spool has a different digest"
            ));
        }
        out.write_all(&piece).map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                btrfs::BROKEN_PIPE.to_owned()
            } else {
                format!("cannot write to zstd: {error}")
            }
        })?;
    }
    Ok(())
}

/// Removes a damaged object, so that the daemon fetches it again.
fn remove(path: &Path) {
    // If it stays, the next attempt reports the same reason.
    let _ = fs::remove_file(path);
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
