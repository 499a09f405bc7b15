//! Finds addresses whose machine is gone: its lease ended, or its port left br1.
//!
//! A machine has no moment at which it says goodbye. Its tap disappears when its virtual
//! machine ends, and its lease ends later.
//!
//! # Limits
//!
//! A machine that comes and goes between two observations is found by the end of its lease.
//! natd does not know what happened while it did not run.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use buildos_netlink::bridge::Learned;
use buildos_types::{LinkIndex, MacAddress};

use crate::dnsmasq::leases::Lease;

/// Follows the machines from observation to observation.
#[derive(Debug, Default)]
pub struct Departures {
    /// Leases, sorted by address; [`None`] before the first observation.
    leases: Option<Vec<(Ipv4Addr, MacAddress)>>,
    /// Leases that were missing in the last observation, for the first time; sorted.
    missing: Vec<(Ipv4Addr, MacAddress)>,
    /// The port at which a machine with a lease was seen last.
    ports: HashMap<MacAddress, LinkIndex>,
}

impl Departures {
    /// Returns true if a machine has a lease.
    #[must_use]
    pub fn has_leases(&self) -> bool {
        self.leases
            .as_ref()
            .is_some_and(|leases| !leases.is_empty())
    }

    /// Returns true if the last leases may have been incomplete.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Returns the addresses whose lease ended, or has passed to another machine.
    ///
    /// A lease has ended if it is missing twice: dnsmasq rewrites the file in place, so the
    /// end of one reading can be missing.
    pub fn leases(&mut self, leases: &[Lease]) -> Vec<Ipv4Addr> {
        let mut now: Vec<_> = leases.iter().map(|l| (l.address, l.mac)).collect();
        now.sort_unstable();
        let holder = |address| now.binary_search_by_key(&address, |lease| lease.0);
        let mut gone = Vec::new();
        let mut missing = Vec::new();
        for lease in self.leases.take().into_iter().flatten() {
            match holder(lease.0) {
                Ok(at) if now.get(at) == Some(&lease) => {}
                Ok(_) => gone.push(lease.0),
                Err(_) if self.missing.binary_search(&lease).is_ok() => gone.push(lease.0),
                Err(_) => missing.push(lease),
            }
        }
        now.extend_from_slice(&missing);
        now.sort_unstable();
        self.leases = Some(now);
        self.missing = missing;
        gone
    }

    /// Returns the addresses of machines whose port is gone. `ports` are all ports of br1,
    /// and `learned` the addresses that it learned.
    pub fn ports(&mut self, ports: &[LinkIndex], learned: &[Learned]) -> Vec<Ipv4Addr> {
        let leases = self.leases.as_deref().unwrap_or_default();
        let leased: HashSet<MacAddress> = leases.iter().map(|(_, mac)| *mac).collect();
        self.ports.retain(|mac, _| leased.contains(mac));
        let seen = learned.iter().filter(|entry| leased.contains(&entry.mac));
        self.ports.extend(seen.map(|entry| (entry.mac, entry.port)));
        let at_gone = |(_, port): &(&MacAddress, &LinkIndex)| !ports.contains(port);
        let gone = self.ports.iter().filter(at_gone).map(|(mac, _)| *mac);
        let gone: HashSet<MacAddress> = gone.collect();
        self.ports.retain(|mac, _| !gone.contains(mac));
        let of_gone = leases.iter().filter(|(_, mac)| gone.contains(mac));
        of_gone.map(|(address, _)| *address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [Ipv4Addr; 0] = [];

    fn mac(last: u8) -> MacAddress {
        MacAddress([2, 0, 0, 0, 0, last])
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 23, 0, last)
    }

    fn lease(host: u8, machine: u8) -> Lease {
        Lease {
            address: address(host),
            mac: mac(machine),
            expires: 0,
        }
    }

    fn port(index: u32) -> LinkIndex {
        LinkIndex::new(index).unwrap()
    }

    fn learned(machine: u8, index: u32) -> Learned {
        Learned {
            mac: mac(machine),
            port: port(index),
        }
    }

    #[test]
    fn address_is_gone_when_its_lease_is_missing_twice() {
        let mut departures = Departures::default();
        assert_eq!(departures.leases(&[lease(9, 1), lease(2, 2)]), NONE);
        assert_eq!(departures.leases(&[lease(2, 2), lease(9, 1)]), NONE);
        assert_eq!(departures.leases(&[lease(9, 1)]), NONE);
        assert!(departures.is_incomplete());
        assert_eq!(departures.leases(&[lease(2, 2), lease(9, 1)]), NONE);
        assert!(!departures.is_incomplete());
        assert_eq!(departures.leases(&[]), NONE);
        assert_eq!(departures.leases(&[lease(2, 2)]), [address(9)]);
        assert_eq!(departures.leases(&[lease(2, 2)]), NONE);
    }

    #[test]
    fn address_is_gone_when_another_machine_has_its_lease() {
        let mut departures = Departures::default();
        departures.leases(&[lease(9, 1)]);
        assert_eq!(departures.leases(&[lease(9, 3)]), [address(9)]);
        assert_eq!(departures.leases(&[lease(9, 3)]), NONE);
    }

    #[test]
    fn address_is_gone_once_when_its_port_left() {
        let mut departures = Departures::default();
        departures.leases(&[lease(9, 1), lease(2, 2)]);
        let both = [port(5), port(6)];
        let seen = [learned(1, 5), learned(2, 6), learned(3, 6)];
        assert_eq!(departures.ports(&both, &seen), NONE);
        // An idle machine is forgotten by the bridge, but its port stays.
        assert_eq!(departures.ports(&both, &[]), NONE);
        assert_eq!(departures.ports(&[port(6)], &[]), [address(9)]);
        assert_eq!(departures.ports(&[port(6)], &[]), NONE);
    }

    #[test]
    fn machine_at_another_port_is_not_gone() {
        let mut departures = Departures::default();
        departures.leases(&[lease(9, 1)]);
        assert_eq!(departures.ports(&[port(5)], &[learned(1, 5)]), NONE);
        assert_eq!(departures.ports(&[port(7)], &[learned(1, 7)]), NONE);
        assert_eq!(departures.ports(&[], &[]), [address(9)]);
    }
}
