//! Writes log events to the journal, and holds back what repeats.
//!
//! [`limit`](super::limit) decides what is held. [`report_held`] writes it later, as the same
//! event with its fields and another message.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tracing::field::{Field, Value, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::limit::{Group, Held, Limiter, Offer};

/// Fields whose value is the object of a [`Group`]. A stranger chooses none of them.
const OBJECTS: [&str; 3] = ["buildos_agent", "buildos_resource", "peer"];

/// The limit of this process.
static LIMIT: OnceLock<Limit> = OnceLock::new();

thread_local! {
    /// Whether this thread writes held messages.
    static REPORTS: Cell<bool> = const { Cell::new(false) };
}

struct Limit {
    limiter: Mutex<Limiter<Record>>,
    held: Notify,
}

impl Limit {
    fn with_limiter<T>(&self, change: impl FnOnce(&mut Limiter<Record>) -> T) -> T {
        // A panic ends the process, so no other thread left a limiter half changed.
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut limiter)
    }
}

/// Returns the layer that writes to the journal.
///
/// # Errors
///
/// There is no journal.
pub(super) fn writer(identifier: &str) -> io::Result<tracing_journald::Layer> {
    // The library maps info to notice and debug to informational by default.
    let priorities = PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        ..PriorityMappings::new()
    };
    Ok(tracing_journald::layer()?
        .with_field_prefix(None)
        .with_syslog_identifier(identifier.to_owned())
        .with_priority_mappings(priorities)
        // Facility 3 is "system daemons" (RFC 5424).
        .with_custom_fields([("SYSLOG_FACILITY", "3")]))
}

/// Passes events to `writer`, but those that the limiter holds back.
pub(super) struct Limited<W> {
    writer: W,
    limit: &'static Limit,
}

impl<W> Limited<W> {
    /// Limits a layer. [`report_held`] has to run.
    pub(super) fn new(writer: W) -> Self {
        let limit = LIMIT.get_or_init(|| Limit {
            limiter: Mutex::new(Limiter::new()),
            held: Notify::new(),
        });
        Self { writer, limit }
    }
}

impl<S, W> Layer<S> for Limited<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Layer<S>,
{
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // Below info, the operator asked for details.
        if REPORTS.get() || *event.metadata().level() > Level::INFO {
            return self.writer.on_event(event, context);
        }
        let record = Record::new(event);
        let (group, text) = (record.group(), record.message().to_owned());
        let now = Instant::now();
        let offer = |all: &mut Limiter<Record>| all.offer(group, &text, record, now);
        match self.limit.with_limiter(offer) {
            Offer::Passed { before } => {
                for held in before {
                    let write = |event: &Event<'_>| self.writer.on_event(event, context.clone());
                    reported(held).with_event(write);
                }
                self.writer.on_event(event, context);
            }
            Offer::Held => self.limit.held.notify_one(),
        }
    }
}

/// Reports held messages when they are due. Never ends.
pub(crate) async fn report_held() {
    let Some(limit) = LIMIT.get() else {
        return std::future::pending().await;
    };
    loop {
        match limit.with_limiter(|limiter| limiter.due()) {
            None => limit.held.notified().await,
            Some(due) => {
                tokio::time::sleep_until(due.into()).await;
                report(limit.with_limiter(|limiter| limiter.take_due(Instant::now())));
            }
        }
    }
}

/// Reports all held messages, before the process ends.
pub(crate) fn flush() {
    if let Some(limit) = LIMIT.get() {
        report(limit.with_limiter(Limiter::take_all));
    }
}

fn report(held: Vec<Held<Record>>) {
    REPORTS.set(true);
    for held in held {
        let dispatch = |event: &Event<'_>| tracing::dispatcher::get_default(|to| to.event(event));
        reported(held).with_event(dispatch);
    }
    REPORTS.set(false);
}

/// Returns the last of the held messages, with their number.
fn reported(held: Held<Record>) -> Record {
    let seconds = held.duration().as_secs();
    let count = held.count;
    let mut record = held.record;
    if let Some(message) = record.value_mut("message").filter(|_| count > 1) {
        // Writing to a string succeeds.
        let _ = write!(
            message,
            " (the last of {count} such messages in {seconds} s)"
        );
    }
    record
}

/// An event that can be written later.
#[derive(Debug)]
struct Record {
    metadata: &'static Metadata<'static>,
    /// The value of each field of `metadata`.
    values: Vec<Option<String>>,
}

impl Record {
    fn new(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut record = Self {
            metadata,
            values: vec![None; metadata.fields().len()],
        };
        event.record(&mut record);
        record
    }

    fn value_mut(&mut self, name: &str) -> Option<&mut String> {
        let index = self.metadata.fields().field(name)?.index();
        self.values.get_mut(index)?.as_mut()
    }

    fn get(&self, name: &str) -> Option<&str> {
        let index = self.metadata.fields().field(name)?.index();
        self.values.get(index)?.as_deref()
    }

    fn message(&self) -> &str {
        self.get("message").unwrap_or_default()
    }

    fn group(&self) -> Group {
        let place = || {
            let line = self.metadata.line().unwrap_or_default();
            format!("{}:{line}", self.metadata.target())
        };
        let object = OBJECTS.iter().find_map(|name| self.get(name));
        Group {
            message: self.get("message_id").map_or_else(place, str::to_owned),
            object: object.unwrap_or_default().to_owned(),
            link: self.get("interface").unwrap_or_default().to_owned(),
        }
    }

    /// Calls `write` with the event.
    fn with_event(&self, write: impl FnOnce(&Event<'_>)) {
        let values = self.values.iter();
        let values: Vec<Option<&dyn Value>> = values
            .map(|value| value.as_ref().map(|value| value as &dyn Value))
            .collect();
        let values = self.metadata.fields().value_set_all(&values);
        write(&Event::new(self.metadata, &values));
    }

    fn put(&mut self, field: &Field, value: String) {
        if let Some(place) = self.values.get_mut(field.index()) {
            *place = Some(value);
        }
    }
}

impl Visit for Record {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt as _;

    /// Keeps the records of events.
    #[derive(Clone, Default)]
    struct Records(Arc<Mutex<Vec<Record>>>);

    impl<S: Subscriber> Layer<S> for Records {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(Record::new(event));
        }
    }

    fn records(log: impl FnOnce()) -> Vec<Record> {
        let records = Records::default();
        let subscriber = tracing_subscriber::registry().with(records.clone());
        tracing::subscriber::with_default(subscriber, log);
        std::mem::take(&mut *records.0.lock().unwrap())
    }

    fn log_carrier(pid: u32) {
        let address = std::net::Ipv4Addr::LOCALHOST;
        tracing::warn!(
            message_id = "abc",
            interface = "eth0",
            buildos_address = %address,
            buildos_pid = pid,
            buildos_peer = Option::<&str>::None,
            "eth0: carrier"
        );
    }

    #[test]
    fn record_is_written_later_with_its_fields() {
        let first = records(|| log_carrier(7)).pop().unwrap();
        let again = records(|| {
            first.with_event(|event| tracing::dispatcher::get_default(|to| to.event(event)));
        });
        let again = again.first().unwrap();
        assert_eq!(again.metadata.callsite(), first.metadata.callsite());
        assert_eq!(again.values, first.values);
        assert_eq!(again.message(), "eth0: carrier");
        assert_eq!(again.get("buildos_address"), Some("127.0.0.1"));
        assert_eq!(again.get("buildos_pid"), Some("7"));
        assert_eq!(again.get("buildos_peer"), None);
        let expected = Group {
            message: "abc".to_owned(),
            object: String::new(),
            link: "eth0".to_owned(),
        };
        assert_eq!(again.group(), expected);
    }

    #[test]
    fn message_without_id_is_grouped_by_its_place() {
        let logged = records(|| {
            for agent in ["bbot@a", "bbot@a", "bbot@b"] {
                tracing::info!(buildos_agent = agent, "drained");
            }
            tracing::info!("drained");
        });
        let groups: Vec<_> = logged.iter().map(Record::group).collect();
        assert_eq!(groups[0], groups[1]);
        assert_ne!(groups[0], groups[2]);
        assert_ne!(groups[2].message, groups[3].message);
    }

    #[test]
    fn held_messages_are_written_before_the_next_one() {
        let written = Records::default();
        let subscriber = tracing_subscriber::registry().with(Limited::new(written.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for pid in 1..5 {
                log_carrier(pid);
            }
            tracing::info!(message_id = "def", "other");
        });
        let written: Vec<_> = written.0.lock().unwrap().drain(..).collect();
        let messages: Vec<_> = written.iter().map(Record::message).collect();
        let report = "eth0: carrier (the last of 3 such messages in 0 s)";
        assert_eq!(messages, ["eth0: carrier", report, "other"]);
        assert_eq!(written[1].get("buildos_pid"), Some("4"));
    }
}
