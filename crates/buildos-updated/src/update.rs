//! Carries out one run: channel, plan, pieces, requests to the helper.
//!
//! ```text
//! channel/NAME ─sqv, policy─→ accepted ─→ spool ─request→ buildos-machine-place: cleans up, links
//!                                │                              │ state
//!                                └── machines to place ←────────┘
//!                                      each: list, pieces ─→ spool ─request→ places it
//! ```
//!
//! One machine is fetched and placed at a time. Its pieces stay in the spool for other hosts, while
//! the volume has room ([`share`]).

use std::collections::BTreeSet;
use std::path::Path;

use buildos_channel::model::Machine;
use buildos_channel::pieces::PieceList;
use buildos_channel::plan::{self, Candidate};
use buildos_channel::{Channel, Digest, HostId, Name};
use buildos_dbus_api::update1::{OsState, Phase};
use buildos_service::file::{overwrite, read_bounded};

use crate::agents;
use crate::choices::{self, Choices};
use crate::durable;
use crate::messages;
use crate::offer::{self, Offer};
use crate::os;
use crate::overview;
use crate::paths::Paths;
use crate::peers::{Counts, Fetcher};
use crate::progress::Progress;
use crate::request::request;
use crate::retention::{self, Selection};
use crate::room;
use crate::settings::{Settings, Source};
use crate::share;
use crate::spool::Spool;
use crate::state::{self, SCHEMA, Updated, Volumes};

/// Permissions of files that everybody reads.
const READABLE: u32 = 0o644;

/// Result of a run that another choice of the operator ended.
const INTERRUPTED: &str = "interrupted by a choice of the operator";

/// A run of the daemon.
pub struct Run<'a> {
    paths: &'a Paths,
    settings: &'a Settings,
    progress: &'a Progress,
    choices: Choices,
    start: Start,
    state: Updated,
}

/// Cause of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// True if the run follows a choice of the operator.
    pub is_choice: bool,
    /// True if an operator asked for the operating system now.
    pub is_now: bool,
}

impl Start {
    /// Joins the causes of two runs.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            is_choice: self.is_choice || other.is_choice,
            is_now: self.is_now || other.is_now,
        }
    }
}

/// Carries out a run with the choices that [`choices::settle`] returned, and returns the state
/// after it. A run that follows a choice of the operator lets the helper apply it, also while the
/// server does not answer.
#[must_use]
pub fn run(
    paths: &Paths,
    settings: &Settings,
    problems: &[String],
    progress: &Progress,
    choices: Result<Choices, String>,
    start: Start,
) -> Updated {
    let mut run = Run {
        paths,
        settings,
        progress,
        choices: Choices::default(),
        start,
        state: begin(paths, settings, problems),
    };
    match os::recover(paths) {
        Ok(()) => os::release(paths, settings, &mut run.state.os),
        Err(reason) => run.state.problems.push(reason),
    }
    // Also while nothing is fetched, nothing is shared.
    let result = share::withdraw(paths, settings).and_then(|()| run.chosen(choices));
    run.state.result = result.unwrap_or_else(|reason| {
        if !progress.is_interrupted() {
            messages::refused(&reason);
        }
        run.state.problems.push(reason.clone());
        reason
    });
    run.state.phase = Phase::Idle;
    run.state.ended_usec = offer::now_usec();
    run.publish();
    run.state
}

/// Returns the state at the begin of a run: what the last one found out about the channel stays.
fn begin(paths: &Paths, settings: &Settings, problems: &[String]) -> Updated {
    let channel = settings.channel.to_string();
    let source = settings.source.as_ref();
    let source = source.map_or_else(String::new, |source| source.as_str().to_owned());
    let last: Option<Updated> = state::read(&paths.state());
    let os = last.as_ref().map(|last| last.os.clone());
    let last = last.filter(|last| last.channel == channel && last.source == source);
    let last = last.unwrap_or_default();
    Updated {
        schema: SCHEMA,
        channel,
        source,
        problems: problems.to_vec(),
        began_usec: offer::now_usec(),
        serial: last.serial,
        valid_until: last.valid_until,
        machines: last.machines,
        os: os.unwrap_or_default(),
        ..Updated::default()
    }
}

impl Run<'_> {
    /// Shows what the run does now.
    fn show(&mut self, phase: Phase, result: String) {
        buildos_service::notify::status(&result);
        self.state.phase = phase;
        self.state.result = result;
        self.publish();
    }

    /// Notes what came from where.
    fn count(&mut self, counts: &Counts) {
        self.state.fetched = counts.origin;
        self.state.from_peers = counts.peers;
        self.state.bad_peers.clone_from(&counts.bad);
    }

    fn publish(&self) {
        // The journal has the reasons, too.
        let _ = overwrite(&self.paths.state(), &state::text(&self.state), READABLE);
        self.progress.show(&self.state);
    }

    /// Carries out what the choices of the operator allow.
    fn chosen(&mut self, choices: Result<Choices, String>) -> Result<String, String> {
        self.state.choices_kept = choices::are_kept(self.paths);
        self.choices = match choices {
            Ok(choices) => choices,
            // No fault yet: the daemon tries again soon.
            Err(reason) if choices::are_awaited(self.paths) => return Ok(reason),
            Err(reason) => return Err(reason),
        };
        if let Some(reason) = &self.choices.hold {
            reason.clone_into(&mut self.state.held);
            os::hold(&mut self.state.os, reason);
            return Ok(format!("updates are held: {reason}"));
        }
        let Some(source) = &self.settings.source else {
            self.apply()?;
            return Ok("nothing to do: update.source is not set".to_owned());
        };
        let result = self.update(source);
        if result.is_err() {
            self.apply()?;
        }
        result
    }

    /// Lets the helper apply a choice of the operator without a new channel: it has that of the
    /// run before.
    fn apply(&mut self) -> Result<(), String> {
        let spool = Spool::new(&self.paths.spool(self.settings.volume.as_str()));
        if self.start.is_choice && !self.progress.is_interrupted() && has_volume(&spool) {
            let volumes = request::<Volumes>(self.paths)?;
            self.describe(None, &volumes);
        }
        Ok(())
    }

    fn selection(&self) -> Selection<'_> {
        Selection {
            patterns: &self.settings.select,
            keep: self.settings.keep,
            choices: &self.choices,
        }
    }

    /// Publishes the machines. Without a channel, what it has is known from the run before.
    fn describe(&mut self, channel: Option<&Channel>, volumes: &Volumes) {
        let empty = state::Volume::default();
        let volume = volumes.volume(self.settings.volume.as_str());
        let volume = volume.unwrap_or(&empty);
        let mut machines = overview::machines(channel, volume, &self.selection());
        if channel.is_none() {
            for machine in &mut machines {
                let mut known = self.state.machines.iter();
                if let Some(known) = known.find(|known| known.name == machine.name) {
                    overview::remember(machine, known.wanted);
                }
            }
            let known = self.state.machines.iter();
            let gone = known.filter(|known| machines.iter().all(|m| m.name != known.name));
            let gone: Vec<_> = gone.cloned().collect();
            machines.extend(gone);
        }
        self.state.machines = machines;
        self.progress.show(&self.state);
    }

    fn update(&mut self, source: &Source) -> Result<String, String> {
        let line = format!("fetching channel {}", self.settings.channel);
        self.show(Phase::Channel, line);
        let offer = self.channel(source)?;
        let machines = self.machines(source, &offer);
        if self.progress.is_interrupted() {
            return machines;
        }
        let (agents, faults) =
            agents::run(self.paths, self.settings, source, &offer, self.progress);
        self.state.problems.extend(faults);
        if self.progress.is_interrupted() {
            return Ok(INTERRUPTED.to_owned());
        }
        let os = self.os(source, &offer)?;
        let lines = [machines?, agents, os];
        let lines: Vec<_> = lines.into_iter().filter(|line| !line.is_empty()).collect();
        Ok(lines.join("; "))
    }

    /// Updates the operating system. Returns what is to be known about it, or nothing.
    fn os(&mut self, source: &Source, offer: &Offer) -> Result<String, String> {
        let host = offer::host_id(self.paths)?;
        let last = self.state.os.clone();
        let (paths, settings, progress) = (self.paths, self.settings, self.progress);
        let is_now = self.start.is_now;
        let mut show = |status: &state::Os| {
            self.state.os = status.clone();
            let phase = match status.state {
                OsState::Fetching | OsState::Fetched | OsState::Draining | OsState::HandedOver => {
                    Phase::Updating
                }
                OsState::Idle
                | OsState::Offered
                | OsState::Held
                | OsState::Trial
                | OsState::Proven
                | OsState::Returned
                | OsState::Bad => return,
            };
            self.show(phase, os::line(status));
        };
        let mut run = os::Run {
            paths,
            settings,
            progress,
            source,
            offer,
            host: &host,
            is_now,
            show: &mut show,
        };
        let (status, fault) = os::run(&mut run, &last);
        let line = os::line(&status);
        self.state.os = status;
        if let Some(fault) = fault {
            messages::refused(&fault);
            self.state.problems.push(fault);
        }
        Ok(line)
    }

    /// Fetches and places machines.
    fn machines(&mut self, source: &Source, offer: &Offer) -> Result<String, String> {
        if !offer.includes_host {
            self.apply()?;
            return Ok(format!(
                "serial {}: the rollout to {} % of the hosts leaves this host out",
                offer.channel.serial, offer.channel.rollout.percent
            ));
        }
        let spool = Spool::new(&self.paths.spool(self.settings.volume.as_str()));
        let placed: Volumes = state::read(&self.paths.placed()).unwrap_or_default();
        self.describe(Some(&offer.channel), &placed);
        if !has_volume(&spool) {
            return Ok(format!(
                "serial {}: this host has no machine volume {}",
                offer.channel.serial, self.settings.volume
            ));
        }
        spool.prepare()?;
        durable::replace(&spool.channel(), &offer.file)?;
        let line = "waiting for buildos-machine-place".to_owned();
        self.show(Phase::Placing, line);
        let mut volumes = request::<Volumes>(self.paths)?;
        if let Some(reason) = refused(offer, &self.settings.volume, &volumes) {
            return Err(reason);
        }
        self.describe(Some(&offer.channel), &volumes);
        let host = offer::host_id(self.paths)?;
        let shared = share::begin(self.paths, self.settings, &spool, &offer.channel)?;
        let mut fetcher = Fetcher::new(&spool, source, self.settings, &host, self.paths.root());
        let (mut placed, mut failed) = (0, 0);
        for machine in self.to_place(offer, &volumes) {
            let name = format!("{} revision {}", machine.name, machine.revision);
            match self.place(&machine, &volumes, &spool, &shared, &mut fetcher, &host) {
                Ok(after) => {
                    volumes = after;
                    placed += 1;
                    self.describe(Some(&offer.channel), &volumes);
                }
                Err(_) if self.progress.is_interrupted() => return Ok(INTERRUPTED.to_owned()),
                Err(reason) => {
                    messages::not_placed(&machine.name, machine.revision, &reason);
                    self.state.problems.push(format!("{name}: {reason}"));
                    failed += 1;
                }
            }
        }
        self.count(&fetcher.counts);
        self.missing_pins(offer, &volumes);
        // Of a machine that is still to come, the next run continues the pieces.
        if failed == 0 {
            share::end(self.settings, &spool, &offer.channel)?;
        }
        Ok(match (placed, failed) {
            (0, 0) => format!("serial {}: everything is there", offer.channel.serial),
            (placed, 0) => format!("serial {}: {placed} placed", offer.channel.serial),
            (placed, failed) => format!(
                "serial {}: {placed} placed, {failed} not placed",
                offer.channel.serial
            ),
        })
    }

    /// Fetches, verifies and remembers the channel.
    fn channel(&mut self, source: &Source) -> Result<Offer, String> {
        let offer = offer::fetch(self.paths, self.settings, source)?;
        self.state.serial = offer.channel.serial;
        self.state.valid_until = offer.channel.valid_until.to_string();
        Ok(offer)
    }

    /// Returns the machines that the volume lacks.
    fn to_place(&self, offer: &Offer, volumes: &Volumes) -> Vec<Machine> {
        let volume = volumes.volume(self.settings.volume.as_str());
        let placed = volume.map(state::Volume::placed).unwrap_or_default();
        retention::compare(&offer.channel, &placed, &self.selection()).place
    }

    /// Reports machines that are pinned at a revision that is neither there nor in the channel.
    fn missing_pins(&mut self, offer: &Offer, volumes: &Volumes) {
        let volume = volumes.volume(self.settings.volume.as_str());
        let placed = volume.map(state::Volume::placed).unwrap_or_default();
        for name in self.choices.machines.keys() {
            let Some(pin) = self.choices.pinned(name) else {
                continue;
            };
            let is_there = placed.iter().any(|p| p.name == *name && p.revision == pin);
            let mut offered = offer.channel.machines.iter();
            if !is_there && !offered.any(|m| m.name == *name && m.revision == pin) {
                self.state.problems.push(format!(
                    "{name} is pinned at revision {pin}, which is not on the volume: \
                     buildosctl machines unpin {name}"
                ));
            }
        }
    }

    /// Fetches a machine and lets the helper place it.
    fn place(
        &mut self,
        machine: &Machine,
        volumes: &Volumes,
        spool: &Spool,
        shared: &BTreeSet<Digest>,
        fetcher: &mut Fetcher<'_>,
        host: &HostId,
    ) -> Result<Volumes, String> {
        let volume = volumes.volume(self.settings.volume.as_str());
        let placed = volume.map(state::Volume::placed).unwrap_or_default();
        let installed: BTreeSet<Digest> = placed.iter().map(|placed| placed.id).collect();
        let mut reasons = Vec::new();
        for candidate in plan::streams(machine, &installed) {
            if self.progress.is_interrupted() {
                return Err(INTERRUPTED.to_owned());
            }
            let fetched = self.fetch(machine, &candidate, spool, shared, fetcher, host);
            let after = match fetched.and_then(|()| request::<Volumes>(self.paths)) {
                Ok(after) => after,
                Err(reason) => {
                    reasons.push(reason);
                    continue;
                }
            };
            let volume = after.volume(self.settings.volume.as_str());
            let placed = volume.map(state::Volume::placed).unwrap_or_default();
            if placed.iter().any(|placed| placed.id == machine.id) {
                return Ok(after);
            }
            reasons.push(why_not(machine, &self.settings.volume, &after.problems));
        }
        // An increment that failed and the whole machine that failed have the same reason.
        reasons.dedup();
        Err(reasons.join("; "))
    }

    /// Fetches the pieces of a stream, if there is room.
    fn fetch(
        &mut self,
        machine: &Machine,
        candidate: &Candidate,
        spool: &Spool,
        shared: &BTreeSet<Digest>,
        fetcher: &mut Fetcher<'_>,
        host: &HostId,
    ) -> Result<(), String> {
        let stream = candidate.stream;
        let list_size = PieceList::text_size(stream.size);
        let unpacked = room::unpacked(machine, candidate);
        // Of the pieces that are there, those of this stream stay.
        let mut needed = BTreeSet::from([stream.pieces]);
        let parsed = |spool: &Spool| -> Result<PieceList, String> {
            let limit = usize::try_from(list_size).unwrap_or(usize::MAX);
            let text = read_bounded(&spool.object(&stream.pieces), limit)
                .map_err(|error| format!("cannot read the list of pieces: {error}"))?;
            PieceList::parse(&text, stream.size)
                .map_err(|error| format!("the list of pieces is refused: {error}"))
        };
        if !spool.has(&stream.pieces, list_size) {
            share::make_room(spool, stream.size.saturating_add(unpacked), &needed, shared)?;
            fetcher.object(&stream.pieces, list_size)?;
        }
        let list = parsed(spool)?;
        needed.extend(list.iter().map(|(_, sha256, _)| sha256));
        let plan = plan::plan(&list, host, |_| false);
        let missing = plan.fetch.iter().map(|piece| {
            let arrived = spool.arrived(&piece.sha256);
            piece.size.saturating_sub(arrived)
        });
        let need = missing.sum::<u64>().saturating_add(unpacked);
        share::make_room(spool, need, &needed, shared)?;
        let count = plan.fetch.len();
        let fetched = fetcher.pieces(&plan.fetch, |there, counts| {
            self.count(counts);
            let line = format!(
                "fetching {} revision {}: piece {} of {count}",
                machine.name,
                machine.revision,
                there + 1
            );
            self.show(Phase::Fetching, line);
            match self.progress.is_interrupted() {
                true => Err(INTERRUPTED.to_owned()),
                false => Ok(()),
            }
        });
        self.count(&fetcher.counts);
        fetched?;
        let line = format!("placing {} revision {}", machine.name, machine.revision);
        self.show(Phase::Placing, line);
        Ok(())
    }
}

/// Returns true if the host has the machine volume of a spool.
fn has_volume(spool: &Spool) -> bool {
    spool.channel().parent().is_some_and(Path::is_dir)
}

/// Returns the reason for which the helper refuses a channel that the daemon has accepted: after a
/// boot, only the volume remembers the serial.
fn refused(offer: &Offer, volume: &Name, volumes: &Volumes) -> Option<String> {
    let accepted = volumes.accepted()?;
    if accepted == offer.accepted {
        return None;
    }
    let of_volume = format!("volume {volume}: ");
    let mut problems = volumes.problems.iter();
    let reason = problems.find(|problem| problem.starts_with(&of_volume));
    Some(reason.map_or_else(
        || format!("{of_volume}serial {} was accepted", accepted.serial),
        Clone::clone,
    ))
}

/// Returns the reason for which the helper did not place a machine.
fn why_not(machine: &Machine, volume: &Name, problems: &[String]) -> String {
    let of_machine = format!("machine {} ", machine.name);
    let of_volume = format!("volume {volume}: ");
    let starts = |with: &str| problems.iter().find(|problem| problem.starts_with(with));
    let reason = starts(&of_machine).or_else(|| starts(&of_volume));
    reason.map_or_else(|| "it was not placed".to_owned(), Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::grammar;
    use buildos_channel::policy::Accepted;
    use buildos_dbus_api::update1::{Machine, MachineState};
    use std::fs;

    #[test]
    fn channel_that_only_the_volume_refuses_is_refused() {
        let text = "format = 1\nname = \"stable\"\nserial = 6\n\
            valid_until = 2027-01-31T12:00:00Z\n\n[rollout]\npercent = 100\nsince = 1\n";
        let accepted = |serial: u64| Accepted {
            serial,
            digest: Digest::of(&serial.to_le_bytes()),
        };
        let offer = Offer {
            channel: grammar::parse(text).unwrap().channel,
            accepted: accepted(6),
            file: Vec::new(),
            includes_host: true,
        };
        let volume: Name = "default".parse().unwrap();
        let volumes = |serial: u64, problem: &str| Volumes {
            accepted: Some((serial, accepted(serial).digest.to_string())),
            problems: vec![problem.to_owned()],
            ..Volumes::default()
        };
        let refused = |volumes: &Volumes| refused(&offer, &volume, volumes);
        assert_eq!(refused(&volumes(6, "volume default: full")), None);
        assert_eq!(refused(&Volumes::default()), None);
        let reason = "volume default: the channel is refused: its serial 6 is lower than 7";
        assert_eq!(refused(&volumes(7, reason)), Some(reason.to_owned()));
        assert_eq!(
            refused(&volumes(7, "volume other: full")).unwrap(),
            "volume default: serial 7 was accepted"
        );
    }

    #[test]
    fn run_does_not_replace_a_choice_that_was_made_after_its_start() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        for path in [paths.state(), paths.choices()] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        let held = |reason: &str| Choices {
            hold: Some(reason.to_owned()),
            ..Choices::default()
        };
        choices::store(&paths, &held("old")).unwrap();
        let settled = choices::settle(&paths);
        choices::store(&paths, &held("new")).unwrap();
        let (progress, _shown) = Progress::new(Updated::default());
        let settings = Settings::default();
        let state = run(&paths, &settings, &[], &progress, settled, Start::default());
        assert_eq!(state.held, "old");
        assert_eq!(choices::load(&paths).unwrap().hold.as_deref(), Some("new"));
    }

    #[test]
    fn nothing_is_shared_while_updates_are_held() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        fs::create_dir_all(paths.pieces().parent().unwrap()).unwrap();
        let held = Choices {
            hold: Some("x".to_owned()),
            ..Choices::default()
        };
        let mut settings = Settings::default();
        for is_shared in [true, false] {
            std::os::unix::fs::symlink("/spool", paths.pieces()).unwrap();
            settings.share = is_shared;
            let (progress, _shown) = Progress::new(Updated::default());
            let start = Start::default();
            let _ = run(&paths, &settings, &[], &progress, Ok(held.clone()), start);
            assert_eq!(paths.pieces().is_symlink(), is_shared);
            let _ = fs::remove_file(paths.pieces());
        }
    }

    #[test]
    fn machines_of_the_channel_are_known_while_the_server_is_away() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        let (progress, _shown) = Progress::new(Updated::default());
        let settings = Settings::default();
        let known = |name: &str, wanted| Machine {
            name: name.to_owned(),
            wanted,
            ..Machine::default()
        };
        let mut run = Run {
            paths: &paths,
            settings: &settings,
            progress: &progress,
            choices: Choices::default(),
            start: Start::default(),
            state: Updated {
                machines: vec![known("box", 4), known("other", 1)],
                ..Updated::default()
            },
        };
        let on_volume = state::Machine {
            name: "box".to_owned(),
            kind: "machine".to_owned(),
            revision: 3,
            id: Digest::of(b"box").to_string(),
            current: true,
            ..state::Machine::default()
        };
        let volumes = Volumes {
            volumes: vec![state::Volume {
                name: settings.volume.to_string(),
                machines: vec![on_volume],
                ..state::Volume::default()
            }],
            ..Volumes::default()
        };
        run.describe(None, &volumes);
        let shown = run.state.machines.iter();
        let shown: Vec<_> = shown
            .map(|m| (m.name.as_str(), m.wanted, m.current))
            .collect();
        assert_eq!(shown, [("box", 4, 3), ("other", 1, 0)]);
        assert_eq!(run.state.machines[0].state, MachineState::Waiting);
    }
}
