//! Keeps the learned sets of table `bridge buildos` in step with ports and leases.
//!
//! The rules learn a lease from dnsmasq's DHCPACK ([`crate::firewall::port_policy`]), so
//! natd only corrects the sets:
//!
//! | element | is removed | is added |
//! |---|---|---|
//! | address of a lease | with its port; with its lease | for a lease in the file, if br1 has learned the port of its machine |
//! | MAC address with its port | with its port | with an address |
//! | MAC address | with its last port | with an address |
//!
//! The second row of additions is necessary after another program has flushed the table.
//!
//! # Limits
//!
//! br1 forgets the port of a machine that has sent nothing for five minutes. If an
//! element is lost as well, the machine needs a DHCP request.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_netlink::bridge::Learned;
use buildos_types::MacAddress;
use tokio::time::Instant;

use crate::dnsmasq::leases::Lease;
use crate::firewall::bytecode::{Element, ElementChange};
use crate::firewall::client;
use crate::firewall::error::FirewallError;
use crate::firewall::model::Family;
use crate::firewall::policy::TABLE;
use crate::firewall::port_policy::{ADDRESSES, HARDWARE_ADDRESSES, LEASE_MARGIN, PORTS};

/// Age up to which an address can lack its line in the lease file: dnsmasq writes the
/// file after it has sent the DHCPACK.
pub const GRACE: Duration = Duration::from_secs(10);

/// The elements of the learned sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    hardware_addresses: Vec<Element>,
    ports: Vec<Element>,
    addresses: Vec<Element>,
    read: Instant,
}

/// The observations by which the sets are corrected.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// Indices of br1's ports.
    pub ports: BTreeSet<u32>,
    /// Content of the lease file; [`None`] if it cannot be read.
    pub leases: Option<Vec<Lease>>,
    /// Addresses that br1 has learned, with their ports.
    pub learned: Vec<Learned>,
    /// Seconds since 1970.
    pub now_s: u64,
    /// `dhcp_lease_s`, for leases without an end.
    pub lease: Duration,
}

type Leases = Option<HashSet<(MacAddress, Ipv4Addr)>>;

impl Evidence {
    fn leases(&self) -> Leases {
        let leases = self.leases.as_ref()?.iter();
        Some(leases.map(|lease| (lease.mac, lease.address)).collect())
    }
}

impl Bindings {
    /// Reads the elements from the kernel.
    ///
    /// # Errors
    ///
    /// As [`client::learned`].
    pub async fn read() -> Result<Self, FirewallError> {
        let read = Instant::now();
        // A rule adds the MAC address before its port: each one that is read has a port
        // in the later reading.
        let hardware_addresses = learned(HARDWARE_ADDRESSES).await?;
        let addresses = learned(ADDRESSES).await?;
        Ok(Self {
            hardware_addresses,
            addresses,
            ports: learned(PORTS).await?,
            read,
        })
    }

    /// Returns the elements of existing ports with the time that is left to them, to be
    /// added to a new table.
    #[must_use]
    pub fn restored(&self, ports: &BTreeSet<u32>, now: Instant) -> Vec<ElementChange> {
        let passed = now.saturating_duration_since(self.read).as_millis() as u64;
        let of_ports = |element: &&Element| port(element).is_some_and(|port| ports.contains(&port));
        let owned: HashSet<MacAddress> = self
            .ports
            .iter()
            .filter(of_ports)
            .filter_map(hardware_address)
            .collect();
        let is_owned =
            |element: &&Element| hardware_address(element).is_some_and(|mac| owned.contains(&mac));
        let aged = |element: &Element| {
            let remaining_ms = element.remaining_ms.saturating_sub(passed);
            (remaining_ms > 0).then(|| Element {
                remaining_ms,
                ..element.clone()
            })
        };
        let hardware_addresses = self.hardware_addresses.iter().filter(is_owned);
        [
            (
                HARDWARE_ADDRESSES,
                hardware_addresses.filter_map(aged).collect(),
            ),
            (
                PORTS,
                self.ports
                    .iter()
                    .filter(of_ports)
                    .filter_map(aged)
                    .collect(),
            ),
            (
                ADDRESSES,
                self.addresses
                    .iter()
                    .filter(of_ports)
                    .filter_map(aged)
                    .collect(),
            ),
        ]
        .map(|(set, added)| change(set, Vec::new(), added))
        .into()
    }

    /// Returns true if an address without a lease is too young to be removed.
    #[must_use]
    pub fn is_pending(&self, evidence: &Evidence) -> bool {
        let leases = evidence.leases();
        let mut addresses = self.addresses.iter();
        addresses.any(|element| is_young(element) && lacks_lease(element, &leases))
    }

    /// Returns the corrections, without empty ones.
    #[must_use]
    pub fn plan(&self, evidence: &Evidence) -> Vec<ElementChange> {
        let is_gone =
            |element: &Element| port(element).is_none_or(|port| !evidence.ports.contains(&port));
        let leases = evidence.leases();
        let has_ended = |element: &Element| !is_young(element) && lacks_lease(element, &leases);
        let (ended, kept): (Vec<_>, Vec<_>) = self
            .addresses
            .iter()
            .cloned()
            .partition(|element| is_gone(element) || has_ended(element));
        let (unplugged, owned): (Vec<_>, Vec<_>) = self.ports.iter().cloned().partition(is_gone);
        let owners: HashMap<MacAddress, u32> = owned
            .iter()
            .filter_map(|element| hardware_address(element).zip(port(element)))
            .collect();
        let unowned = self.hardware_addresses.iter().filter(|element| {
            hardware_address(element).is_none_or(|mac| !owners.contains_key(&mac))
        });
        let added = missing(&kept, &owners, evidence);
        let changes = [
            change(HARDWARE_ADDRESSES, unowned.cloned().collect(), added.0),
            change(PORTS, unplugged, added.1),
            change(ADDRESSES, ended, added.2),
        ];
        changes
            .into_iter()
            .filter(|change| !change.removed.is_empty() || !change.added.is_empty())
            .collect()
    }
}

/// Returns the elements of leases that the sets lack.
fn missing(
    addresses: &[Element],
    owners: &HashMap<MacAddress, u32>,
    evidence: &Evidence,
) -> (Vec<Element>, Vec<Element>, Vec<Element>) {
    let mut missing = (Vec::new(), Vec::new(), Vec::new());
    let bound: HashSet<_> = addresses
        .iter()
        .filter_map(|element| hardware_address(element).zip(address(element)))
        .collect();
    let learned: HashMap<_, _> = {
        let learned = evidence.learned.iter();
        learned.map(|entry| (entry.mac, entry.port.get())).collect()
    };
    for lease in evidence.leases.iter().flatten() {
        let left = match lease.expires {
            0 => evidence.lease,
            at => Duration::from_secs(at.saturating_sub(evidence.now_s)),
        };
        let Some(port) = learned.get(&lease.mac).copied() else {
            continue;
        };
        let is_other_port = owners.get(&lease.mac).is_some_and(|owner| *owner != port);
        if bound.contains(&(lease.mac, lease.address))
            || left.is_zero()
            || is_other_port
            || !evidence.ports.contains(&port)
        {
            continue;
        }
        let ms = (left + LEASE_MARGIN).as_millis() as u64;
        let element = |key: &[&[u8]]| Element {
            key: key.concat(),
            timeout_ms: ms,
            remaining_ms: ms,
        };
        let (mac, address, port) = (lease.mac.0, lease.address.octets(), port.to_ne_bytes());
        missing.0.push(element(&[&mac]));
        missing.1.push(element(&[&mac, &[0; 2], &port]));
        missing.2.push(element(&[&mac, &[0; 2], &address, &port]));
    }
    missing
}

fn is_young(element: &Element) -> bool {
    let age = element.timeout_ms.saturating_sub(element.remaining_ms);
    u128::from(age) <= GRACE.as_millis()
}

fn lacks_lease(element: &Element, leases: &Leases) -> bool {
    let lease = hardware_address(element).zip(address(element));
    let found = leases.as_ref().zip(lease);
    found.is_some_and(|(leases, lease)| !leases.contains(&lease))
}

async fn learned(set: &str) -> Result<Vec<Element>, FirewallError> {
    client::learned(Family::Bridge, TABLE, set).await
}

fn change(set: &str, removed: Vec<Element>, added: Vec<Element>) -> ElementChange {
    ElementChange {
        set: set.to_owned(),
        removed,
        added,
    }
}

/// Returns the MAC address with which every key begins.
fn hardware_address(element: &Element) -> Option<MacAddress> {
    let bytes = element.key.get(..6)?;
    bytes.try_into().ok().map(MacAddress)
}

/// Returns the port with which keys of [`PORTS`] and [`ADDRESSES`] end.
fn port(element: &Element) -> Option<u32> {
    let bytes = element.key.last_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// Returns the IPv4 address in a key of [`ADDRESSES`].
fn address(element: &Element) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = element.key.get(8..12)?.try_into().ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests;
