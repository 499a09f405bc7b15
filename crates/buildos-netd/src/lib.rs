//! buildos-netd: finds the uplink of a build host and makes its two bridges.
//!
//! Data flows one way. [`kernel`] observes links; [`uplink::candidate`] says which may
//! become the uplink; [`uplink::election`] runs a DHCP client (`buildos-dhcp`) on each and
//! decides; [`desired`] says what that means to the kernel; [`plan`] is the difference
//! between wish and kernel; [`kernel`] applies it. [`status`] is what others
//! get to see, by [`dbus`], [`state_file`], [`exports`] and `STATUS=`.

use std::process::ExitCode;

pub mod clock;
pub mod config;
pub mod daemon;
pub mod dbus;
pub mod desired;
pub mod exports;
pub mod history;
pub mod hostname;
pub mod kernel;
pub mod mac;
pub mod messages;
pub mod observed;
pub mod other_manager;
pub mod pattern;
pub mod plan;
pub mod private;
pub mod sockets;
pub mod state_file;
pub mod status;
pub mod uplink;
pub mod wait_online;

/// The daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), config::schema(), daemon::run)
}
