//! Where natd works: the two bridges, the private network and the name
//! servers, as netd published them, checked.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use buildos_dbus_api::network1::Network;
use ipnet::Ipv4Net;

/// Everything about the host's network that natd acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkNetwork {
    /// The bridge with the uplink.
    pub public_bridge: InterfaceName,
    /// The bridge of the build machines.
    pub private_bridge: InterfaceName,
    /// The host on the private bridge.
    pub private_network: PrivateNetwork,
    /// Name servers of the uplink, in its order.
    pub dns: Vec<IpAddr>,
    /// The uplink, or what netd says why there is none.
    pub uplink: Result<Uplink, String>,
}

/// The way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The default gateway; a network may have none.
    pub gateway: Option<Ipv4Addr>,
}

#[cfg(test)]
impl UplinkNetwork {
    /// Without name servers, and with an uplink that has no gateway.
    pub(crate) fn example() -> Self {
        Self {
            public_bridge: InterfaceName("br0".to_owned()),
            private_bridge: InterfaceName("br1".to_owned()),
            private_network: PrivateNetwork(Ipv4Net::new_assert(Ipv4Addr::new(172, 23, 0, 1), 16)),
            dns: vec![],
            uplink: Ok(Uplink { gateway: None }),
        }
    }
}

/// Why there is no [`UplinkNetwork`] yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UplinkNetworkError {
    /// netd has not given br1 its address yet.
    #[error("the private bridge has no address yet")]
    NoPrivateNetwork,
    /// netd is newer or older than we are, or mistaken.
    #[error("buildos-netd published {what} {value:?}, which cannot be")]
    Unusable {
        /// Which property.
        what: &'static str,
        /// Its value.
        value: String,
    },
}

impl TryFrom<&Network> for UplinkNetwork {
    type Error = UplinkNetworkError;

    fn try_from(network: &Network) -> Result<Self, Self::Error> {
        if network.private_network.is_empty() {
            return Err(UplinkNetworkError::NoPrivateNetwork);
        }
        let unusable = |what, value: &str| UplinkNetworkError::Unusable {
            what,
            value: value.to_owned(),
        };
        let bridge =
            |what, name: &str| InterfaceName::new(name).ok_or_else(|| unusable(what, name));
        let private = &network.private_network;
        Ok(Self {
            public_bridge: bridge("the public bridge", &network.public_bridge)?,
            private_bridge: bridge("the private bridge", &network.private_bridge)?,
            private_network: PrivateNetwork::new(private)
                .ok_or_else(|| unusable("the private network", private))?,
            dns: network
                .dns
                .iter()
                .filter_map(|server| server.parse().ok())
                .collect(),
            uplink: match network.online {
                true => Ok(Uplink {
                    gateway: network.gateway.parse().ok(),
                }),
                false => Err(network.reason.clone()),
            },
        })
    }
}

/// The name of a network interface, fit for a path in `/proc/sys`, a
/// configuration file and a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// [`None`] for what the kernel refuses (`dev_valid_name`, net/core/dev.c:
    /// empty, 16 bytes or more, `.`, `..`, a slash, a colon, white space), and
    /// for anything but ASCII letters, digits, `-`, `_` and `.`.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let valid =
            (1..=15).contains(&name.len()) && name.chars().all(fit) && name != "." && name != "..";
        valid.then(|| Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Address of the host on the private bridge and the prefix of the network
/// there, with room for at least one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrivateNetwork(Ipv4Net);

impl PrivateNetwork {
    /// [`None`] for what is no `address/prefix`, has a prefix longer than 30
    /// or shorter than 8, or names the network or its broadcast address.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let net: Ipv4Net = text.parse().ok()?;
        let valid = (8..=30).contains(&net.prefix_len())
            && net.addr() != net.network()
            && net.addr() != net.broadcast();
        valid.then_some(Self(net))
    }

    /// The host's address.
    #[must_use]
    pub fn host(self) -> Ipv4Addr {
        self.0.addr()
    }

    /// The network, as rules have it.
    #[must_use]
    pub fn net(self) -> Ipv4Net {
        self.0.trunc()
    }

    /// First and last address for machines: the greater part of the network,
    /// before or behind the host's address.
    #[must_use]
    pub fn machines(self) -> (Ipv4Addr, Ipv4Addr) {
        let host = u32::from(self.host());
        let first = u32::from(self.0.network()) + 1;
        let last = u32::from(self.0.broadcast()) - 1;
        let (from, to) = if host - first > last - host {
            (first, host - 1)
        } else {
            (host + 1, last)
        };
        (from.into(), to.into())
    }
}

impl fmt::Display for PrivateNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network() -> Network {
        Network {
            public_bridge: "br0".to_owned(),
            private_bridge: "br1".to_owned(),
            private_network: "172.23.0.1/16".to_owned(),
            online: true,
            gateway: "192.0.2.254".to_owned(),
            dns: vec![
                "192.0.2.1".to_owned(),
                "nonsense".to_owned(),
                "2001:db8::1".to_owned(),
            ],
            ..Network::default()
        }
    }

    #[test]
    fn what_netd_publishes_is_a_site() {
        let network = UplinkNetwork::try_from(&network()).unwrap();
        assert_eq!(network.public_bridge.as_str(), "br0");
        assert_eq!(network.private_network.to_string(), "172.23.0.1/16");
        assert_eq!(network.private_network.net().to_string(), "172.23.0.0/16");
        assert_eq!(network.dns.len(), 2);
        let gateway = Some(Ipv4Addr::new(192, 0, 2, 254));
        assert_eq!(network.uplink, Ok(Uplink { gateway }));
    }

    #[test]
    fn without_an_uplink_there_is_a_site_that_says_why() {
        let network = Network {
            online: false,
            reason: "no carrier on eth0".to_owned(),
            ..network()
        };
        let network = UplinkNetwork::try_from(&network).unwrap();
        assert_eq!(network.uplink, Err("no carrier on eth0".to_owned()));
    }

    #[test]
    fn without_a_private_network_there_is_none() {
        let network = Network {
            private_network: String::new(),
            ..network()
        };
        assert_eq!(
            UplinkNetwork::try_from(&network),
            Err(UplinkNetworkError::NoPrivateNetwork)
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        let network = Network {
            private_bridge: "br1\nport=53".to_owned(),
            ..network()
        };
        assert_eq!(
            UplinkNetwork::try_from(&network).unwrap_err().to_string(),
            "buildos-netd published the private bridge \"br1\\nport=53\", which cannot be"
        );
    }

    #[test]
    fn interface_names() {
        for good in ["br0", "br-lan_1.5", "abcdefghijklmno"] {
            assert!(InterfaceName::new(good).is_some(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:b",
            "abcdefghijklmnop",
            "é",
            "a\"b",
        ] {
            assert!(InterfaceName::new(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn machines_get_the_greater_part() {
        for (network, first, last) in [
            ("172.23.0.1/16", "172.23.0.2", "172.23.255.254"),
            ("192.168.5.254/24", "192.168.5.1", "192.168.5.253"),
            ("192.168.5.100/24", "192.168.5.101", "192.168.5.254"),
            ("10.0.0.1/30", "10.0.0.2", "10.0.0.2"),
            ("10.0.0.2/30", "10.0.0.1", "10.0.0.1"),
        ] {
            let machines = PrivateNetwork::new(network).unwrap().machines();
            assert_eq!(
                machines,
                (first.parse().unwrap(), last.parse().unwrap()),
                "{network}"
            );
        }
    }

    #[test]
    fn private_networks_that_cannot_be() {
        for bad in [
            "",
            "172.23.0.1",
            "172.23.0.0/16",
            "172.23.255.255/16",
            "10.0.0.1/31",
            "1.0.0.1/7",
        ] {
            assert!(PrivateNetwork::new(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_host_is_not_among_the_machines(address: u32, prefix in 8u8..=30) {
            let text = format!("{}/{prefix}", Ipv4Addr::from(address));
            if let Some(network) = PrivateNetwork::new(&text) {
                let (first, last) = network.machines();
                prop_assert!(first <= last);
                prop_assert!(!(first..=last).contains(&network.host()));
                prop_assert!(network.net().contains(&first) && network.net().contains(&last));
                prop_assert!(first != network.net().network());
                prop_assert!(last != network.net().broadcast());
            }
        }
    }
}
