//! Keeps the learned sets of table `bridge buildos` in step with ports and leases, and finds
//! machines that are gone.
//!
//! The rules learn a lease from dnsmasq's DHCPACK ([`crate::firewall::port_policy`]), so
//! natd only corrects the sets:
//!
//! | element | is removed | is added |
//! |---|---|---|
//! | address of a lease | with its port; with its lease | for a lease in the file, if the port of its machine is known |
//! | MAC address with its port | with its port | with an address |
//! | MAC address | with its last port | with an address |
//! | port without room for a further MAC address | with one of its MAC addresses | when it has as many as it may |
//!
//! The additions of addresses are necessary after another program has flushed the table. The
//! port of a machine is known from br1, which forgets a machine that has sent nothing for five
//! minutes, and from the bindings that natd remembers ([`Binding`]).
//!
//! A machine has no moment at which it says goodbye. It is gone when its port or its lease is:
//! its tap disappears when its virtual machine ends, and its lease ends later.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_netlink::bridge::Learned;
use buildos_types::MacAddress;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::dnsmasq::leases::Lease;
use crate::firewall::bytecode::{Element, ElementChange};
use crate::firewall::client;
use crate::firewall::error::FirewallError;
use crate::firewall::model::Family;
use crate::firewall::policy::TABLE;
use crate::firewall::port_policy::{
    ADDRESSES, FULL_PORTS, HARDWARE_ADDRESSES, LEASE_MARGIN, PORTS,
};

/// Age up to which an address can lack its line in the lease file: dnsmasq writes the
/// file after it has sent the DHCPACK.
pub const GRACE: Duration = Duration::from_secs(10);
/// Time to a second reading of the lease file, if an address is missing in the first.
const SECOND_READING: Duration = Duration::from_secs(1);

/// A machine with the address of its lease, at a port of br1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Binding {
    pub mac: MacAddress,
    pub address: Ipv4Addr,
    /// Index of the port, which the kernel does not use again.
    pub port: u32,
}

/// The elements of the learned sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    hardware_addresses: Vec<Element>,
    ports: Vec<Element>,
    addresses: Vec<Element>,
    full_ports: Vec<Element>,
    read: Instant,
}

/// The observations by which the sets are corrected.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// Indices of br1's ports.
    pub ports: BTreeSet<u32>,
    /// Content of the lease file; [`None`] if it cannot be read.
    pub leases: Option<Vec<Lease>>,
    /// The same of the reading before. dnsmasq rewrites the file in place, so the end of one
    /// reading can be missing.
    pub last_leases: Option<Vec<Lease>>,
    /// Bindings that natd remembers.
    pub known: BTreeSet<Binding>,
    /// Addresses that br1 has learned, with their ports.
    pub learned: Vec<Learned>,
    /// Seconds since 1970.
    pub now_s: u64,
    /// `dhcp_lease_s`, for leases without an end.
    pub lease: Duration,
    /// Largest number of MAC addresses of a port.
    pub limit: u32,
}

/// The differences between the sets and the evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The corrections, without empty ones.
    pub changes: Vec<ElementChange>,
    /// Addresses whose machine is gone.
    pub departed: Vec<Ipv4Addr>,
    /// The bindings to remember.
    pub known: BTreeSet<Binding>,
    /// Time to the next check, if an address lacks its lease.
    pub recheck: Option<Duration>,
}

/// What the lease file says about a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseState {
    Leased,
    /// Missing in the last reading only.
    Missing,
    Ended,
}

/// The leases of both readings.
struct Leases {
    now: Option<HashSet<(MacAddress, Ipv4Addr)>>,
    before: Option<HashSet<(MacAddress, Ipv4Addr)>>,
}

impl Leases {
    fn of(evidence: &Evidence) -> Self {
        let set = |leases: &Option<Vec<Lease>>| {
            let leases = leases.as_ref()?.iter();
            Some(leases.map(|lease| (lease.mac, lease.address)).collect())
        };
        Self {
            now: set(&evidence.leases),
            before: set(&evidence.last_leases),
        }
    }

    fn state(&self, binding: Binding) -> LeaseState {
        let lease = (binding.mac, binding.address);
        let lacks = |leases: &HashSet<_>| !leases.contains(&lease);
        match (&self.now, &self.before) {
            (Some(now), Some(before)) if lacks(now) && lacks(before) => LeaseState::Ended,
            (Some(now), _) if lacks(now) => LeaseState::Missing,
            (Some(_) | None, _) => LeaseState::Leased,
        }
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
            full_ports: learned(FULL_PORTS).await?,
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

    /// Compares the sets with the evidence.
    #[must_use]
    pub fn plan(&self, evidence: &Evidence) -> Plan {
        let leases = Leases::of(evidence);
        let is_gone = |port: u32| !evidence.ports.contains(&port);
        let mut plan = Plan::default();
        let mut departed = BTreeSet::new();
        let (mut ended, mut kept) = (Vec::new(), HashSet::new());
        for element in &self.addresses {
            let Some(binding) = binding(element) else {
                ended.push(element.clone());
                continue;
            };
            let state = leases.state(binding);
            let is_ended = state == LeaseState::Ended && !is_young(element);
            if is_gone(binding.port) || is_ended {
                departed.insert(binding);
                ended.push(element.clone());
                continue;
            }
            let recheck = match state {
                LeaseState::Leased => None,
                LeaseState::Missing | LeaseState::Ended if is_young(element) => Some(GRACE),
                LeaseState::Missing | LeaseState::Ended => Some(SECOND_READING),
            };
            plan.recheck = [plan.recheck, recheck].into_iter().flatten().min();
            kept.insert(binding);
        }
        plan.known.clone_from(&evidence.known);
        plan.known.retain(|known| {
            let is_here = !is_gone(known.port) && leases.state(*known) != LeaseState::Ended;
            if !is_here && !kept.contains(known) {
                departed.insert(*known);
            }
            is_here
        });
        plan.known.extend(&kept);
        // The probe comes and goes.
        plan.known.retain(|known| known.mac != buildos_probe::MAC);
        departed.retain(|gone| gone.mac != buildos_probe::MAC);
        plan.departed = departed.iter().map(|gone| gone.address).collect();
        plan.changes = self.changes(evidence, ended, &kept, &plan.known);
        plan
    }

    fn changes(
        &self,
        evidence: &Evidence,
        ended: Vec<Element>,
        kept: &HashSet<Binding>,
        known: &BTreeSet<Binding>,
    ) -> Vec<ElementChange> {
        let is_gone =
            |element: &Element| port(element).is_none_or(|port| !evidence.ports.contains(&port));
        let (unplugged, owned): (Vec<_>, Vec<_>) = self.ports.iter().cloned().partition(is_gone);
        let owners: HashMap<MacAddress, u32> = owned
            .iter()
            .filter_map(|element| hardware_address(element).zip(port(element)))
            .collect();
        let unowned = self.hardware_addresses.iter().filter(|element| {
            hardware_address(element).is_none_or(|mac| !owners.contains_key(&mac))
        });
        let added = missing(kept, known, &owners, evidence);
        let full = full_ports(&owners, evidence.limit);
        let changes = [
            change(HARDWARE_ADDRESSES, unowned.cloned().collect(), added.0),
            change(PORTS, unplugged, added.1),
            change(ADDRESSES, ended, added.2),
            self.full_ports(&full, evidence.lease + LEASE_MARGIN),
        ];
        changes
            .into_iter()
            .filter(|change| !change.removed.is_empty() || !change.added.is_empty())
            .collect()
    }

    /// Returns the change that makes [`FULL_PORTS`] equal to `full`. An element ends by
    /// itself, so that a port does not stay full while natd does not run.
    fn full_ports(&self, full: &BTreeSet<u32>, timeout: Duration) -> ElementChange {
        let timeout_ms = timeout.as_millis() as u64;
        let lasts = |element: &&Element| {
            let is_full = port(element).is_some_and(|port| full.contains(&port));
            is_full && element.remaining_ms > timeout_ms / 2
        };
        let removed = self.full_ports.iter().filter(|element| !lasts(element));
        let lasting: BTreeSet<u32> = self
            .full_ports
            .iter()
            .filter(lasts)
            .filter_map(port)
            .collect();
        let added = full.difference(&lasting).map(|port| Element {
            key: port.to_ne_bytes().into(),
            timeout_ms,
            remaining_ms: timeout_ms,
        });
        change(FULL_PORTS, removed.cloned().collect(), added.collect())
    }
}

/// Returns the ports with as many MAC addresses as they may have.
fn full_ports(owners: &HashMap<MacAddress, u32>, limit: u32) -> BTreeSet<u32> {
    let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
    for port in owners.values() {
        *numbers.entry(*port).or_default() += 1;
    }
    let full = numbers.into_iter().filter(|(_, number)| *number >= limit);
    full.map(|(port, _)| port).collect()
}

/// Returns the elements of leases that the sets lack.
fn missing(
    kept: &HashSet<Binding>,
    known: &BTreeSet<Binding>,
    owners: &HashMap<MacAddress, u32>,
    evidence: &Evidence,
) -> (Vec<Element>, Vec<Element>, Vec<Element>) {
    let mut missing = (Vec::new(), Vec::new(), Vec::new());
    let bound: HashSet<_> = kept.iter().map(|kept| (kept.mac, kept.address)).collect();
    // What br1 learned is newer.
    let mut ports: HashMap<_, _> = known.iter().map(|known| (known.mac, known.port)).collect();
    let learned = evidence.learned.iter();
    ports.extend(learned.map(|entry| (entry.mac, entry.port.get())));
    for lease in evidence.leases.iter().flatten() {
        let left = match lease.expires {
            0 => evidence.lease,
            at => Duration::from_secs(at.saturating_sub(evidence.now_s)),
        };
        let Some(port) = ports.get(&lease.mac).copied() else {
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

/// Returns the port with which keys of [`PORTS`], [`ADDRESSES`] and [`FULL_PORTS`] end.
fn port(element: &Element) -> Option<u32> {
    let bytes = element.key.last_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// Returns the binding that a key of [`ADDRESSES`] is.
fn binding(element: &Element) -> Option<Binding> {
    let address: [u8; 4] = element.key.get(8..12)?.try_into().ok()?;
    Some(Binding {
        mac: hardware_address(element)?,
        address: address.into(),
        port: port(element)?,
    })
}

#[cfg(test)]
mod tests;
