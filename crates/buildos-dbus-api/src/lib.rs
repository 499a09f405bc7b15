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
pub mod update1;
pub mod watch;

pub use string_enum::UnknownString;
pub use update::{update, update_shared};

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UnixStream;
use zbus::Address;
use zbus::Connection;
use zbus::address::transport::{Transport, UnixSocket};
use zbus::connection::Builder;
use zbus::fdo::{RequestNameFlags, RequestNameReply};

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
pub async fn system_bus() -> zbus::Result<Connection> {
    let address = Address::system()?;
    let builder = match socket_path(&address) {
        // zbus would start a thread for it, whose stack and heap remain in RAM.
        Some(path) => Builder::unix_stream(UnixStream::connect(path).await?),
        None => Builder::address(address)?,
    };
    builder.method_timeout(METHOD_TIMEOUT).build().await
}

/// Requests a bus name for the connection.
///
/// zbus's own request also follows the signals of the name, whose rules and queues remain in
/// RAM. Use that for a name that is released again: zbus releases only names that it requested.
///
/// # Errors
///
/// Another connection has the name, the bus refuses it, or the bus is gone.
pub async fn request_name(connection: &Connection, name: &str) -> zbus::Result<()> {
    let flags = RequestNameFlags::ReplaceExisting | RequestNameFlags::DoNotQueue;
    let bus = "org.freedesktop.DBus";
    let reply = connection
        .call_method(
            Some(bus),
            "/org/freedesktop/DBus",
            Some(bus),
            "RequestName",
            &(name, flags),
        )
        .await?;
    match reply.body().deserialize()? {
        RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner => Ok(()),
        RequestNameReply::InQueue | RequestNameReply::Exists => Err(zbus::Error::NameTaken),
    }
}

/// Returns the path of the bus's socket, if its address has one.
fn socket_path(address: &Address) -> Option<PathBuf> {
    let Transport::Unix(socket) = address.transport() else {
        return None;
    };
    let UnixSocket::File(path) = socket.path() else {
        return None;
    };
    Some(path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn path_of_the_bus_is_that_of_its_address() {
        for (address, path) in [
            (
                "unix:path=/run/dbus/system_bus_socket",
                Some("/run/dbus/system_bus_socket"),
            ),
            ("unix:abstract=bus", None),
            ("tcp:host=localhost,port=1", None),
        ] {
            let address = Address::try_from(address).unwrap();
            assert_eq!(socket_path(&address).as_deref(), path.map(Path::new));
        }
    }
}
