//! Checks whether the hosts that claim an address are routers with proxy ARP (RFC 1027).

use core::time::Duration;
use std::net::Ipv4Addr;

use buildos_types::MacAddress;
use ipnet::Ipv4Net;

use crate::arp::Packet;
use crate::time::Instant;

/// Maximum number of claimants checked at once.
const MAXIMUM_CLAIMANTS: usize = 4;
/// Number of requests for each address.
const REQUESTS: u32 = 2;
const REQUEST_INTERVAL: Duration = Duration::from_millis(500);
/// Linux answers for others after up to 0.8 s (arp(7), proxy_delay).
const ANSWER_WAIT: Duration = Duration::from_millis(700);
/// Longest prefix with addresses enough for [`others`]. Behind a longer one, a proxy
/// probably answers for addresses outside it.
const LONGEST_PREFIX: u8 = 29;
const PREFIX_AROUND: u8 = 24;

/// A check of the hosts that claim an address.
#[derive(Debug)]
pub(crate) struct Check {
    /// The address of the network, or an unused third address, then two other addresses.
    targets: [Ipv4Addr; 3],
    claimants: Vec<Claimant>,
    is_early: bool,
    sent: u32,
    next: Instant,
}

#[derive(Debug)]
struct Claimant {
    mac: MacAddress,
    /// Indices of the targets that it answered for.
    answers: [bool; 3],
}

impl Claimant {
    fn is_proxy(&self) -> bool {
        matches!(self.answers, [true, ..] | [_, true, true])
    }
}

impl Check {
    /// Returns a check without claimants. The first requests are due at once.
    pub(crate) fn new(now: Instant, mac: MacAddress, interface: Ipv4Net, is_early: bool) -> Self {
        Self {
            targets: targets(mac, interface),
            claimants: Vec::new(),
            is_early,
            sent: 0,
            next: now,
        }
    }

    /// Returns true if the check began before the address was in use for two seconds.
    pub(crate) fn is_early(&self) -> bool {
        self.is_early
    }

    /// Returns the addresses that the requests ask for.
    pub(crate) fn addresses(&self) -> &[Ipv4Addr] {
        &self.targets
    }

    pub(crate) fn add(&mut self, mac: MacAddress) {
        let is_known = self.claimants.iter().any(|claimant| claimant.mac == mac);
        if !is_known && self.claimants.len() < MAXIMUM_CLAIMANTS {
            let answers = [false; 3];
            self.claimants.push(Claimant { mac, answers });
        }
    }

    /// Evaluates an answer. Returns true if its sender turns out to do proxy ARP; it is no
    /// claimant then.
    pub(crate) fn answered(&mut self, packet: &Packet) -> bool {
        let target = self.targets.iter().position(|at| *at == packet.sender);
        let is_sender = |claimant: &Claimant| claimant.mac == packet.sender_mac;
        let claimant = self.claimants.iter().position(is_sender);
        let (Some(target), Some(index)) = (target, claimant) else {
            return false;
        };
        let claimant = &mut self.claimants[index];
        claimant.answers[target] = true;
        let is_proxy = claimant.is_proxy();
        if is_proxy {
            self.claimants.remove(index);
        }
        is_proxy
    }

    /// Returns true if no claimant is left.
    pub(crate) fn is_resolved(&self) -> bool {
        self.claimants.is_empty()
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.next
    }

    /// Returns the targets if requests are due.
    pub(crate) fn due(&mut self, now: Instant) -> Option<[Ipv4Addr; 3]> {
        if self.sent >= REQUESTS || self.next > now {
            return None;
        }
        self.sent += 1;
        let wait = match self.sent < REQUESTS {
            true => REQUEST_INTERVAL,
            false => ANSWER_WAIT,
        };
        self.next = now.saturating_add(wait);
        Some(self.targets)
    }

    /// Returns the first claimant that does no proxy ARP, once the check is over.
    pub(crate) fn verdict(&self, now: Instant) -> Option<MacAddress> {
        let is_over = self.sent >= REQUESTS && self.next <= now;
        let claimant = self.claimants.first().filter(|_| is_over);
        claimant.map(|claimant| claimant.mac)
    }
}

/// Returns an address that no host can have, or with a long prefix may have, and two
/// addresses that depend on address and hardware address: neighbours in a rack have
/// neighbouring addresses, which one host might have as aliases.
fn targets(mac: MacAddress, interface: Ipv4Net) -> [Ipv4Addr; 3] {
    let address = interface.addr();
    let prefix = match interface.prefix_len() {
        long if long > LONGEST_PREFIX => PREFIX_AROUND,
        prefix => prefix,
    };
    // The prefix is valid: at most the one of `interface`, or 24.
    let subnet = Ipv4Net::new(address, prefix).unwrap_or(interface).trunc();
    let (first, last) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
    let hosts = (last - first).saturating_sub(1).max(1);
    let seed = mac.0.iter().chain(&address.octets()).fold(0, hash);
    let mut targets = [subnet.network(), address, address];
    for index in 1..targets.len() {
        let mut offset = seed.wrapping_mul(index as u32 + 1) % hosts;
        // The subnet has more hosts than there are targets.
        for _ in 0..targets.len() {
            let target = Ipv4Addr::from(first + 1 + offset);
            if !targets.contains(&target) {
                targets[index] = target;
                break;
            }
            offset = (offset + 1) % hosts;
        }
    }
    targets
}

/// One step of FNV-1a.
fn hash(seed: u32, byte: &u8) -> u32 {
    (seed ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

    #[test]
    fn targets_are_network_address_and_two_other_hosts() {
        for prefix in 1..=32 {
            for last in 0..=255 {
                let address = Ipv4Addr::new(192, 0, 2, last);
                let interface = Ipv4Net::new(address, prefix).unwrap();
                let [network, one, two] = targets(MAC, interface);
                assert_ne!(one, two, "{interface}");
                let wide = if prefix > 29 { 24 } else { prefix };
                let subnet = Ipv4Net::new(address, wide).unwrap();
                assert_eq!(network, subnet.network(), "{interface}");
                for target in [one, two] {
                    assert!(subnet.contains(&target), "{interface}: {target}");
                    let edges = [address, subnet.network(), subnet.broadcast()];
                    assert!(!edges.contains(&target), "{interface}: {target}");
                }
            }
        }
    }

    #[test]
    fn targets_of_neighbours_differ() {
        let targets = |last| {
            let interface = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, last), 24);
            targets(MAC, interface)[1]
        };
        let mut seen: Vec<_> = (1..=50).map(targets).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 25, "{}", seen.len());
    }
}
