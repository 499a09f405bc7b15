//! Reads the properties of a peer as a value.

use std::io;

use serde::de::DeserializeOwned;
use tokio::time::timeout;
use zbus::proxy::MethodFlags;
use zbus::zvariant::Type;
use zbus::{Connection, Proxy};

use crate::PEER_TIMEOUT;

pub(crate) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Errors for a bus name without owner, if the call does not start one.
pub(crate) const NO_OWNER: [&str; 2] = [
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.ServiceUnknown",
];

/// The properties of one interface, as a value.
pub trait Snapshot: DeserializeOwned + Type + Clone + PartialEq + std::fmt::Debug {
    /// Name of the interface.
    const INTERFACE: &'static str;
    /// True if the object exists as long as its peer is on the bus, and each change is
    /// signalled with the new value. A [`crate::cache::Cache`] then reads it once. Otherwise each signal
    /// causes a call.
    const CACHED: bool = false;
}

/// Reads the properties of one object. Returns [`None`] if the name `peer` has no owner.
/// Never starts the peer.
///
/// # Errors
///
/// The peer left the bus meanwhile, hangs or has a different version; or the name or the
/// path is invalid.
pub async fn read<S: Snapshot>(
    connection: &Connection,
    peer: &str,
    path: &str,
) -> zbus::Result<Option<S>> {
    let answer = timeout(PEER_TIMEOUT, get_all(connection, peer, path)).await;
    answer.unwrap_or_else(|_elapsed| Err(timed_out()))
}

pub(crate) fn timed_out() -> zbus::Error {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

async fn get_all<S: Snapshot>(
    connection: &Connection,
    peer: &str,
    path: &str,
) -> zbus::Result<Option<S>> {
    let proxy = Proxy::new(connection, peer, path, PROPERTIES).await?;
    let flags = MethodFlags::NoAutoStart.into();
    match proxy.call_with_flags("GetAll", flags, &S::INTERFACE).await {
        Err(zbus::Error::MethodError(name, ..)) if NO_OWNER.contains(&name.as_str()) => Ok(None),
        answer => answer,
    }
}
