//! Validates the network that netd publishes: the two bridges, the private network, name
//! servers, search domains and the uplink.

use std::net::{IpAddr, Ipv4Addr};

use buildos_dbus_api::network1::Network;
use buildos_types::{DomainName, InterfaceName, PrivateNetwork};
use ipnet::Ipv4Net;

/// The part of netd's properties that natd acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkNetwork {
    /// The bridge with the uplink.
    pub public_bridge: InterfaceName,
    /// The links that are the uplink or can become it, sorted.
    pub uplinks: Vec<InterfaceName>,
    /// The leased address of the public bridge.
    pub address: Option<Ipv4Addr>,
    /// The bridge of the build machines.
    pub private_bridge: InterfaceName,
    /// The private bridge's address and network.
    pub private_network: PrivateNetwork,
    /// Network of the uplink, as long as br0 has an address.
    pub public_network: Option<Ipv4Net>,
    /// Name servers of the uplink, in the order of the lease.
    pub dns: Vec<IpAddr>,
    /// Search domains of the uplink, in the order of the lease.
    pub search_domains: Vec<DomainName>,
    /// The uplink, or netd's reason why there is no uplink.
    pub uplink: Result<Uplink, String>,
}

/// The connection to the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The default gateway, if the network has one.
    pub gateway: Option<Ipv4Addr>,
}

#[cfg(test)]
impl UplinkNetwork {
    /// Returns a network without name servers, search domains and a gateway.
    pub(crate) fn example() -> Self {
        Self {
            public_bridge: InterfaceName::new("br0").unwrap(),
            uplinks: vec![InterfaceName::new("eth0").unwrap()],
            address: Some(Ipv4Addr::new(192, 0, 2, 7)),
            private_bridge: InterfaceName::new("br1").unwrap(),
            private_network: "172.23.0.1/16".parse().unwrap(),
            public_network: None,
            dns: vec![],
            search_domains: vec![],
            uplink: Ok(Uplink { gateway: None }),
        }
    }
}

/// Reason why netd's properties are not an [`UplinkNetwork`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UplinkNetworkError {
    /// netd has not given br1 its address yet.
    #[error("the private bridge has no address yet")]
    NoPrivateNetwork,
    /// netd has another version than natd, or a bug.
    #[error("buildos-netd published an invalid {property}: {value:?}")]
    Unusable {
        /// Name of the property.
        property: &'static str,
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
        let unusable = |property, value: &str| UplinkNetworkError::Unusable {
            property,
            value: value.to_owned(),
        };
        let bridge =
            |property, name: &str| InterfaceName::new(name).map_err(|_| unusable(property, name));
        let private = &network.private_network;
        let uplinks = network.candidates.iter().chain([&network.uplink]);
        let mut uplinks: Vec<_> = uplinks
            .filter_map(|name| InterfaceName::new(name).ok())
            .collect();
        uplinks.sort();
        uplinks.dedup();
        let address = network.address.split_once('/');
        Ok(Self {
            uplinks,
            address: address.and_then(|(address, _)| address.parse().ok()),
            public_bridge: bridge("public bridge", &network.public_bridge)?,
            private_bridge: bridge("private bridge", &network.private_bridge)?,
            private_network: private
                .parse()
                .map_err(|_| unusable("private network", private))?,
            public_network: network.address.parse::<Ipv4Net>().ok().map(|a| a.trunc()),
            dns: network
                .dns
                .iter()
                .filter_map(|server| server.parse().ok())
                .collect(),
            search_domains: network
                .search_domains
                .iter()
                .filter_map(|name| DomainName::try_from(name.clone()).ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            public_bridge: "br0".to_owned(),
            private_bridge: "br1".to_owned(),
            private_network: "172.23.0.1/16".to_owned(),
            online: true,
            uplink: "eth1".to_owned(),
            candidates: vec!["eth1".to_owned(), "eth0".to_owned()],
            address: "192.0.2.7/24".to_owned(),
            gateway: "192.0.2.254".to_owned(),
            dns: vec![
                "192.0.2.1".to_owned(),
                "nonsense".to_owned(),
                "2001:db8::1".to_owned(),
            ],
            search_domains: vec![
                "lan.example".to_owned(),
                "nonsense\nport=53".to_owned(),
                "example".to_owned(),
            ],
            ..Network::default()
        }
    }

    #[test]
    fn published_network_is_accepted() {
        let network = UplinkNetwork::try_from(&network()).unwrap();
        assert_eq!(network.public_bridge.as_str(), "br0");
        assert_eq!(network.private_network.to_string(), "172.23.0.1/16");
        assert_eq!(
            network.private_network.network().to_string(),
            "172.23.0.0/16"
        );
        let public_network = network.public_network.map(|net| net.to_string());
        assert_eq!(public_network.as_deref(), Some("192.0.2.0/24"));
        assert_eq!(network.dns.len(), 2);
        let search: Vec<_> = network
            .search_domains
            .iter()
            .map(DomainName::to_string)
            .collect();
        assert_eq!(search, ["lan.example", "example"]);
        let names: Vec<_> = network.uplinks.iter().map(InterfaceName::as_str).collect();
        assert_eq!(names, ["eth0", "eth1"]);
        assert_eq!(network.address, Some(Ipv4Addr::new(192, 0, 2, 7)));
        let gateway = Some(Ipv4Addr::new(192, 0, 2, 254));
        assert_eq!(network.uplink, Ok(Uplink { gateway }));
    }

    #[test]
    fn missing_uplink_has_netds_reason() {
        let network = Network {
            online: false,
            reason: "no carrier on eth0".to_owned(),
            ..network()
        };
        let network = UplinkNetwork::try_from(&network).unwrap();
        assert_eq!(network.uplink, Err("no carrier on eth0".to_owned()));
    }

    #[test]
    fn missing_private_network_is_an_error() {
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
    fn invalid_property_is_named_in_the_error() {
        let network = Network {
            private_bridge: "br1\nport=53".to_owned(),
            ..network()
        };
        assert_eq!(
            UplinkNetwork::try_from(&network).unwrap_err().to_string(),
            "buildos-netd published an invalid private bridge: \"br1\\nport=53\""
        );
    }
}
