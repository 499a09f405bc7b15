//! Defines the state files that buildosctl reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use buildos_channel::policy::Accepted;
use buildos_channel::{Digest, Name};
use buildos_dbus_api::update1::{self, Cause, OsState, Phase};
use buildos_service::file::read_bounded;
use serde::{Deserialize, Serialize};

use crate::paths::{AGENTS_PLACED, PLACED, Paths};
use crate::retention::Placed;

/// Version of both formats.
pub const SCHEMA: u32 = 1;
/// Bytes of a state file.
const LIMIT: usize = 4 * 1024 * 1024;

/// What the daemon did last: `/run/buildos/updated/state.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Updated {
    #[allow(missing_docs)]
    pub schema: u32,
    /// Time of the begin of the run, microseconds since 1970.
    #[serde(default)]
    pub began_usec: u64,
    /// Time of the end of the run, microseconds since 1970; 0 while it runs.
    pub ended_usec: u64,
    /// One line: what it did, or why it did nothing.
    pub result: String,
    /// URL of the server.
    pub source: String,
    #[allow(missing_docs)]
    pub channel: String,
    /// Serial of the accepted channel; 0 without one.
    pub serial: u64,
    /// End of its validity.
    pub valid_until: String,
    /// Bytes that came in this run from the origin.
    pub fetched: u64,
    /// Bytes that came in this run from peers.
    #[serde(default)]
    pub from_peers: u64,
    /// Peers that sent wrong content in this run, with the reason.
    #[serde(default)]
    pub bad_peers: Vec<String>,
    /// What it does now.
    #[serde(default)]
    pub phase: Phase,
    /// Reason of the hold, or empty.
    #[serde(default)]
    pub held: String,
    /// True if the choices of the operator outlive a reboot.
    #[serde(default)]
    pub choices_kept: bool,
    /// Update of the operating system.
    #[serde(default)]
    pub os: Os,
    /// Machines of the accepted channel, and those on the volume.
    #[serde(default)]
    pub machines: Vec<update1::Machine>,
    /// Faults, one line each.
    pub problems: Vec<String>,
}

/// Update of the operating system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Os {
    #[allow(missing_docs)]
    pub state: OsState,
    /// Version in the channel; in the states `trial` and `returned` that of the trial.
    pub version: String,
    /// Digests in the channel, as IMAGE:INITRD.
    pub pair: String,
    /// Cause of a hold.
    pub cause: Option<Cause>,
    /// One line for operators, or empty.
    pub reason: String,
    /// Time of the last change of the state, microseconds since 1970.
    pub since_usec: u64,
    /// True once the FleetLock server knows in this boot that the host has no slot.
    pub is_released: bool,
    /// True once the verdict of a trial is recorded in this boot.
    pub is_noted: bool,
}

/// What is on the machine volumes: `/run/buildos/machine-place/state.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volumes {
    #[allow(missing_docs)]
    pub schema: u32,
    /// The request that the helper carries out.
    pub handling: u64,
    /// The request that the helper has carried out.
    pub handled: u64,
    /// Serial and digest of the channel that the helper accepted last.
    pub accepted: Option<(u64, String)>,
    #[allow(missing_docs)]
    pub volumes: Vec<Volume>,
    /// Faults, one line each.
    pub problems: Vec<String>,
}

/// Agents that are placed: `/run/buildos/agent-place/state.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agents {
    #[allow(missing_docs)]
    pub schema: u32,
    /// The request that the helper carries out.
    pub handling: u64,
    /// The request that the helper has carried out.
    pub handled: u64,
    /// Serial and digest of the channel that the helper accepted last.
    pub accepted: Option<(u64, String)>,
    /// By name, the newest first.
    pub agents: Vec<Agent>,
    /// Faults, one line each.
    pub problems: Vec<String>,
}

/// A placed agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    #[allow(missing_docs)]
    pub name: String,
    #[allow(missing_docs)]
    pub version: String,
    /// Digest of the system extension.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Time at which it was placed, microseconds since 1970.
    pub placed_usec: u64,
}

/// State of a helper that carries out numbered requests.
pub trait Helper: for<'de> Deserialize<'de> + Default {
    /// Unit of the helper.
    const UNIT: &'static str;
    /// Path of the state, relative to the root.
    const STATE: &'static str;
    /// The helper has to end within this time.
    const END: Duration;
    /// Returns the path of the request.
    fn request(paths: &Paths) -> PathBuf;
    /// Returns the request that the helper carries out, and the one that it has carried out.
    fn handled(&self) -> (u64, u64);
}

impl Helper for Volumes {
    const UNIT: &'static str = "buildos-machine-place.service";
    const STATE: &'static str = PLACED;
    // A machine can have hundreds of gigabytes.
    const END: Duration = Duration::from_secs(4 * 3600);

    fn request(paths: &Paths) -> PathBuf {
        paths.request()
    }

    fn handled(&self) -> (u64, u64) {
        (self.handling, self.handled)
    }
}

impl Helper for Agents {
    const UNIT: &'static str = "buildos-agent-place.service";
    const STATE: &'static str = AGENTS_PLACED;
    // TimeoutStartSec= of the unit has 10 minutes.
    const END: Duration = Duration::from_secs(15 * 60);

    fn request(paths: &Paths) -> PathBuf {
        paths.agents_request()
    }

    fn handled(&self) -> (u64, u64) {
        (self.handling, self.handled)
    }
}

/// A machine volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    #[allow(missing_docs)]
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub free: u64,
    /// Revisions that were placed.
    pub machines: Vec<Machine>,
    /// Subvolumes that were put there by hand, relative to the machines.
    pub foreign: Vec<String>,
}

/// A revision that was placed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    #[allow(missing_docs)]
    pub name: String,
    /// `machine` or `container`.
    pub kind: String,
    #[allow(missing_docs)]
    pub revision: u64,
    /// Content id.
    pub id: String,
    /// Path, relative to the directory of its kind.
    pub path: String,
    /// True if the link of the machine names it.
    pub current: bool,
    /// True if a process has a file of it open.
    pub used: bool,
}

impl Volumes {
    /// Returns what the helper accepted last.
    #[must_use]
    pub fn accepted(&self) -> Option<Accepted> {
        let (serial, digest) = self.accepted.as_ref()?;
        Some(Accepted {
            serial: *serial,
            digest: digest.parse().ok()?,
        })
    }

    /// Returns a volume.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }
}

impl Volume {
    /// Returns the revisions that were placed.
    #[must_use]
    pub fn placed(&self) -> Vec<Placed> {
        let each = self.machines.iter().filter_map(Machine::placed);
        each.collect()
    }

    /// Returns the revisions that links name.
    #[must_use]
    pub fn current(&self) -> Vec<Placed> {
        let current = self.machines.iter().filter(|machine| machine.current);
        current.filter_map(Machine::placed).collect()
    }
}

impl Machine {
    fn placed(&self) -> Option<Placed> {
        Some(Placed {
            kind: self.kind.parse().ok()?,
            name: self.name.parse::<Name>().ok()?,
            revision: self.revision,
            id: self.id.parse::<Digest>().ok()?,
        })
    }
}

/// Reads a state file.
#[must_use]
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    let content = read_bounded(path, LIMIT).ok()?;
    serde_json::from_slice(&content).ok()
}

/// Returns the text of a state file.
#[must_use]
pub fn text<T: Serialize>(state: &T) -> Vec<u8> {
    // The types have no maps with keys that are no strings.
    let mut text = serde_json::to_vec(state).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert_eq!(read::<Volumes>(&path), None);
        let state = Volumes {
            schema: SCHEMA,
            accepted: Some((3, Digest::of(b"").to_string())),
            volumes: vec![Volume {
                name: "default".into(),
                machines: vec![Machine {
                    name: "m".into(),
                    kind: "machine".into(),
                    revision: 2,
                    id: Digest::of(b"m").to_string(),
                    ..Machine::default()
                }],
                ..Volume::default()
            }],
            ..Volumes::default()
        };
        std::fs::write(&path, text(&state)).unwrap();
        let found = read::<Volumes>(&path).unwrap();
        assert_eq!(found, state);
        assert_eq!(found.accepted().unwrap().serial, 3);
        let placed = found.volume("default").unwrap().placed();
        assert_eq!(placed[0].id, Digest::of(b"m"));
    }
}
