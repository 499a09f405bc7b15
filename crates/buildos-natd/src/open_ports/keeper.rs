//! Keeps the open ports while natd runs: opens them by request, and closes them in time.
//!
//! A request is answered after the reconciliation that follows it, when its rule is in the
//! kernel. A port that is closed loses its connections, too.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use buildos_types::InterfaceName;
use tokio::time::Instant;

use super::request::{Answer, Request};
use super::{Closed, OpenPorts, Surroundings, host, store};
use crate::bindings::Binding;
use crate::conntrack;
use crate::messages;
use crate::open_port::OpenPort;
use crate::ports;
use crate::uplink_network::UplinkNetwork;

/// Resolution of `/proc/uptime`.
const RESOLUTION: Duration = Duration::from_millis(10);

/// The open ports, with what is left to do for them.
#[derive(Debug)]
pub struct Keeper {
    root: PathBuf,
    ports: OpenPorts,
    /// Ports that were closed, whose connections are left.
    closed: Vec<OpenPort>,
}

/// A request that waits for the next reconciliation.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Pending {
    Open {
        /// The list without the port.
        former: OpenPorts,
        opened: OpenPort,
        answer: Answer<OpenPort>,
    },
    Close {
        closed: OpenPort,
        answer: Answer<()>,
    },
}

impl Keeper {
    /// Resumes with the open ports of an earlier natd, on the host below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            ports: store::read(root),
            closed: Vec::new(),
            root: root.to_owned(),
        }
    }

    /// Returns the open ports.
    #[must_use]
    pub fn list(&self) -> &[OpenPort] {
        self.ports.list()
    }

    /// Returns the time at which the next port is closed.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let left = self.ports.next_end()?.saturating_sub(self.now());
        Instant::now().checked_add(left + RESOLUTION)
    }

    /// Changes the list as requested. The change is active after a reconciliation, which
    /// [`Self::finish`] follows. A request that is refused is answered at once.
    #[must_use]
    pub fn accept(
        &mut self,
        request: Request,
        network: Option<&UplinkNetwork>,
        machines: &BTreeSet<Binding>,
    ) -> Option<Pending> {
        let former = self.ports.clone();
        match request {
            Request::Open(wanted, answer) => {
                let around = self.surroundings(&wanted.link, network, machines);
                match self.ports.open(&wanted, &around) {
                    Ok(opened) => Some(Pending::Open {
                        former,
                        opened,
                        answer,
                    }),
                    Err(refusal) => {
                        // The client may be gone.
                        let _ = answer.send(Err(refusal.to_string()));
                        None
                    }
                }
            }
            Request::Close(outside, answer) => match self.ports.close(outside) {
                Ok(closed) => Some(Pending::Close { closed, answer }),
                Err(refusal) => {
                    let _ = answer.send(Err(refusal.to_string()));
                    None
                }
            },
        }
    }

    /// Answers a request after the reconciliation. Without the table in the kernel, no port
    /// is opened.
    pub fn finish(&mut self, pending: Pending, table: Result<(), String>) {
        match (pending, table) {
            (Pending::Open { opened, answer, .. }, Ok(())) => {
                messages::port_opened(&opened);
                store::write(&self.root, &self.ports);
                let _ = answer.send(Ok(opened));
            }
            (Pending::Open { former, answer, .. }, Err(reason)) => {
                self.ports = former;
                let _ = answer.send(Err(reason));
            }
            // An absent table has closed the port, too.
            (Pending::Close { closed, answer }, Ok(()) | Err(_)) => {
                self.close(closed, Closed::ByOperator);
                store::write(&self.root, &self.ports);
                let _ = answer.send(Ok(()));
            }
        }
    }

    /// Removes ports whose time has ended or whose machine is gone. Returns true if there was
    /// one: its rules are still in the kernel.
    pub fn expire(&mut self, network: &UplinkNetwork, departed: &[Ipv4Addr]) -> bool {
        if self.list().is_empty() {
            return false;
        }
        let Ok(ports) = ports::read(&self.root, network) else {
            return false;
        };
        let expired = self.ports.expire(self.now(), &ports.private, departed);
        if expired.is_empty() {
            return false;
        }
        for (open, reason) in expired {
            self.close(open, reason);
        }
        store::write(&self.root, &self.ports);
        true
    }

    /// Removes the connections of closed ports. Call it when their rules are removed.
    pub async fn cut(&mut self) {
        for closed in std::mem::take(&mut self.closed) {
            let (address, port) = (closed.address, closed.port);
            if let Err(error) = conntrack::remove_to(address, port).await {
                tracing::warn!("cannot remove connections to {address}:{port}: {error}");
            }
        }
    }

    fn close(&mut self, open: OpenPort, reason: Closed) {
        messages::port_closed(&open, reason);
        self.closed.push(open);
    }

    fn surroundings(
        &self,
        link: &str,
        network: Option<&UplinkNetwork>,
        machines: &BTreeSet<Binding>,
    ) -> Surroundings {
        let ports = network.and_then(|network| ports::read(&self.root, network).ok());
        let ports = ports.unwrap_or_default().private;
        let index = InterfaceName::new(link)
            .ok()
            .and_then(|name| ports::index(&self.root, &name));
        Surroundings {
            index: index.filter(|index| ports.contains(index)),
            machines: machines.clone(),
            listening: host::listening(&self.root),
            now: self.now(),
            now_usec: host::realtime_usec(),
        }
    }

    /// Returns the time since boot. Without one, every port is closed.
    fn now(&self) -> Duration {
        host::uptime(&self.root).unwrap_or(Duration::MAX)
    }
}
