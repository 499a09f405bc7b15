//! The D-Bus interfaces of buildos as their clients see them.
//!
//! Each daemon owns one bus name, serves one `Manager` object, and a child
//! object per link or agent where there are several. State is properties with
//! `PropertiesChanged`; methods are few. This crate holds the names, the paths,
//! the words that properties may contain, and the zbus proxies; the serving
//! side is `bus.rs` of each daemon. A daemon follows another one with a
//! [`watch::Watch`]. The XML of record is in `docs/dbus/`.

pub mod agent1;
pub mod hostname1;
pub mod nat1;
pub mod network1;
mod path;
mod string_enum;
pub mod system;
mod update;
pub mod watch;

pub use string_enum::UnknownString;
pub use update::update;

use std::time::Duration;

/// How long a peer of ours may take to tell its properties, which it has in memory;
/// one that takes longer is hung or gone.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long any method call may take before it is given up. systemd answers nobody
/// while it reads its units again, 10 s on a machine that is busy building. Less
/// than half of the services' `WatchdogSec=`, so that one call is not taken for a
/// hang.
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
