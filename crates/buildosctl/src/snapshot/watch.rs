//! When to look again.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zbus::{Connection, MatchRule, MessageStream, message};

/// What happened on the bus since the last look: only that something did.
pub(crate) struct Changes {
    events: mpsc::Receiver<()>,
    /// Empties the signal queues at once: zbus stops reading the connection, and
    /// with it every reply, while one of them is full.
    drain: JoinHandle<()>,
}

impl Changes {
    /// Listens to all daemons of ours.
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
                // Full: a look is due anyway.
                let _ = sender.try_send(());
            }
        });
        Ok(Self { events, drain })
    }

    /// Waits for a change, or that long: not everything that is shown is signalled
    /// (clock, tasks, counters). False when the bus is gone.
    pub(crate) async fn next(&mut self, at_most: Duration) -> bool {
        match timeout(at_most, self.events.recv()).await {
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
