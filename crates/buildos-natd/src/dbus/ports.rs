//! Serves `org.build2.buildos.nat1.Ports`: open ports of machines.
//!
//! A method waits for the event loop, which publishes before it takes the next request.
//! Publishing must not need the lock that zbus holds during a method, so the event loop
//! shares the list with the interface and emits the signal itself.

use std::collections::HashMap;
use std::time::Duration;

use buildos_dbus_api::nat1::PATH;
use tokio::sync::{mpsc, oneshot, watch};
use zbus::names::InterfaceName;
use zbus::object_server::{Interface as _, SignalEmitter};
use zbus::zvariant::Value;
use zbus::{Connection, fdo, interface};

use crate::open_port::OpenPort;
use crate::open_ports::Wanted;
use crate::open_ports::request::{self, Answer, Request};

/// An open port on the bus: port of br0, address and port of br1, TCP port, end.
type Entry = (u16, String, String, u16, u64);

/// The part that the event loop and the interface share.
#[derive(Debug)]
pub struct Shared {
    requests: mpsc::Sender<Request>,
    list: watch::Sender<Vec<OpenPort>>,
}

/// Returns what is shared, and the receiver of requests.
#[must_use]
pub fn channel(open: &[OpenPort]) -> (Shared, mpsc::Receiver<Request>) {
    let (requests, receiver) = request::channel();
    let list = watch::Sender::new(open.to_vec());
    (Shared { requests, list }, receiver)
}

/// Serves the interface.
///
/// # Errors
///
/// The bus is gone.
pub async fn serve(connection: &Connection, shared: &Shared) -> zbus::Result<()> {
    let server = connection.object_server();
    server.at(PATH, Ports::new(shared)).await?;
    Ok(())
}

/// Updates the list, and emits a signal if it changed.
///
/// # Errors
///
/// The bus is gone.
pub async fn publish(
    connection: &Connection,
    shared: &Shared,
    open: &[OpenPort],
) -> zbus::Result<()> {
    let is_changed = shared.list.send_if_modified(|list| {
        let is_different = list != open;
        if is_different {
            *list = open.to_vec();
        }
        is_different
    });
    if !is_changed {
        return Ok(());
    }
    let emitter = SignalEmitter::new(connection, PATH)?;
    let changed = HashMap::from([("OpenPorts", Value::from(entries(open)))]);
    let name: InterfaceName<'_> = Ports::name();
    fdo::Properties::properties_changed(&emitter, name, changed, (&[]).into()).await
}

fn entries(open: &[OpenPort]) -> Vec<Entry> {
    let entry = |open: &OpenPort| {
        let address = open.address.to_string();
        let link = open.link.clone();
        (open.outside, address, link, open.port, open.until_usec)
    };
    open.iter().map(entry).collect()
}

/// Ports of machines that are open on br0. Only root opens and closes them.
#[derive(Debug)]
pub struct Ports {
    requests: mpsc::Sender<Request>,
    list: watch::Receiver<Vec<OpenPort>>,
}

impl Ports {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            requests: shared.requests.clone(),
            list: shared.list.subscribe(),
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> fdo::Result<T> {
        let (answer, answered) = oneshot::channel();
        let stops = |()| fdo::Error::Failed("buildos-natd stops".to_owned());
        let sent = self.requests.send(request(answer)).await;
        sent.map_err(|_| stops(()))?;
        let answered = answered.await.map_err(|_| stops(()))?;
        answered.map_err(fdo::Error::InvalidArgs)
    }
}

#[interface(name = "org.build2.buildos.nat1.Ports")]
impl Ports {
    /// Opens a TCP port of the machine at a port of br1 for some seconds. Returns the port of
    /// br0 that leads there, and the end in microseconds since 1970. `outside` is the port of
    /// br0, or 0 for any. If it is open already, its time starts again.
    #[zbus(out_args("outside", "until"))]
    async fn open_port(
        &self,
        link: String,
        port: u16,
        outside: u16,
        seconds: u32,
    ) -> fdo::Result<(u16, u64)> {
        let wanted = Wanted {
            link,
            port,
            outside: (outside > 0).then_some(outside),
            time: Duration::from_secs(seconds.into()),
        };
        let opened = self.ask(|answer| Request::Open(wanted, answer)).await?;
        Ok((opened.outside, opened.until_usec))
    }

    /// Closes a port of br0, and ends its connections.
    async fn close_port(&self, outside: u16) -> fdo::Result<()> {
        self.ask(|answer| Request::Close(outside, answer)).await
    }

    /// The open ports: port of br0, address of the machine, its port of br1, its TCP port,
    /// end in microseconds since 1970.
    #[zbus(property)]
    fn open_ports(&self) -> Vec<Entry> {
        entries(&self.list.borrow())
    }
}
