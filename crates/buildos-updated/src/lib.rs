//! buildos-updated: fetches and places what the channel of a farm says.
//!
//! | file | does |
//! |---|---|
//! | [`update`] | one run: channel, plan, pieces, requests |
//! | [`overview`] | what is wanted and what is there, for each machine; pure |
//! | [`progress`] | connects a run with the event loop |
//! | [`request`] | lets the helper place machines, and waits for it |
//! | [`look`] | finds out whether the server has another channel file |
//! | [`seen`] | remembers the channel file that was fetched last |
//! | [`offer`] | reads a signed channel: signatures, policy, rollout |
//! | [`spool`] | keeps fetched objects, to place them and for other hosts |
//! | [`peers`] | fetches pieces from hosts of the LAN, or from the origin |
//! | [`share`] | which pieces stay for other hosts |
//! | [`choices`] | what an operator pinned, added, removed or holds |
//! | [`retention`] | which machines a volume gets, keeps and loses; pure |
//! | [`layout`], [`pattern`], [`room`] | names, selection and room; pure |
//! | [`ram`] | whether a host has a machine volume in RAM, and of which size |
//! | [`volume`] | the helpers that run as root: mount volumes, place machines |
//! | [`os_handover`] | the helpers that run as root: start a new system, judge it, return |
//! | [`agents`] | fetches agents |
//! | [`agent_place`] | the helper that runs as root: places agents |
//! | [`os`] | updates the operating system |
//! | [`state`] | state files for buildosctl |
//! | [`dbus`] | `org.build2.buildos.update1` |
//! | [`daemon`] | carries out runs and calls, and ends when there is nothing to do |
//!
//! # Limits
//!
//! The daemon has no privileges. It fetches, and writes into its spool and into its
//! directories in `/run` and `/var/lib`. What is placed is verified again by the helper.

use std::process::ExitCode;

pub mod agent_place;
pub mod agents;
pub mod choices;
pub mod daemon;
pub mod dbus;
pub mod durable;
pub mod layout;
pub mod look;
mod messages;
pub mod offer;
pub mod os;
pub mod os_handover;
pub mod overview;
pub mod paths;
pub mod pattern;
pub mod peers;
pub mod programs;
pub mod progress;
pub mod ram;
pub mod request;
pub mod retention;
pub mod room;
pub mod scan;
pub mod seen;
pub mod settings;
pub mod share;
pub mod spool;
pub mod state;
pub mod update;
pub mod volume;

/// Runs the daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), settings::schema(), daemon::run)
}
