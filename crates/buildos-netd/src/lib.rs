//! buildos-netd: finds the uplink of a build host and makes its two bridges.
//!
//! Data flows one way. [`kernel`] observes links; [`candidate`] says which may
//! become the uplink; [`race`] runs a DHCP client (`buildos-dhcp`) on each and
//! decides; [`wish`] says what that means to the kernel; [`plan`] is the difference
//! between wish and kernel; [`kernel`] applies it. [`picture`] is what others
//! get to see, by [`bus`], [`state`], [`views`] and `STATUS=`.

use std::process::ExitCode;

pub mod bus;
pub mod candidate;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod hostname;
pub mod kernel;
pub mod ledger;
pub mod link;
pub mod messages;
pub mod model;
pub mod pattern;
pub mod picture;
pub mod plan;
pub mod private;
pub mod race;
pub mod rival;
pub mod socket;
pub mod state;
pub mod views;
pub mod wait_online;
pub mod wire;
pub mod wish;

/// The daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), config::schema(), daemon::run)
}
