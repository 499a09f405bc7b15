//! Follows the properties of another daemon across its restarts.
//!
//! A [`Watch`] reads all properties of one object in one call, once for each owner of the bus
//! name. Later values come with `PropertiesChanged`; see [`Snapshot::CACHED`]. A peer that is
//! not on the bus is a normal state, [`None`]; reading never starts it.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zbus::names::OwnedBusName;
use zbus::zvariant::{OwnedObjectPath, Value};
use zbus::{Connection, MatchRule, MessageStream, message};

use crate::PEER_TIMEOUT;
use crate::cache::Cache;
use crate::fields::fields;
use crate::snapshot::PROPERTIES;
pub use crate::snapshot::{Snapshot, read};

/// Length of signal queues. [`drain`] empties them at once. zbus allocates 72 bytes for
/// each place in advance; its default is 64 places.
const QUEUE: usize = 4;

/// The connection to the bus is gone. A daemon ends with this error, and systemd
/// restarts it.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the system bus was lost")]
pub struct BusLost;

/// Follows one object of one peer.
#[derive(Debug)]
pub struct Watch<S> {
    cache: Cache,
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
        let cache = Cache::new(connection);
        let signals = Signals {
            owner,
            properties,
            names: fields::<S>(),
            cache: cache.clone(),
        };
        Ok(Self {
            cache,
            peer: peer.try_into()?,
            path: path.try_into()?,
            events,
            drain: tokio::spawn(drain(signals, sender)),
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
        self.cache.read(&self.peer, &self.path).await
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

impl<S> Drop for Watch<S> {
    fn drop(&mut self) {
        self.drain.abort();
    }
}

/// The signals of a peer.
struct Signals {
    owner: MessageStream,
    properties: MessageStream,
    /// Properties that cause a reading.
    names: &'static [&'static str],
    cache: Cache,
}

/// Passes the signals to the cache. Requests a reading after each change of the owner, and
/// each change of these properties.
async fn drain(mut signals: Signals, sender: mpsc::Sender<()>) {
    loop {
        let is_relevant = tokio::select! {
            message = signals.owner.next() => {
                let Some(Ok(message)) = message else { return };
                signals.cache.owner_changed(&message);
                true
            }
            message = signals.properties.next() => {
                let Some(Ok(message)) = message else { return };
                signals.cache.properties_changed(&message);
                names_property(&message, signals.names)
            }
        };
        if is_relevant {
            // Full: a reading is due. Closed: this task is about to be aborted.
            let _ = sender.try_send(());
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
