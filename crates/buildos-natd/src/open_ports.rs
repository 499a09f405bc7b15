//! Opens ports of machines on br0 for a limited time, so that a person on the LAN can log in.
//!
//! An open port is a TCP port of the host's address on br0 that leads to a port of one machine.
//! It is closed by the first of these events:
//!
//! | event | observed by |
//! |---|---|
//! | its time has ended | clock |
//! | the machine's port of br1 is gone, or its address | ports of br1, [`crate::bindings`] |
//! | an operator closes it | D-Bus |
//!
//! natd remembers open ports in a file in `/run` with times since boot, so that they survive
//! its own end, and changes of the clock do not prolong them. The rules are in
//! [`crate::firewall::policy`].
//!
//! # Limits
//!
//! While natd does not run, open ports stay open.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_types::InterfaceName;

use crate::bindings::Binding;
use crate::open_port::OpenPort;

pub mod host;
pub mod keeper;
pub mod request;
pub mod store;

/// Most open ports at a time.
pub const MAX_OPEN: usize = 16;
/// Longest time for which a port is opened. A task takes some hours.
pub const MAX_TIME: Duration = Duration::from_secs(24 * 3600);
/// First port of br0 that natd chooses by itself: above the kernel's own choice for
/// connections of the host (`net.ipv4.ip_local_port_range`).
pub const FIRST_OUTSIDE: u16 = 61_000;
/// First port that needs no privilege. The LAN trusts the host's system ports.
const FIRST_USER_PORT: u16 = 1024;

/// A request to open a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Name of a port of br1.
    pub link: String,
    /// TCP port of the machine.
    pub port: u16,
    /// Port of br0, or [`None`] for any.
    pub outside: Option<u16>,
    /// Time for which it is open.
    pub time: Duration,
}

/// The host as far as open ports depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Index of the link with the requested name, if it is a port of br1.
    pub index: Option<u32>,
    /// Machines with an address, at their ports.
    pub machines: BTreeSet<Binding>,
    /// TCP ports on which the host listens.
    pub listening: BTreeSet<u16>,
    /// Time since boot.
    pub now: Duration,
    /// Microseconds since 1970.
    pub now_usec: u64,
}

/// Reason why a port was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Closed {
    TimeEnded,
    MachineGone,
    ByOperator,
}

impl Closed {
    /// Returns the reason for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TimeEnded => "its time has ended",
            Self::MachineGone => "the machine is gone",
            Self::ByOperator => "an operator closed it",
        }
    }
}

/// Reason why a port is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("{0:?} is no port of br1")]
    NoPort(String),
    #[error("the machine at {0} has no address yet")]
    NoAddress(String),
    #[error("the machine at {0} has several addresses: {1}")]
    SeveralAddresses(String, String),
    #[error("0 is no port")]
    PortZero,
    #[error("the time is from one second to {} hours", MAX_TIME.as_secs() / 3600)]
    Time,
    #[error("port {0} of br0 is a system port: choose one from {FIRST_USER_PORT} on")]
    SystemPort(u16),
    #[error("the host itself listens on port {0}")]
    HostListens(u16),
    #[error("port {0} of br0 is open for {1} already")]
    InUse(u16, String),
    #[error("{MAX_OPEN} ports are open already")]
    TooMany,
    #[error("no port {0} of br0 is open")]
    NotOpen(u16),
}

/// The open ports, ordered by the port of br0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenPorts {
    open: Vec<OpenPort>,
}

impl OpenPorts {
    /// Creates the list from a former one. Excess elements are dropped.
    #[must_use]
    pub fn resume(mut open: Vec<OpenPort>) -> Self {
        open.truncate(MAX_OPEN);
        Self { open }
    }

    /// Returns the open ports.
    #[must_use]
    pub fn list(&self) -> &[OpenPort] {
        &self.open
    }

    /// Opens a port. If the machine's port is open, its time starts again, and its port of br0
    /// stays unless the request names another.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; the list is unchanged then.
    pub fn open(&mut self, wanted: &Wanted, host: &Surroundings) -> Result<OpenPort, Refusal> {
        let link = &wanted.link;
        let is_name = InterfaceName::new(link).is_ok();
        let index = host.index.filter(|_| is_name);
        let index = index.ok_or_else(|| Refusal::NoPort(link.clone()))?;
        if wanted.port == 0 {
            return Err(Refusal::PortZero);
        }
        if wanted.time.is_zero() || wanted.time > MAX_TIME {
            return Err(Refusal::Time);
        }
        let address = address(link, index, host)?;
        let is_same = |open: &OpenPort| {
            (open.index, open.address, open.port) == (index, address, wanted.port)
        };
        let former = self.open.iter().find(|open| is_same(open));
        if former.is_none() && self.open.len() >= MAX_OPEN {
            return Err(Refusal::TooMany);
        }
        let outside = match (wanted.outside, former) {
            (Some(outside), _) => self.check_outside(outside, is_same, host)?,
            (None, Some(former)) => former.outside,
            (None, None) => self.free(host).ok_or(Refusal::TooMany)?,
        };
        let opened = OpenPort {
            outside,
            link: link.clone(),
            index,
            address,
            port: wanted.port,
            until: host.now.saturating_add(wanted.time),
            until_usec: host.now_usec.saturating_add(micros(wanted.time)),
        };
        self.open.retain(|open| !is_same(open));
        self.open.push(opened.clone());
        self.open.sort_by_key(|open| open.outside);
        Ok(opened)
    }

    /// Closes a port of br0.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotOpen`].
    pub fn close(&mut self, outside: u16) -> Result<OpenPort, Refusal> {
        let at = self.open.iter().position(|open| open.outside == outside);
        let at = at.ok_or(Refusal::NotOpen(outside))?;
        Ok(self.open.remove(at))
    }

    /// Removes the ports whose time has ended or whose machine is gone.
    pub fn expire(
        &mut self,
        now: Duration,
        ports: &BTreeSet<u32>,
        departed: &[Ipv4Addr],
    ) -> Vec<(OpenPort, Closed)> {
        let reason = |open: &OpenPort| {
            let is_gone = !ports.contains(&open.index) || departed.contains(&open.address);
            match (is_gone, open.until <= now) {
                (true, _) => Some(Closed::MachineGone),
                (false, true) => Some(Closed::TimeEnded),
                (false, false) => None,
            }
        };
        let closed = self.open.iter();
        let closed: Vec<_> = closed
            .filter_map(|open| Some((open.clone(), reason(open)?)))
            .collect();
        self.open.retain(|open| reason(open).is_none());
        closed
    }

    /// Returns the time since boot at which the next port is closed.
    #[must_use]
    pub fn next_end(&self) -> Option<Duration> {
        self.open.iter().map(|open| open.until).min()
    }

    fn check_outside(
        &self,
        outside: u16,
        is_same: impl Fn(&OpenPort) -> bool,
        host: &Surroundings,
    ) -> Result<u16, Refusal> {
        if outside < FIRST_USER_PORT {
            return Err(Refusal::SystemPort(outside));
        }
        if host.listening.contains(&outside) {
            return Err(Refusal::HostListens(outside));
        }
        let mut others = self.open.iter().filter(|open| !is_same(open));
        match others.find(|open| open.outside == outside) {
            Some(other) => Err(Refusal::InUse(outside, other.link.clone())),
            None => Ok(outside),
        }
    }

    fn free(&self, host: &Surroundings) -> Option<u16> {
        let is_open = |port: &u16| self.open.iter().any(|open| open.outside == *port);
        (FIRST_OUTSIDE..=u16::MAX).find(|port| !is_open(port) && !host.listening.contains(port))
    }
}

/// Returns the address of the machine at a port.
fn address(link: &str, index: u32, host: &Surroundings) -> Result<Ipv4Addr, Refusal> {
    let machines = host.machines.iter().filter(|known| known.port == index);
    let addresses: BTreeSet<Ipv4Addr> = machines.map(|known| known.address).collect();
    let mut rest = addresses.iter();
    match (rest.next(), rest.next()) {
        (None, _) => Err(Refusal::NoAddress(link.to_owned())),
        (Some(only), None) => Ok(*only),
        (Some(_), Some(_)) => {
            let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            Err(Refusal::SeveralAddresses(link.to_owned(), texts.join(", ")))
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
