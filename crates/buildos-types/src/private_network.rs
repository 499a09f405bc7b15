//! The private network: the address of the host on br1.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Address of the host on br1 together with the prefix of the network, such as
/// `172.23.0.1/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PrivateNetwork(Ipv4Net);

/// The text cannot be a private network.
#[derive(Debug, thiserror::Error)]
pub enum NotAPrivateNetwork {
    /// It does not parse.
    #[error("{0:?} is no address with a prefix such as 172.23.0.1/16")]
    Syntax(String),
    /// There is no room for machines.
    #[error("{0}: the prefix must be between /8 and /28, so that machines have room")]
    Prefix(Ipv4Net),
    /// The address is not one that a host can have in that network.
    #[error("{0}: this is the network's own or its broadcast address; try {1}")]
    NotAHost(Ipv4Net, Ipv4Net),
    /// The address means something else.
    #[error("{0}: loopback, link-local, multicast and reserved addresses cannot be used")]
    Special(Ipv4Net),
}

impl PrivateNetwork {
    /// The default and what is taken in its place, in this order, when it
    /// overlaps with what the uplink brought. From all three ranges of RFC
    /// 1918, so that one network cannot cover them all.
    pub const DEFAULTS: [&str; 4] = [
        "172.23.0.1/16",
        "172.29.0.1/16",
        "10.213.0.1/16",
        "192.168.213.1/24",
    ];

    /// Address of the host.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.0.addr()
    }

    /// Address and prefix.
    #[must_use]
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    fn overlaps(self, other: &Ipv4Net) -> bool {
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
    type Error = NotAPrivateNetwork;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl std::str::FromStr for PrivateNetwork {
    type Err = NotAPrivateNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net: Ipv4Net = text
            .parse()
            .map_err(|_| NotAPrivateNetwork::Syntax(text.to_owned()))?;
        if !(8..=28).contains(&net.prefix_len()) {
            return Err(NotAPrivateNetwork::Prefix(net));
        }
        let address = net.addr();
        if address.is_loopback()
            || address.is_link_local()
            || address.octets()[0] == 0
            || address.octets()[0] >= 224
        {
            return Err(NotAPrivateNetwork::Special(net));
        }
        if address == net.network() || address == net.broadcast() {
            let first = net.hosts().next().unwrap_or(address);
            let better = Ipv4Net::new(first, net.prefix_len()).unwrap_or(net);
            return Err(NotAPrivateNetwork::NotAHost(net, better));
        }
        Ok(Self(net))
    }
}

/// The first of `preferred` that overlaps with nothing in `occupied`.
///
/// With `current` free the choice stays, so that machines on br1 keep their
/// network when a later lease would have allowed a better one. Nothing free:
/// the first, as no choice is right and the configured one is expected.
#[must_use]
pub fn choose(
    preferred: &[PrivateNetwork],
    current: Option<PrivateNetwork>,
    occupied: &[Ipv4Net],
) -> Option<PrivateNetwork> {
    let free = |network: &PrivateNetwork| !occupied.iter().any(|net| network.overlaps(net));
    current
        .filter(|network| preferred.contains(network) && free(network))
        .or_else(|| preferred.iter().copied().find(free))
        .or_else(|| preferred.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_cannot_work_is_refused_with_a_reason() {
        for (text, reason) in [
            ("172.23.0.1", "is no address with a prefix"),
            ("172.23.0.0/16", "try 172.23.0.1/16"),
            ("172.23.255.255/16", "try 172.23.0.1/16"),
            ("172.23.0.1/30", "between /8 and /28"),
            ("127.0.0.1/8", "cannot be used"),
            ("169.254.1.1/16", "cannot be used"),
        ] {
            let error = text.parse::<PrivateNetwork>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_default_is_taken_unless_the_uplink_has_it() {
        assert_eq!(
            choose(&defaults(), None, &[]),
            Some(network("172.23.0.1/16"))
        );
        let occupied = ["172.16.0.0/12".parse().unwrap()];
        assert_eq!(
            choose(&defaults(), None, &occupied),
            Some(network("10.213.0.1/16"))
        );
        let occupied = ["172.23.4.0/24".parse().unwrap()];
        assert_eq!(
            choose(&defaults(), None, &occupied),
            Some(network("172.29.0.1/16"))
        );
    }

    #[test]
    fn a_choice_stays_while_it_is_free() {
        let current = Some(network("10.213.0.1/16"));
        assert_eq!(choose(&defaults(), current, &[]), current);
        let occupied = ["10.0.0.0/8".parse().unwrap()];
        assert_eq!(
            choose(&defaults(), current, &occupied),
            Some(network("172.23.0.1/16"))
        );
    }

    #[test]
    fn with_nothing_free_the_configured_one_stands() {
        let only = [network("172.23.0.1/16")];
        assert_eq!(
            choose(&only, None, &["172.23.0.0/16".parse().unwrap()]),
            Some(only[0])
        );
    }
}
