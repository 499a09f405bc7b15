//! buildos-hostnamed: chooses and sets the host name.
//!
//! | file | does |
//! |---|---|
//! | [`choice`] | chooses the name; pure |
//! | [`systemd_hostnamed`] | reads and sets the name through systemd-hostnamed |
//! | [`daemon`] | runs both on each change of the lease, the names or the configuration |
//! | [`dbus`] | publishes the result |

use std::process::ExitCode;

pub mod choice;
pub mod daemon;
pub mod dbus;
pub mod settings;
pub mod systemd_hostnamed;

/// Runs the daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), settings::schema(), daemon::run)
}
