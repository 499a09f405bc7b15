//! buildos-hostnamed: a name for every build host, without anybody giving it
//! one.
//!
//! [`name`] says what a host name is, [`choice`] which one it shall be; both
//! are pure. [`systemd_hostnamed`] is systemd-hostnamed, which sets it.

use std::process::ExitCode;

pub mod choice;
pub mod config;
pub mod daemon;
pub mod dbus;
pub mod systemd_hostnamed;

/// The daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), config::schema(), daemon::run)
}
