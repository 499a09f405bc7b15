//! Declares the D-Bus interfaces of buildos: names, paths, string values and zbus
//! proxies.
//!
//! Each daemon owns one bus name and serves one `Manager` object, and a child object per
//! link or agent. State is properties, changes are `PropertiesChanged` signals.
//!
//! | side | does it with |
//! |---|---|
//! | server: `dbus.rs` of each daemon | [`update`]: changes properties, signals the difference |
//! | client | [`watch::Watch`]: follows a peer across its restarts |
//! | client of many objects | [`cache::Cache`]: reads each once |
//!
//! `docs/dbus/` has the XML of record.

pub mod agent1;
pub mod cache;
mod fields;
pub mod hostname1;
pub mod nat1;
pub mod network1;
mod path;
mod snapshot;
mod string_enum;
pub mod system;
mod update;
pub mod watch;

pub use string_enum::UnknownString;
pub use update::update;

use std::time::Duration;

/// Time limit for a buildos daemon to return its properties. It has them in memory, so
/// a slower one hangs.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for every method call. During a daemon-reload systemd does not answer,
/// for up to 10 s on a machine that is busy building. The limit is less than half of the
/// services' `WatchdogSec=`, so that one slow call does not trigger the watchdog.
pub const METHOD_TIMEOUT: Duration = Duration::from_secs(14);

/// Connects to the system bus with [`METHOD_TIMEOUT`].
///
/// # Errors
///
/// The bus cannot be reached or refuses the connection.
pub async fn system_bus() -> zbus::Result<zbus::Connection> {
    zbus::connection::Builder::system()?
        .method_timeout(METHOD_TIMEOUT)
        .build()
        .await
}
