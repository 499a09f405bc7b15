//! Carries out one run: channel, plan, pieces, requests to the helper.
//!
//! ```text
//! channel/NAME ─sqv, policy─→ accepted ─→ spool ─request→ buildos-machine-place: cleans up, links
//!                                │                              │ state
//!                                └── machines to place ←────────┘
//!                                      each: list, pieces ─→ spool ─request→ places it
//! ```
//!
//! One machine is fetched and placed at a time, so the spool has the pieces of one stream.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use buildos_channel::model::Machine;
use buildos_channel::pieces::PieceList;
use buildos_channel::plan::{self, Candidate};
use buildos_channel::{Digest, HostId, Name};
use buildos_service::file::{overwrite, read_bounded};

use crate::durable;
use crate::messages;
use crate::offer::{self, Offer};
use crate::paths::Paths;
use crate::programs::curl::{self, Failure};
use crate::request::request;
use crate::retention;
use crate::room;
use crate::settings::{Settings, Source};
use crate::spool::Spool;
use crate::state::{self, SCHEMA, Updated, Volumes};

/// Permissions of files that everybody reads.
const READABLE: u32 = 0o644;

/// A run of the daemon.
pub struct Run<'a> {
    paths: &'a Paths,
    settings: &'a Settings,
    state: Updated,
}

/// Carries out a run, and returns the state after it.
#[must_use]
pub fn run(paths: &Paths, settings: &Settings, problems: &[String]) -> Updated {
    let mut run = Run {
        paths,
        settings,
        state: Updated {
            schema: SCHEMA,
            channel: settings.channel.to_string(),
            problems: problems.to_vec(),
            ..Updated::default()
        },
    };
    let result = match &settings.source {
        None => Ok("nothing to do: update.source is not set".to_owned()),
        Some(source) => {
            source.as_str().clone_into(&mut run.state.source);
            run.update(source)
        }
    };
    run.state.result = result.unwrap_or_else(|reason| {
        messages::refused(&reason);
        run.state.problems.push(reason.clone());
        reason
    });
    run.state.ended_usec = offer::now().seconds().saturating_mul(1_000_000);
    run.publish();
    run.state
}

impl Run<'_> {
    /// Shows what the run does now.
    fn show(&mut self, result: String) {
        buildos_service::notify::status(&result);
        self.state.result = result;
        self.publish();
    }

    fn publish(&self) {
        // The journal has the reasons, too.
        let _ = overwrite(&self.paths.state(), &state::text(&self.state), READABLE);
    }

    fn update(&mut self, source: &Source) -> Result<String, String> {
        self.show(format!("fetching channel {}", self.settings.channel));
        let offer = self.channel(source)?;
        if !offer.includes_host {
            return Ok(format!(
                "serial {}: the rollout to {} % of the hosts leaves this host out",
                offer.channel.serial, offer.channel.rollout.percent
            ));
        }
        let spool = Spool::new(&self.paths.spool(self.settings.volume.as_str()));
        if !spool.channel().parent().is_some_and(Path::is_dir) {
            return Ok(format!(
                "serial {}: this host has no machine volume {}",
                offer.channel.serial, self.settings.volume
            ));
        }
        durable::replace(&spool.channel(), &offer.file)?;
        self.show("waiting for buildos-machine-place".to_owned());
        let mut volumes = request(self.paths)?;
        let host = offer::host_id(self.paths)?;
        let (mut placed, mut failed) = (0, 0);
        for machine in self.to_place(&offer, &volumes) {
            let name = format!("{} revision {}", machine.name, machine.revision);
            match self.place(&machine, &volumes, &spool, source, &host) {
                Ok(after) => {
                    volumes = after;
                    placed += 1;
                }
                Err(reason) => {
                    messages::not_placed(&machine.name, machine.revision, &reason);
                    self.state.problems.push(format!("{name}: {reason}"));
                    failed += 1;
                }
            }
        }
        // Nothing of the spool is of use any more, unless a machine is still to come.
        if failed == 0 {
            spool.keep_only(&BTreeSet::new())?;
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
        let path = self.paths.channel();
        let fetched = path.with_extension("new");
        // A file of the run before is not the beginning of this one.
        let _ = fs::remove_file(&fetched);
        let url = source.file(&format!("channel/{}", self.settings.channel));
        let most = offer::SIGNED as u64;
        match curl::fetch(Path::new("curl"), &url, &fetched, most, self.settings) {
            Ok(()) => {}
            Err(Failure::Other(reason)) => return Err(reason),
            Err(Failure::CannotResume) => return Err(format!("{url}: the transfer broke off")),
        }
        let memory = self.paths.memory();
        let placed: Option<Volumes> = state::read(&self.paths.placed());
        let last = offer::later(
            offer::remembered(&memory),
            placed.and_then(|placed| placed.accepted()),
        );
        let offer = offer::read(&fetched, self.paths, self.settings, last)
            .map_err(|reason| format!("{url} is refused: {reason}"))?;
        durable::replace(&memory, offer::memory(offer.accepted).as_bytes())?;
        fs::rename(&fetched, &path)
            .map_err(|error| format!("cannot keep {}: {error}", path.display()))?;
        if last != Some(offer.accepted) {
            messages::accepted(&offer.channel);
        }
        self.state.serial = offer.channel.serial;
        self.state.valid_until = offer.channel.valid_until.to_string();
        Ok(offer)
    }

    /// Returns the machines that the volume lacks.
    fn to_place(&self, offer: &Offer, volumes: &Volumes) -> Vec<Machine> {
        let volume = volumes.volume(self.settings.volume.as_str());
        let placed = volume.map(state::Volume::placed).unwrap_or_default();
        let settings = self.settings;
        retention::compare(&offer.channel, &placed, &settings.select, settings.keep).place
    }

    /// Fetches a machine and lets the helper place it.
    fn place(
        &mut self,
        machine: &Machine,
        volumes: &Volumes,
        spool: &Spool,
        source: &Source,
        host: &HostId,
    ) -> Result<Volumes, String> {
        let volume = volumes.volume(self.settings.volume.as_str());
        let placed = volume.map(state::Volume::placed).unwrap_or_default();
        let installed: BTreeSet<Digest> = placed.iter().map(|placed| placed.id).collect();
        let mut reasons = Vec::new();
        for candidate in plan::streams(machine, &installed) {
            let fetched = self.fetch(machine, &candidate, spool, source, host);
            let after = match fetched.and_then(|()| request(self.paths)) {
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
        source: &Source,
        host: &HostId,
    ) -> Result<(), String> {
        let stream = candidate.stream;
        let list_size = PieceList::text_size(stream.size);
        let unpacked = room::unpacked(machine, candidate);
        // Of the pieces that are there, only those of this stream stay.
        let mut needed = BTreeSet::from([stream.pieces]);
        let parsed = |spool: &Spool| -> Result<PieceList, String> {
            let limit = usize::try_from(list_size).unwrap_or(usize::MAX);
            let text = read_bounded(&spool.object(&stream.pieces), limit)
                .map_err(|error| format!("cannot read the list of pieces: {error}"))?;
            PieceList::parse(&text, stream.size)
                .map_err(|error| format!("the list of pieces is refused: {error}"))
        };
        if !spool.has(&stream.pieces, list_size) {
            spool
                .room()?
                .check(stream.size.saturating_add(unpacked))
                .map_err(|e| e.to_string())?;
            self.state.fetched += spool.fetch(&stream.pieces, list_size, source, self.settings)?;
        }
        let list = parsed(spool)?;
        needed.extend(list.iter().map(|(_, sha256, _)| sha256));
        spool.keep_only(&needed)?;
        let plan = plan::plan(&list, host, |_| false);
        let missing = plan.fetch.iter().map(|piece| {
            let arrived = spool.arrived(&piece.sha256);
            piece.size.saturating_sub(arrived)
        });
        let need = missing.sum::<u64>().saturating_add(unpacked);
        spool
            .room()?
            .check(need)
            .map_err(|error| error.to_string())?;
        let count = plan.fetch.len();
        for (index, piece) in plan.fetch.iter().enumerate() {
            self.show(format!(
                "fetching {} revision {}: piece {} of {count}",
                machine.name,
                machine.revision,
                index + 1
            ));
            self.state.fetched += spool.fetch(&piece.sha256, piece.size, source, self.settings)?;
        }
        self.show(format!(
            "placing {} revision {}",
            machine.name, machine.revision
        ));
        Ok(())
    }
}

/// Returns the reason for which the helper did not place a machine.
fn why_not(machine: &Machine, volume: &Name, problems: &[String]) -> String {
    let of_machine = format!("machine {} ", machine.name);
    let of_volume = format!("volume {volume}: ");
    let starts = |with: &str| problems.iter().find(|problem| problem.starts_with(with));
    let reason = starts(&of_machine).or_else(|| starts(&of_volume));
    reason.map_or_else(|| "it was not placed".to_owned(), Clone::clone)
}
