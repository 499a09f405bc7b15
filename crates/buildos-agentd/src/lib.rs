//! The agents of a build host: which ones, as what command, when they start,
//! and when they start again.
//!
//! The configuration ([`config`]) names agents ([`agent`]). Each becomes a
//! command ([`command`]) in a drop-in ([`dropin`], [`unit_directory`]) of a
//! systemd unit, so that it is seen, followed and edited with systemd's own
//! tools. A small machine per agent ([`instance`]) decides from what the unit
//! does ([`unit`], [`jobs`], [`systemd`]) and from what the agent needs ([`needs`],
//! [`host`]) whether the unit is to be started; [`daemon`] carries that out,
//! and [`bus`] publishes it.
//!
//! What an agent leaves behind is found ([`leak`]) and removed ([`reap`]) by a
//! helper that systemd runs when the unit ends ([`reaper`]).

use std::process::ExitCode;

pub mod agent;
pub mod allotment;
pub mod bus;
pub mod clock;
pub mod command;
pub mod config;
pub mod controller;
pub mod credential;
pub mod daemon;
pub mod delay;
pub mod drain;
pub mod dropin;
pub mod exit;
pub mod first_starts;
pub mod fleet;
pub mod hardware;
pub mod host;
pub mod inspection;
pub mod instance;
pub mod jobs;
pub mod kind;
pub mod leak;
pub mod memory;
mod messages;
pub mod needs;
pub mod option;
pub mod reap;
pub mod reaper;
pub mod systemd;
pub mod unit;
pub mod unit_directory;
pub mod user;

/// The daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main_with_print(
        env!("CARGO_PKG_VERSION"),
        config::schema(),
        inspection::inspect,
        daemon::run,
    )
}
