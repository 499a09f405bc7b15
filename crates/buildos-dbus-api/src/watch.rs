//! Follows the properties of another daemon across its restarts.
//!
//! A [`Watch`] reads all properties of one object in one call. It reads them again after
//! each `PropertiesChanged` that names one of its properties, and each change of the bus
//! name's owner. A peer that is not
//! on the bus is a normal state, [`None`]; reading never starts it.

use std::collections::HashMap;
use std::io;

use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zbus::names::OwnedBusName;
use zbus::proxy::MethodFlags;
use zbus::zvariant::{OwnedObjectPath, Type, Value};
use zbus::{Connection, MatchRule, MessageStream, Proxy, message};

use crate::PEER_TIMEOUT;
use crate::fields::fields;

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Errors for a bus name without owner, if the call does not start one.
const NO_OWNER: [&str; 2] = [
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.ServiceUnknown",
];
/// Length of signal queues. [`drain`] empties them at once. zbus allocates 72 bytes for
/// each place in advance; its default is 64 places.
const QUEUE: usize = 4;

/// The properties of one interface, as a value.
pub trait Snapshot: DeserializeOwned + Type + Clone + PartialEq + std::fmt::Debug {
    /// Name of the interface.
    const INTERFACE: &'static str;
}

/// The connection to the bus is gone. A daemon ends with this error, and systemd
/// restarts it.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the system bus was lost")]
pub struct BusLost;

/// Follows one object of one peer.
#[derive(Debug)]
pub struct Watch<S> {
    connection: Connection,
    peer: OwnedBusName,
    path: OwnedObjectPath,
    /// Requests to read again; closed when the bus is gone. One place, as requests
    /// coalesce.
    events: mpsc::Receiver<()>,
    /// Empties the signal queues at once. While one is full, zbus reads nothing from the
    /// connection, not even replies.
    drain: JoinHandle<()>,
    reading: Reading,
    /// Last result of [`Watch::next`].
    last: Option<Option<S>>,
}

/// Validity of the last reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// There is no reading, or a signal arrived after it.
    Stale,
    /// No signal arrived after the reading.
    Fresh,
    /// The peer did not answer: read again after the next signal, or after
    /// [`PEER_TIMEOUT`].
    Failed,
}

impl<S: Snapshot> Watch<S> {
    /// Subscribes to object `path` of the peer with the bus name `peer`.
    ///
    /// # Errors
    ///
    /// The bus refuses the match rules, or the name or the path is invalid.
    pub async fn new(connection: &Connection, peer: &str, path: &str) -> zbus::Result<Self> {
        // The builder reserves 2 KB for 64 arguments. A copy of the rule is no larger
        // than necessary.
        let owner = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .sender("org.freedesktop.DBus")?
            .interface("org.freedesktop.DBus")?
            .member("NameOwnerChanged")?
            .add_arg(peer)?
            .build()
            .to_owned();
        let owner = MessageStream::for_match_rule(owner, connection, Some(QUEUE)).await?;
        let properties = property_changes::<S>(connection, peer, path, QUEUE).await?;
        let (sender, events) = mpsc::channel(1);
        Ok(Self {
            connection: connection.clone(),
            peer: peer.try_into()?,
            path: path.try_into()?,
            events,
            drain: tokio::spawn(drain(owner, properties, fields::<S>(), sender)),
            reading: Reading::Stale,
            last: None,
        })
    }

    /// The first call returns the current snapshot. Each later call waits for a different
    /// snapshot. [`None`] means that the peer is not on the bus, or does not answer.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`BusLost`].
    pub async fn next(&mut self) -> Result<Option<S>, BusLost> {
        loop {
            self.wait().await?;
            let snapshot = self.read().await;
            self.reading = match snapshot {
                Ok(_) => Reading::Fresh,
                Err(_) => Reading::Failed,
            };
            let snapshot = snapshot.unwrap_or_else(|error| {
                if self.last != Some(None) {
                    tracing::warn!(%error, peer = %self.peer, "cannot read a peer's properties");
                }
                None
            });
            if self.last.as_ref() != Some(&snapshot) {
                self.last = Some(snapshot.clone());
                return Ok(snapshot);
            }
        }
    }

    /// Waits for a reason to read.
    async fn wait(&mut self) -> Result<(), BusLost> {
        match self.reading {
            Reading::Stale => return Ok(()),
            Reading::Fresh => self.events.recv().await.ok_or(BusLost)?,
            Reading::Failed => match timeout(PEER_TIMEOUT, self.events.recv()).await {
                Ok(event) => event.ok_or(BusLost)?,
                Err(_elapsed) => {}
            },
        }
        self.reading = Reading::Stale;
        Ok(())
    }

    async fn read(&self) -> zbus::Result<Option<S>> {
        read(&self.connection, &self.peer, &self.path).await
    }
}

/// Returns the stream of `PropertiesChanged` signals of one object, for callers that need
/// each signal. While `queue` signals wait, zbus reads nothing else from the connection.
///
/// # Errors
///
/// The bus refuses the match rule, or the name or the path is invalid.
pub async fn property_changes<S: Snapshot>(
    connection: &Connection,
    peer: &str,
    path: &str,
    queue: usize,
) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder()
        .msg_type(message::Type::Signal)
        .sender(peer)?
        .path(path)?
        .interface(PROPERTIES)?
        .member("PropertiesChanged")?
        .add_arg(S::INTERFACE)?
        .build()
        .to_owned();
    MessageStream::for_match_rule(rule, connection, Some(queue)).await
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
    answer.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
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

impl<S> Drop for Watch<S> {
    fn drop(&mut self) {
        self.drain.abort();
    }
}

/// Requests a reading after each change of the owner, and each change of these properties.
async fn drain(
    mut owner: MessageStream,
    mut properties: MessageStream,
    names: &'static [&'static str],
    sender: mpsc::Sender<()>,
) {
    loop {
        let (message, is_relevant): (_, fn(&_, &_) -> _) = tokio::select! {
            message = owner.next() => (message, |_, _| true),
            message = properties.next() => (message, names_property),
        };
        match message {
            Some(Ok(message)) => {
                if is_relevant(&message, names) {
                    // Full: a reading is due. Closed: this task is about to be aborted.
                    let _ = sender.try_send(());
                }
            }
            Some(Err(_)) | None => return,
        }
    }
}

/// Returns true if `PropertiesChanged` names one of these properties, or is malformed.
fn names_property(signal: &message::Message, names: &[&str]) -> bool {
    let body = signal.body();
    let changes = body.deserialize::<(&str, HashMap<&str, Value<'_>>, Vec<&str>)>();
    changes.map_or(true, |(_, changed, invalidated)| {
        let mut named = changed.into_keys().chain(invalidated);
        named.any(|name| names.contains(&name))
    })
}
