//! Serves `org.build2.buildos.update1` on the system bus.
//!
//! A method waits for the event loop, and zbus holds a lock on the interface meanwhile. Publishing
//! must not need this lock, so the event loop shares the state with the interface.

use std::time::Duration;

use buildos_dbus_api::update1::{Cause, Machine, MachineEntry, NAME, PATH};
use buildos_dbus_api::{system_bus, update_shared};
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, fdo, interface};

use crate::choices::change::Change;
use crate::state::Updated;

/// Calls that wait for the event loop.
const CALLS: usize = 16;
/// Time limit of each exchange with the bus. A run does not need it.
const LIMIT: Duration = Duration::from_secs(10);

/// Request of a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A run.
    Run,
    /// A run that takes the operating system of the channel now.
    Now,
    /// A change of the choices, then a run.
    Change(Change),
}

/// A call of a method. The answer is true if the choices outlive a reboot, or the reason of a
/// refusal.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Call {
    pub wanted: Wanted,
    pub answer: oneshot::Sender<Result<bool, String>>,
}

/// The daemon on the bus.
#[derive(Debug)]
pub struct Bus {
    connection: Connection,
    /// All messages to the daemon, in order.
    messages: MessageStream,
    state: watch::Sender<Updated>,
    calls: mpsc::Receiver<Call>,
    /// True if a message was waiting when the daemon got its name: the bus started it.
    pub is_activated: bool,
}

/// Something that the bus delivered.
#[derive(Debug)]
pub enum Event {
    /// A method of the manager.
    Call(Call),
    /// The bus is gone.
    Lost,
}

impl Bus {
    /// Serves the state, and requests the bus name.
    ///
    /// # Errors
    ///
    /// There is no bus, or it refuses the name.
    pub async fn connect(state: Updated) -> zbus::Result<Self> {
        let (sender, calls) = mpsc::channel(CALLS);
        let state = watch::Sender::new(state);
        let served = async {
            let connection = system_bus().await?;
            let mut messages = MessageStream::from(&connection);
            let manager = Manager {
                calls: sender,
                state: state.subscribe(),
            };
            connection.object_server().at(PATH, manager).await?;
            connection.request_name(NAME).await?;
            let is_activated = is_called(&connection, &mut messages).await?;
            Ok((connection, messages, is_activated))
        };
        let limited = timeout(LIMIT, served).await;
        let served: zbus::Result<_> = limited.map_err(|_| zbus::Error::InputOutput(too_slow()))?;
        let (connection, messages, is_activated) = served?;
        Ok(Self {
            connection,
            messages,
            state,
            calls,
            is_activated,
        })
    }

    /// Changes the properties, and emits a signal with those that differ.
    ///
    /// # Errors
    ///
    /// The bus is gone.
    pub async fn publish(&self, state: Updated) -> zbus::Result<()> {
        update_shared::<Manager>(&self.connection, PATH, || {
            self.state.send_replace(state);
        })
        .await
    }

    /// Waits for the next event. Cancel-safe.
    pub async fn event(&mut self) -> Event {
        loop {
            tokio::select! {
                biased;
                call = self.calls.recv() => return call.map_or(Event::Lost, Event::Call),
                // Unread messages would stop the connection.
                message = self.messages.next() => match message {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Event::Lost,
                },
            }
        }
    }

    /// Gives up the name. Calls that came before are refused; those that come after start the
    /// daemon again.
    pub async fn close(mut self) {
        self.calls.close();
        // The process ends in any case.
        let _ = timeout(LIMIT, self.connection.release_name(NAME)).await;
        while let Ok(call) = self.calls.try_recv() {
            // Its method answers with STOPS.
            drop(call);
        }
        let _ = timeout(LIMIT, is_called(&self.connection, &mut self.messages)).await;
    }
}

/// Answer to a call that came too late.
const STOPS: &str = "buildos-updated stops: try again";

fn too_slow() -> std::sync::Arc<std::io::Error> {
    std::sync::Arc::new(std::io::ErrorKind::TimedOut.into())
}

/// Returns true if a method was called before now. The bus keeps the order of messages, so all
/// that came before are there once the bus answers.
async fn is_called(connection: &Connection, messages: &mut MessageStream) -> zbus::Result<bool> {
    let question = Message::method_call("/org/freedesktop/DBus", "GetId")?
        .destination("org.freedesktop.DBus")?
        .interface("org.freedesktop.DBus")?
        .build(&())?;
    connection.send(&question).await?;
    let serial = question.primary_header().serial_num();
    let mut is_called = false;
    while let Some(message) = messages.next().await {
        let message = message?;
        is_called |= message.message_type() == Type::MethodCall;
        if message.header().reply_serial() == Some(serial) {
            break;
        }
    }
    Ok(is_called)
}

/// Object at [`PATH`].
#[derive(Debug)]
pub struct Manager {
    calls: mpsc::Sender<Call>,
    state: watch::Receiver<Updated>,
}

impl Manager {
    async fn ask(&self, wanted: Wanted) -> fdo::Result<bool> {
        let stops = || fdo::Error::Failed(STOPS.to_owned());
        let (answer, answered) = oneshot::channel();
        let sent = self.calls.send(Call { wanted, answer }).await;
        sent.map_err(|_| stops())?;
        let answered = answered.await.map_err(|_| stops())?;
        answered.map_err(fdo::Error::InvalidArgs)
    }

    async fn change(&self, change: Change) -> fdo::Result<bool> {
        self.ask(Wanted::Change(change)).await
    }
}

/// The channel, the last run, and the choices of the operator.
#[interface(name = "org.build2.buildos.update1.Manager")]
impl Manager {
    /// Starts a run now: fetches the channel, and places and removes machines. Refused while
    /// updates are held.
    async fn check(&self) -> fdo::Result<()> {
        self.ask(Wanted::Run).await.map(drop)
    }

    /// Holds updates: nothing is fetched, placed or removed until Resume. `reason` is one line
    /// for operators, or empty. A run ends after the piece that it fetches or the machine that is
    /// being placed. Returns true if the hold outlives a reboot.
    #[zbus(out_args("kept"))]
    async fn hold(&self, reason: String) -> fdo::Result<bool> {
        let reason = match reason.is_empty() {
            true => crate::choices::NO_REASON.to_owned(),
            false => reason,
        };
        self.change(Change::Hold(reason)).await
    }

    /// Ends the hold, and starts a run. Returns true if that outlives a reboot.
    #[zbus(out_args("kept"))]
    async fn resume(&self) -> fdo::Result<bool> {
        self.change(Change::Resume).await
    }

    /// Takes the operating system of the channel now: also outside of the windows of
    /// `update.window`, while the rollout leaves this host out, and with agents that an operator
    /// drained. The other conditions apply. Refused while updates are held.
    async fn update_now(&self) -> fdo::Result<()> {
        self.ask(Wanted::Now).await.map(drop)
    }

    /// Keeps a machine at a revision on the volume, or at the current one (0): no other revision
    /// is fetched or made current, and this one is not removed. Returns true if the choice
    /// outlives a reboot.
    #[zbus(out_args("kept"))]
    async fn pin_machine(&self, name: String, revision: u64) -> fdo::Result<bool> {
        let revision = (revision > 0).then_some(revision);
        self.change(Change::Pin(name, revision)).await
    }

    /// Lets a pinned machine follow the channel again. Returns true if that outlives a reboot.
    #[zbus(out_args("kept"))]
    async fn unpin_machine(&self, name: String) -> fdo::Result<bool> {
        self.change(Change::Unpin(name)).await
    }

    /// Takes a machine of the channel that `machines.select` does not match, or that was removed.
    /// Returns true if the choice outlives a reboot.
    #[zbus(out_args("kept"))]
    async fn add_machine(&self, name: String) -> fdo::Result<bool> {
        self.change(Change::Add(name)).await
    }

    /// Removes a machine, and does not take it again until AddMachine. Its link goes first; a
    /// revision goes once no process uses it. Returns true if the choice outlives a reboot.
    #[zbus(out_args("kept"))]
    async fn remove_machine(&self, name: String) -> fdo::Result<bool> {
        self.change(Change::Remove(name)).await
    }

    /// URL of the server, or empty.
    #[zbus(property)]
    fn source(&self) -> String {
        self.state.borrow().source.clone()
    }

    /// Name of the channel that the host follows.
    #[zbus(property)]
    fn channel(&self) -> String {
        self.state.borrow().channel.clone()
    }

    /// Serial of the channel that was accepted last in this boot; 0 without one.
    #[zbus(property)]
    fn serial(&self) -> u64 {
        self.state.borrow().serial
    }

    /// End of the validity of this channel, as 2027-01-31T12:00:00Z, or empty.
    #[zbus(property)]
    fn valid_until(&self) -> String {
        self.state.borrow().valid_until.clone()
    }

    /// `idle`, `channel`, `fetching`, `placing` or `updating`.
    #[zbus(property)]
    fn phase(&self) -> &'static str {
        self.state.borrow().phase.as_str()
    }

    /// One line for operators: what the run does, or what the last one did.
    #[zbus(property)]
    fn activity(&self) -> String {
        self.state.borrow().result.clone()
    }

    /// Bytes that this run or the last one fetched from the server of `update.source`; pieces from
    /// peers do not count.
    #[zbus(property)]
    fn fetched(&self) -> u64 {
        self.state.borrow().fetched
    }

    /// End of the last run, microseconds since 1970; 0 before the first, and during a run.
    #[zbus(property)]
    fn last_run(&self) -> u64 {
        self.state.borrow().ended_usec
    }

    /// Faults of the configuration and of the last run, one line each.
    #[zbus(property)]
    fn problems(&self) -> Vec<String> {
        self.state.borrow().problems.clone()
    }

    /// State of the update of the operating system: `idle`, `offered`, `held`, `fetching`,
    /// `fetched`, `draining`, `handed-over`, `trial`, `proven`, `returned` or `bad`.
    #[zbus(property)]
    fn os_state(&self) -> &'static str {
        self.state.borrow().os.state.as_str()
    }

    /// Version of the operating system in the channel, or empty. In the states `trial` and
    /// `returned` that of the trial.
    #[zbus(property)]
    fn os_version(&self) -> String {
        self.state.borrow().os.version.clone()
    }

    /// Cause of the state `held`: `window`, `lock`, `policy`, `operator`, `no-way-back`, `memory`,
    /// `tasks` or `fault`. Otherwise empty.
    #[zbus(property)]
    fn os_cause(&self) -> &'static str {
        let cause = self.state.borrow().os.cause;
        cause.map_or("", Cause::as_str)
    }

    /// One line for operators about the state of this update, or empty.
    #[zbus(property)]
    fn os_reason(&self) -> String {
        self.state.borrow().os.reason.clone()
    }

    /// Reason of the hold; empty while updates are not held.
    #[zbus(property)]
    fn held(&self) -> String {
        self.state.borrow().held.clone()
    }

    /// True if choices of the operator outlive a reboot: the state volume is active, or the host has
    /// its files on a disk.
    #[zbus(property)]
    fn choices_kept(&self) -> bool {
        self.state.borrow().choices_kept
    }

    /// Machines of the channel and of the volume: name, revision of the channel, current
    /// revision, its content id, revision at which it is pinned, choice (`added`, `removed` or
    /// empty), state. A missing revision is 0. States are `current`, `waiting`,
    /// `pinned`, `pin-missing`, `leaving` and `not-taken`.
    #[zbus(property)]
    fn machines(&self) -> Vec<MachineEntry> {
        let state = self.state.borrow();
        state.machines.iter().map(Machine::entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::object_server::Interface as _;

    #[test]
    fn served_interface_matches_xml_of_record() {
        let manager = Manager {
            calls: mpsc::channel(1).0,
            state: watch::channel(Updated::default()).1,
        };
        let mut xml = String::from("<node>\n");
        manager.introspect_to_writer(&mut xml, 2);
        xml.push_str("</node>\n");
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/dbus/org.build2.buildos.update1.xml"
        );
        if std::env::var_os("BUILDOS_BLESS").is_some() {
            std::fs::write(path, &xml).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), xml);
    }

    #[tokio::test]
    async fn call_that_the_daemon_no_longer_takes_can_be_repeated() {
        let (calls, mut receiver) = mpsc::channel(1);
        let manager = Manager {
            calls,
            state: watch::channel(Updated::default()).1,
        };
        let late = async { drop(receiver.recv().await) };
        let (answer, ()) = tokio::join!(manager.check(), late);
        assert_eq!(answer, Err(fdo::Error::Failed(STOPS.to_owned())));
        drop(receiver);
        assert_eq!(
            manager.check().await,
            Err(fdo::Error::Failed(STOPS.to_owned()))
        );
    }
}
