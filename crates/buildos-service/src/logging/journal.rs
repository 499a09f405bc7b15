//! Writes log events to the journal, in its native protocol (systemd's
//! `docs/JOURNAL_NATIVE_PROTOCOL.md`).
//!
//! [`limit`](super::limit) holds back what repeats. [`report_held`] writes it later.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::limit::{Group, Held, Limiter, Offer};

const SOCKET: &str = "/run/systemd/journal/socket";
/// Facility 3 is "system daemons" (RFC 5424).
const FACILITY: &str = "3";
/// Fields whose value is the object of a [`Group`]. A stranger chooses none of them.
const OBJECTS: [&str; 3] = ["buildos_agent", "buildos_resource", "peer"];

/// The limited journal of this process.
static LIMITED: OnceLock<Limited> = OnceLock::new();

struct Limited {
    socket: UnixDatagram,
    limiter: Mutex<Limiter<Record>>,
    held: Notify,
}

impl Limited {
    fn with_limiter<T>(&self, change: impl FnOnce(&mut Limiter<Record>) -> T) -> T {
        // A panic ends the process, so no other thread left a limiter half changed.
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut limiter)
    }

    fn report(&self, held: Vec<Held<Record>>) {
        for held in held {
            send(&self.socket, &reported(held));
        }
    }
}

/// Sends events to the journal.
pub(super) struct Journal {
    identifier: String,
    output: Output,
}

enum Output {
    Direct(UnixDatagram),
    Limited(&'static Limited),
}

impl Journal {
    /// Opens the journal. If `limited`, [`report_held`] has to run.
    ///
    /// # Errors
    ///
    /// The process cannot have a socket.
    pub(super) fn open(identifier: &str, limited: bool) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        let output = match limited {
            false => Output::Direct(socket),
            true => Output::Limited(LIMITED.get_or_init(|| Limited {
                socket,
                limiter: Mutex::new(Limiter::new()),
                held: Notify::new(),
            })),
        };
        Ok(Self {
            identifier: identifier.to_owned(),
            output,
        })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let record = Record::new(event, &self.identifier);
        match &self.output {
            Output::Direct(socket) => send(socket, &record),
            // The operator asked for details.
            Output::Limited(limited) if *event.metadata().level() > Level::INFO => {
                send(&limited.socket, &record);
            }
            Output::Limited(limited) => {
                let (group, text) = (record.group(event.metadata()), record.message.clone());
                let offer =
                    limited.with_limiter(|all| all.offer(group, &text, record, Instant::now()));
                match offer {
                    Offer::Passed { before, record } => {
                        limited.report(before);
                        send(&limited.socket, &record);
                    }
                    Offer::Held => limited.held.notify_one(),
                }
            }
        }
    }
}

/// Reports held messages when they are due. Never ends.
pub(crate) async fn report_held() {
    let Some(limited) = LIMITED.get() else {
        return std::future::pending().await;
    };
    loop {
        match limited.with_limiter(|limiter| limiter.due()) {
            None => limited.held.notified().await,
            Some(due) => {
                tokio::time::sleep_until(due.into()).await;
                let held = limited.with_limiter(|limiter| limiter.take_due(Instant::now()));
                limited.report(held);
            }
        }
    }
}

/// Reports all held messages, before the process ends.
pub(crate) fn flush() {
    if let Some(limited) = LIMITED.get() {
        let held = limited.with_limiter(Limiter::take_all);
        limited.report(held);
    }
}

/// An event with its fields.
#[derive(Debug, Default)]
struct Record {
    message: String,
    /// Names and values besides the message.
    fields: Vec<(String, String)>,
}

impl Record {
    fn new(event: &Event<'_>, identifier: &str) -> Self {
        let mut record = Self::default();
        let metadata = event.metadata();
        record.add("PRIORITY", priority(*metadata.level()));
        record.add("SYSLOG_FACILITY", FACILITY);
        record.add("SYSLOG_IDENTIFIER", identifier);
        record.add("TARGET", metadata.target());
        record.add("CODE_FILE", metadata.file().unwrap_or_default());
        record.add("CODE_LINE", &line(metadata));
        event.record(&mut record);
        record
    }

    fn add(&mut self, name: &str, value: &str) {
        self.fields.push((name.to_owned(), value.to_owned()));
    }

    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name.to_ascii_uppercase(), value)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let found = fields.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn group(&self, metadata: &Metadata<'_>) -> Group {
        let place = || format!("{}:{}", metadata.target(), line(metadata));
        let object = OBJECTS.iter().find_map(|name| self.get(name));
        Group {
            message: self.get("MESSAGE_ID").map_or_else(place, str::to_owned),
            object: object.unwrap_or_default().to_owned(),
            link: self.get("INTERFACE").unwrap_or_default().to_owned(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let message = ("MESSAGE", self.message.as_str());
        let fields = self.fields.iter().map(|(name, value)| (&**name, &**value));
        for (name, value) in [message].into_iter().chain(fields) {
            bytes.extend_from_slice(name.as_bytes());
            if value.contains('\n') {
                bytes.push(b'\n');
                bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
            } else {
                bytes.push(b'=');
            }
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(b'\n');
        }
        bytes
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

fn line(metadata: &Metadata<'_>) -> String {
    metadata.line().unwrap_or_default().to_string()
}

/// Returns the priority of syslog(3): transitions are informational.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// Returns the last of the held messages, with their number.
fn reported(held: Held<Record>) -> Record {
    let seconds = held.duration().as_secs();
    let mut record = held.record;
    if held.count > 1 {
        let count = held.count;
        // Writing to a string succeeds.
        let _ = write!(
            record.message,
            " (the last of {count} such messages in {seconds} s)"
        );
    }
    record
}

/// Sends a record. There is no other place to which an error could go.
fn send(socket: &UnixDatagram, record: &Record) {
    let _ = socket.send_to(&record.encode(), SOCKET);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt as _;

    /// Keeps the records of events.
    #[derive(Clone, Default)]
    struct Records(Arc<Mutex<Vec<(Record, Group)>>>);

    impl<S: Subscriber> Layer<S> for Records {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let record = Record::new(event, "buildos-test");
            let group = record.group(event.metadata());
            self.0.lock().unwrap().push((record, group));
        }
    }

    fn records(log: impl FnOnce()) -> Vec<(Record, Group)> {
        let records = Records::default();
        let subscriber = tracing_subscriber::registry().with(records.clone());
        tracing::subscriber::with_default(subscriber, log);
        std::mem::take(&mut *records.0.lock().unwrap())
    }

    #[test]
    fn event_is_encoded_with_its_fields() {
        let address = std::net::Ipv4Addr::LOCALHOST;
        let logged = records(|| {
            tracing::warn!(
                message_id = "abc",
                interface = "eth0",
                buildos_address = %address,
                buildos_pid = 7,
                "two\nlines"
            );
        });
        let (record, group) = logged.first().unwrap();
        let text = String::from_utf8_lossy(&record.encode()).into_owned();
        let lines: Vec<_> = text.split('\n').collect();
        assert_eq!(lines[0], "MESSAGE");
        assert_eq!(lines[1], "\u{9}\0\0\0\0\0\0\0two");
        assert_eq!(lines[2], "lines");
        for field in [
            "PRIORITY=4",
            "SYSLOG_FACILITY=3",
            "SYSLOG_IDENTIFIER=buildos-test",
            "MESSAGE_ID=abc",
            "INTERFACE=eth0",
            "BUILDOS_ADDRESS=127.0.0.1",
            "BUILDOS_PID=7",
        ] {
            assert!(lines.contains(&field), "{text}");
        }
        assert!(text.ends_with('\n'));
        let expected = Group {
            message: "abc".to_owned(),
            object: String::new(),
            link: "eth0".to_owned(),
        };
        assert_eq!(*group, expected);
    }

    #[test]
    fn message_without_id_is_grouped_by_its_place() {
        let logged = records(|| {
            for agent in ["bbot@a", "bbot@a", "bbot@b"] {
                tracing::info!(buildos_agent = agent, "drained");
            }
            tracing::info!("drained");
        });
        let groups: Vec<_> = logged.iter().map(|(_, group)| group).collect();
        assert_eq!(groups[0], groups[1]);
        assert_ne!(groups[0], groups[2]);
        assert_ne!(groups[2].message, groups[3].message);
    }

    #[test]
    fn report_has_number_of_held_messages() {
        let mut limiter = Limiter::new();
        let now = Instant::now();
        for _ in 0..4 {
            let record = Record {
                message: "eth0: carrier".to_owned(),
                fields: Vec::new(),
            };
            limiter.offer(Group::default(), "eth0: carrier", record, now);
        }
        let held = limiter.take_all().pop().unwrap();
        assert_eq!(
            reported(held).message,
            "eth0: carrier (the last of 3 such messages in 0 s)"
        );
    }
}
