//! Following another daemon over its restarts.
//!
//! A [`Watch`] reads all properties of one object at once, and again whenever
//! the object says that something changed or its daemon comes or goes: a
//! signal only means "look again". A peer that is not on the bus is a normal
//! state, [`None`], and is never started by looking at it.

use std::io;

use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zbus::names::OwnedBusName;
use zbus::proxy::MethodFlags;
use zbus::zvariant::{OwnedObjectPath, Type};
use zbus::{Connection, MatchRule, MessageStream, Proxy, message};

use crate::PEER_TIMEOUT;

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Errors of a bus that is not to start a service and has nobody with its name.
const NOBODY: [&str; 2] = [
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.ServiceUnknown",
];
/// Signals that wait to be taken, which happens at once. zbus makes room for as many
/// when it begins, 72 bytes for each; its own default is 64.
const QUEUE: usize = 4;

/// The properties of one interface, as a value.
pub trait Snapshot: DeserializeOwned + Type + Clone + PartialEq + std::fmt::Debug {
    /// Name of the interface.
    const INTERFACE: &'static str;
}

/// The connection to the bus is gone. systemd restarts whoever ends with this.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the system bus was lost")]
pub struct BusLost;

/// One object of one peer, followed.
#[derive(Debug)]
pub struct Watch<S> {
    connection: Connection,
    peer: OwnedBusName,
    path: OwnedObjectPath,
    /// Something happened; closed when the bus is gone. Holds one: events add up.
    events: mpsc::Receiver<()>,
    /// Empties the signal queues at once: zbus stops reading the connection,
    /// and with it every reply, while one of them is full.
    drain: JoinHandle<()>,
    reading: Reading,
    /// What [`Watch::next`] returned last.
    last: Option<Option<S>>,
}

/// What the last reading is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Something happened since, or there was none.
    Stale,
    /// Nothing happened since.
    Fresh,
    /// There was no answer: look again at the next event, or after a while.
    Failed,
}

impl<S: Snapshot> Watch<S> {
    /// Starts to follow object `path` of the peer with the bus name `peer`.
    ///
    /// # Errors
    ///
    /// The bus refuses the match rules, or name or path are not valid.
    pub async fn new(connection: &Connection, peer: &str, path: &str) -> zbus::Result<Self> {
        // A copy of a rule takes what it needs; the builder's own has room for the 64
        // arguments that a rule may have, 2 KB, as long as it is followed.
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
            drain: tokio::spawn(drain(owner, properties, sender)),
            reading: Reading::Stale,
            last: None,
        })
    }

    /// The current snapshot when called first, then the next one that differs
    /// from the one before; [`None`] while the peer is away. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`BusLost`]; what the peer does is never an error.
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

    /// Until there is a reason to look.
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
        look(&self.connection, &self.peer, &self.path).await
    }
}

/// The `PropertiesChanged` signals of one object, for who needs each of them. `queue`
/// of them may wait to be taken; while it is full nothing else is read from the bus.
///
/// # Errors
///
/// The bus refuses the match rule, or name or path are not valid.
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

/// Reads the properties of one object once: [`None`] when nobody owns the name
/// `peer`, which is never started by this.
///
/// # Errors
///
/// The owner went away meanwhile, hangs, speaks another version, or name or path
/// are not valid.
pub async fn look<S: Snapshot>(
    connection: &Connection,
    peer: &str,
    path: &str,
) -> zbus::Result<Option<S>> {
    let answer = timeout(PEER_TIMEOUT, ask(connection, peer, path)).await;
    answer.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

async fn ask<S: Snapshot>(
    connection: &Connection,
    peer: &str,
    path: &str,
) -> zbus::Result<Option<S>> {
    let proxy = Proxy::new(connection, peer, path, PROPERTIES).await?;
    let flags = MethodFlags::NoAutoStart.into();
    match proxy.call_with_flags("GetAll", flags, &S::INTERFACE).await {
        Err(zbus::Error::MethodError(name, ..)) if NOBODY.contains(&name.as_str()) => Ok(None),
        answer => answer,
    }
}

impl<S> Drop for Watch<S> {
    fn drop(&mut self) {
        self.drain.abort();
    }
}

async fn drain(mut owner: MessageStream, mut properties: MessageStream, sender: mpsc::Sender<()>) {
    loop {
        let message = tokio::select! {
            message = owner.next() => message,
            message = properties.next() => message,
        };
        match message {
            Some(Ok(_)) => {
                // Full: a look is due anyway. Closed: this task is about to be aborted.
                let _ = sender.try_send(());
            }
            Some(Err(_)) | None => return,
        }
    }
}
