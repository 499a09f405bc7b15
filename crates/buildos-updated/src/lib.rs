//! buildos-updated: fetches and places what the channel of a farm says.
//!
//! | file | does |
//! |---|---|
//! | [`update`] | one run: channel, plan, pieces, requests |
//! | [`request`] | lets the helper place machines, and waits for it |
//! | [`offer`] | reads a signed channel: signatures, policy, rollout |
//! | [`spool`] | keeps fetched objects until they are placed |
//! | [`retention`] | which machines a volume gets, keeps and loses; pure |
//! | [`layout`], [`pattern`], [`room`] | names, selection and room; pure |
//! | [`volume`] | the helpers that run as root: mount volumes, place machines |
//! | [`state`] | state files for buildosctl |
//! | [`daemon`] | runs [`update`] once |
//!
//! # Limits
//!
//! The daemon has no privileges. It fetches, and writes into its spool and `/run`. What is
//! placed is verified again by the helper.

use std::process::ExitCode;

pub mod daemon;
pub mod durable;
pub mod layout;
mod messages;
pub mod offer;
pub mod paths;
pub mod pattern;
pub mod programs;
pub mod request;
pub mod retention;
pub mod room;
pub mod scan;
pub mod settings;
pub mod spool;
pub mod state;
pub mod update;
pub mod volume;

/// Runs the daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), settings::schema(), daemon::run)
}
