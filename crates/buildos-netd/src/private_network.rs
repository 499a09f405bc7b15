//! Chooses the private network of br1.

use std::fmt;
use std::net::Ipv4Addr;

use buildos_dhcp::Lease;
use buildos_types::PrivateNetwork;
use ipnet::Ipv4Net;

/// A network or address of a lease. The private network must not overlap with it: packets to
/// it would go to br1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupied {
    /// The network, or the address with the prefix 32.
    pub net: Ipv4Net,
    /// Its use in the lease, for operators.
    pub kind: &'static str,
}

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.net.prefix_len() {
            32 => write!(f, "{} {}", self.kind, self.net.addr()),
            _ => write!(f, "{} {}", self.kind, self.net),
        }
    }
}

/// Returns the networks and addresses of a lease.
#[must_use]
pub fn occupied(lease: &Lease) -> Vec<Occupied> {
    let of_kind = |kind| move |net| Occupied { net, kind };
    let host = |kind| {
        move |address: &Ipv4Addr| Occupied {
            net: Ipv4Net::from(*address),
            kind,
        }
    };
    let routes = lease.routes.iter().filter(|route| !route.is_default());
    let gateways = lease
        .routes
        .iter()
        .filter_map(|route| route.gateway.as_ref());
    let server = Some(&lease.server).filter(|_| !lease.is_configured());
    [of_kind("network")(lease.network())]
        .into_iter()
        .chain(routes.map(|route| of_kind("route")(route.destination)))
        .chain(gateways.map(host("gateway")))
        .chain(lease.dns.iter().map(host("name server")))
        .chain(lease.ntp.iter().map(host("time server")))
        .chain(server.map(host("DHCP server")))
        .chain(lease.relay.iter().map(host("relay")))
        .collect()
}

/// Returns the first of `preferred` that does not overlap with `occupied`.
///
/// `current` is kept while it is free, so that machines on br1 keep their network when a
/// later lease would allow a preferred network. If all overlap, returns the first, which
/// is the configured network.
#[must_use]
pub fn choose(
    preferred: &[PrivateNetwork],
    current: Option<PrivateNetwork>,
    occupied: &[Occupied],
) -> Option<PrivateNetwork> {
    let free = |network: &PrivateNetwork| overlapping(occupied, *network).is_none();
    current
        .filter(|network| preferred.contains(network) && free(network))
        .or_else(|| preferred.iter().copied().find(free))
        .or_else(|| preferred.first().copied())
}

/// Returns the first of `occupied` that overlaps with the network.
#[must_use]
pub fn overlapping(occupied: &[Occupied], network: PrivateNetwork) -> Option<Occupied> {
    let mut occupied = occupied.iter().copied();
    occupied.find(|occupied| network.overlaps(&occupied.net))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::online;

    fn networks(nets: &[&str]) -> Vec<Occupied> {
        let nets = nets.iter().map(|net| net.parse().unwrap());
        nets.map(|net| Occupied { net, kind: "route" }).collect()
    }

    #[test]
    fn private_network_with_any_address_of_lease_is_replaced() {
        let inside: Ipv4Addr = "172.23.0.9".parse().unwrap();
        type Change = fn(&mut Lease, Ipv4Addr);
        let changes: [(&str, Change); 5] = [
            ("gateway", |lease, address| {
                lease.routes[0].gateway = Some(address);
            }),
            ("name server", |lease, address| lease.dns.push(address)),
            ("time server", |lease, address| lease.ntp.push(address)),
            ("DHCP server", |lease, address| lease.server = address),
            ("relay", |lease, address| lease.relay = Some(address)),
        ];
        let default = network("172.23.0.1/16");
        let lease = online().lease.unwrap();
        assert_eq!(overlapping(&occupied(&lease), default), None);
        for (kind, change) in changes {
            let mut lease = lease.clone();
            change(&mut lease, inside);
            let occupied = occupied(&lease);
            let found = overlapping(&occupied, default).unwrap();
            assert_eq!(found.to_string(), format!("{kind} 172.23.0.9"));
            let chosen = choose(&defaults(), Some(default), &occupied);
            assert_eq!(chosen, Some(network("172.29.0.1/16")));
        }
    }

    fn network(text: &str) -> PrivateNetwork {
        text.parse().unwrap()
    }

    fn defaults() -> Vec<PrivateNetwork> {
        PrivateNetwork::DEFAULTS
            .iter()
            .map(|text| network(text))
            .collect()
    }

    #[test]
    fn private_network_overlapping_uplink_is_replaced() {
        assert_eq!(
            choose(&defaults(), None, &[]),
            Some(network("172.23.0.1/16"))
        );
        let occupied = networks(&["172.16.0.0/12"]);
        assert_eq!(
            choose(&defaults(), None, &occupied),
            Some(network("10.213.0.1/16"))
        );
        let occupied = networks(&["172.23.4.0/24"]);
        assert_eq!(
            choose(&defaults(), None, &occupied),
            Some(network("172.29.0.1/16"))
        );
    }

    #[test]
    fn private_network_current_and_free_is_kept() {
        let current = Some(network("10.213.0.1/16"));
        assert_eq!(choose(&defaults(), current, &[]), current);
        let occupied = networks(&["10.0.0.0/8"]);
        assert_eq!(
            choose(&defaults(), current, &occupied),
            Some(network("172.23.0.1/16"))
        );
    }

    #[test]
    fn private_network_without_free_choice_is_first_configured() {
        let only = [network("172.23.0.1/16")];
        assert_eq!(
            choose(&only, None, &networks(&["172.23.0.0/16"])),
            Some(only[0])
        );
    }
}
