//! Defines the private network, which the host shares with the build machines on br1.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Address of the host on br1 and the prefix of the network, such as `172.23.0.1/16`.
///
/// The network has room for at least 13 machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PrivateNetwork(Ipv4Net);

/// Reason why a text is not a private network.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPrivateNetwork {
    /// The text is not `ADDRESS/PREFIX`.
    #[error("{0:?} is not an address with a prefix such as 172.23.0.1/16")]
    Syntax(String),
    /// The prefix is outside /8 to /28.
    #[error("{0}: the prefix must be between /8 and /28, so that machines have room")]
    Prefix(Ipv4Net),
    /// The address is the network or broadcast address. The second value is a usable
    /// address.
    #[error("{0} is the network or broadcast address; try {1}")]
    NotAHost(Ipv4Net, Ipv4Net),
    /// The address is loopback, link-local, multicast or reserved (RFC 6890).
    #[error("{0}: loopback, link-local, multicast and reserved addresses cannot be used")]
    Special(Ipv4Net),
}

impl PrivateNetwork {
    /// The default, then the replacements for a default that overlaps with the uplink, in
    /// order of preference. They use all three ranges of RFC 1918, so that one uplink
    /// network cannot cover them all.
    pub const DEFAULTS: [&str; 4] = [
        "172.23.0.1/16",
        "172.29.0.1/16",
        "10.213.0.1/16",
        "192.168.213.1/24",
    ];

    /// Returns the address of the host on br1.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.0.addr()
    }

    /// Returns the address with its prefix, as assigned to br1.
    #[must_use]
    pub fn interface(self) -> Ipv4Net {
        self.0
    }

    /// Returns the network, with the host bits of the address cleared.
    #[must_use]
    pub fn network(self) -> Ipv4Net {
        self.0.trunc()
    }

    /// Returns the first and the last address for machines: the larger part of the
    /// network, before or after the host's address.
    #[must_use]
    pub fn machines(self) -> (Ipv4Addr, Ipv4Addr) {
        let host = u32::from(self.address());
        let first = u32::from(self.0.network()) + 1;
        let last = u32::from(self.0.broadcast()) - 1;
        let (from, to) = if host - first > last - host {
            (first, host - 1)
        } else {
            (host + 1, last)
        };
        (from.into(), to.into())
    }

    /// Returns true if both networks have addresses in common.
    #[must_use]
    pub fn overlaps(self, other: &Ipv4Net) -> bool {
        let (own, other) = (self.0.trunc(), other.trunc());
        own.contains(&other.network()) || other.contains(&own.network())
    }
}

impl std::fmt::Display for PrivateNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl From<PrivateNetwork> for String {
    fn from(network: PrivateNetwork) -> Self {
        network.to_string()
    }
}

impl TryFrom<String> for PrivateNetwork {
    type Error = InvalidPrivateNetwork;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl std::str::FromStr for PrivateNetwork {
    type Err = InvalidPrivateNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net: Ipv4Net = text
            .parse()
            .map_err(|_| InvalidPrivateNetwork::Syntax(text.to_owned()))?;
        if !(8..=28).contains(&net.prefix_len()) {
            return Err(InvalidPrivateNetwork::Prefix(net));
        }
        let address = net.addr();
        if address.is_loopback()
            || address.is_link_local()
            || address.octets()[0] == 0
            || address.octets()[0] >= 224
        {
            return Err(InvalidPrivateNetwork::Special(net));
        }
        if address == net.network() || address == net.broadcast() {
            let first = net.hosts().next().unwrap_or(address);
            let better = Ipv4Net::new(first, net.prefix_len()).unwrap_or(net);
            return Err(InvalidPrivateNetwork::NotAHost(net, better));
        }
        Ok(Self(net))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn private_network_unusable_is_refused_with_reason() {
        for (text, reason) in [
            ("", "is not an address with a prefix"),
            ("172.23.0.1", "is not an address with a prefix"),
            ("172.23.0.0/16", "try 172.23.0.1/16"),
            ("172.23.255.255/16", "try 172.23.0.1/16"),
            ("172.23.0.1/30", "between /8 and /28"),
            ("1.0.0.1/7", "between /8 and /28"),
            ("127.0.0.1/8", "cannot be used"),
            ("169.254.1.1/16", "cannot be used"),
        ] {
            let error = text.parse::<PrivateNetwork>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn machines_get_larger_part_of_network() {
        for (network, first, last) in [
            ("172.23.0.1/16", "172.23.0.2", "172.23.255.254"),
            ("192.168.5.254/24", "192.168.5.1", "192.168.5.253"),
            ("192.168.5.100/24", "192.168.5.101", "192.168.5.254"),
            ("10.0.0.1/28", "10.0.0.2", "10.0.0.14"),
            ("10.0.0.14/28", "10.0.0.1", "10.0.0.13"),
        ] {
            let machines = network.parse::<PrivateNetwork>().unwrap().machines();
            assert_eq!(
                machines,
                (first.parse().unwrap(), last.parse().unwrap()),
                "{network}"
            );
        }
    }

    proptest! {
        #[test]
        fn machines_never_include_host(address: u32, prefix in 8u8..=28) {
            let text = format!("{}/{prefix}", Ipv4Addr::from(address));
            if let Ok(network) = text.parse::<PrivateNetwork>() {
                let (first, last) = network.machines();
                prop_assert!(first <= last);
                prop_assert!(!(first..=last).contains(&network.address()));
                prop_assert!(network.network().contains(&first) && network.network().contains(&last));
                prop_assert!(first != network.network().network());
                prop_assert!(last != network.network().broadcast());
            }
        }
    }
}
