//! Waits for changes on the bus, after which the host is read again.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zbus::{Connection, MatchRule, MessageStream, message};

/// Signals of the buildos daemons. A signal only triggers another read.
pub(crate) struct Changes {
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
        let drain = tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = properties.next() => message,
                    message = owners.next() => message,
                };
                if !matches!(message, Some(Ok(_))) {
                    return;
                }
                // A full channel already causes another read.
                let _ = sender.try_send(());
            }
        });
        Ok(Self { events, drain })
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
