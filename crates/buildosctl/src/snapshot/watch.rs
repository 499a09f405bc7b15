//! Waits for changes on the bus, after which the host is read again.

use std::time::Duration;

use buildos_dbus_api::cache::Cache;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zbus::{Connection, MatchRule, MessageStream, message};

/// Signals of the buildos daemons. They keep the cache up to date, and trigger another read.
pub(crate) struct Changes {
    cache: Cache,
    events: mpsc::Receiver<()>,
    /// Empties the signal queues at once: zbus stops reading the connection, replies
    /// included, while a queue is full.
    drain: JoinHandle<()>,
}

impl Changes {
    /// Subscribes to property changes, starts and ends of all buildos daemons.
    pub(crate) async fn new(bus: &Connection) -> zbus::Result<Self> {
        let properties = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .path_namespace("/org/build2/buildos")?
            .interface("org.freedesktop.DBus.Properties")?
            .member("PropertiesChanged")?
            .build();
        let owners = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .sender("org.freedesktop.DBus")?
            .interface("org.freedesktop.DBus")?
            .member("NameOwnerChanged")?
            .arg0ns("org.build2.buildos")?
            .build();
        let mut properties = MessageStream::for_match_rule(properties, bus, None).await?;
        let mut owners = MessageStream::for_match_rule(owners, bus, None).await?;
        let (sender, events) = mpsc::channel(1);
        let cache = Cache::new(bus);
        let signals = cache.clone();
        let drain = tokio::spawn(async move {
            loop {
                tokio::select! {
                    message = properties.next() => match message {
                        Some(Ok(message)) => signals.properties_changed(&message),
                        Some(Err(_)) | None => return,
                    },
                    message = owners.next() => match message {
                        Some(Ok(message)) => signals.owner_changed(&message),
                        Some(Err(_)) | None => return,
                    },
                }
                // A full channel already causes another read.
                let _ = sender.try_send(());
            }
        });
        Ok(Self {
            cache,
            events,
            drain,
        })
    }

    /// Returns the objects that were read.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Waits for a change, at most for `limit`: the clock, the tasks and the counters
    /// change without a signal. Returns false if the connection is lost.
    pub(crate) async fn next(&mut self, limit: Duration) -> bool {
        match timeout(limit, self.events.recv()).await {
            Ok(event) => event.is_some(),
            Err(_elapsed) => true,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.drain.abort();
    }
}
