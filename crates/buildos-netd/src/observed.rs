//! Defines the observed state, which netd reads from the kernel: links, addresses and
//! routes.
//!
//! Plain values: [`crate::kernel`] reads them, [`crate::plan`] compares them with
//! [`crate::desired`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use buildos_dhcp::Instant;
use buildos_types::{InterfaceName, LinkIndex, MacAddress, Route};
use ipnet::{Ipv4Net, Ipv6Net};

/// Name of the bridge that contains the uplink.
pub const PUBLIC_BRIDGE: &str = "br0";
/// Name of the bridge for machines behind NAT.
pub const PRIVATE_BRIDGE: &str = "br1";

/// The kernel's network configuration, as far as netd reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links, including those that netd does not configure.
    pub links: BTreeMap<LinkIndex, Link>,
    /// IPv4 addresses that carry netd's mark (`IFA_PROTO`).
    pub addresses: Vec<Address>,
    /// IPv4 routes of the main table that carry netd's mark (`RTA_PROTOCOL`).
    pub routes: Vec<InstalledRoute>,
    /// IPv4 addresses of other programs.
    pub other_addresses: Vec<(LinkIndex, Ipv4Net)>,
    /// An administrator disabled IPv6 (`net.ipv6.conf.all` or `default.disable_ipv6`).
    pub ipv6_disabled: bool,
    /// IPv6 addresses in use. The kernel configures them.
    pub ipv6: Vec<(LinkIndex, Ipv6Net)>,
}

/// A network interface (rtnetlink(7), `/sys/class/net`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index; a rename keeps it.
    pub index: LinkIndex,
    /// Name at the time of observation.
    pub name: InterfaceName,
    /// Hardware address; [`None`] unless it is an Ethernet address.
    pub mac: Option<MacAddress>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Largest MTU that the driver accepts (`IFLA_MAX_MTU`), if there is a limit.
    pub max_mtu: Option<u32>,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Carrier (`IFF_LOWER_UP`); meaningless unless [`Link::up`].
    pub carrier: bool,
    /// Number of losses of carrier so far (`IFLA_CARRIER_DOWN_COUNT`). It shows losses that
    /// were over before netd read the link.
    pub carrier_losses: u32,
    /// The bridge, bond, … of which the link is a port.
    pub controller: Option<LinkIndex>,
    /// Of hardware type `ARPHRD_ETHER`.
    pub ethernet: bool,
    /// `IFLA_INFO_KIND` (`bridge`, `veth`, …); [`None`] for hardware.
    pub kind: Option<String>,
    /// Backed by a device (`/sys/class/net/NAME/device` exists).
    pub device: bool,
    /// A virtual function of another NIC (SR-IOV).
    pub virtual_function: bool,
    /// A wireless interface.
    pub wireless: bool,
    /// The kernel configures IPv6 on it (`disable_ipv6` is 0); [`None`] if it cannot, as
    /// with an MTU below 1280.
    pub ipv6: Option<bool>,
    /// Answers ARP requests for addresses of other links (`arp_ignore` is 0).
    pub answers_arp: bool,
    /// Bridge settings; [`None`] unless it is a bridge.
    pub bridge: Option<BridgeSettings>,
    /// NIC and number; [`None`] unless it is a VLAN (IEEE 802.1Q) of a link.
    pub vlan: Option<Vlan>,
}

/// A VLAN, as which a link belongs to a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    /// The link that carries it.
    pub nic: LinkIndex,
    /// Number of the VLAN.
    pub id: u16,
    /// True if the link carries netd's mark (`IFLA_GROUP`).
    pub is_own: bool,
}

impl Link {
    /// Returns the VLAN if netd made the link.
    #[must_use]
    pub fn own_vlan(&self) -> Option<Vlan> {
        self.vlan.filter(|vlan| vlan.is_own)
    }
}

/// Settings of a bridge that delay traffic of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeSettings {
    /// Spanning tree protocol, which keeps a new port silent for twice the forward delay.
    pub stp: bool,
    /// Duration of each of the states listening and learning, in hundredths of a second.
    pub forward_delay: u32,
}

impl BridgeSettings {
    /// Settings of br0 and br1: ports forward at once.
    pub const FORWARD_AT_ONCE: Self = Self {
        stp: false,
        forward_delay: 0,
    };
}

/// An IPv4 address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link that has the address.
    pub link: LinkIndex,
    /// Address and prefix.
    pub net: Ipv4Net,
    /// End of its lifetime; [`None`] for an unlimited one.
    pub expires: Option<Instant>,
}

impl Address {
    /// Returns true if both differ at most in their lifetimes.
    #[must_use]
    pub fn is_same_apart_from_lifetime(&self, other: &Self) -> bool {
        (self.link, self.net) == (other.link, other.net)
    }
}

/// An IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledRoute {
    /// Output link.
    pub link: LinkIndex,
    /// Metric (`RTA_PRIORITY`).
    pub metric: u32,
    /// Destination and gateway.
    pub route: Route,
    /// Preferred source address.
    pub source: Ipv4Addr,
}

impl Observed {
    /// Replaces the lifetime of an address with that of `address`.
    pub fn set_lifetime(&mut self, address: &Address) {
        let mut addresses = self.addresses.iter_mut();
        let old = addresses.find(|other| other.is_same_apart_from_lifetime(address));
        if let Some(old) = old {
            old.expires = address.expires;
        }
    }

    /// Returns the bridge of that name.
    #[must_use]
    pub fn bridge(&self, name: &str) -> Option<&Link> {
        self.links
            .values()
            .find(|link| link.name == name && link.bridge.is_some())
    }

    /// Returns the link of a VLAN, also if another program made it.
    #[must_use]
    pub fn vlan(&self, nic: LinkIndex, id: u16) -> Option<&Link> {
        let is_it = |vlan: Vlan| (vlan.nic, vlan.id) == (nic, id);
        self.links
            .values()
            .find(|link| link.vlan.is_some_and(is_it))
    }

    /// Returns the NIC below a VLAN that netd made; for other links the link itself.
    #[must_use]
    pub fn nic_of(&self, link: LinkIndex) -> LinkIndex {
        let own = self.links.get(&link).and_then(Link::own_vlan);
        own.map_or(link, |vlan| vlan.nic)
    }

    /// Returns the ports of the bridge of that name.
    pub fn ports(&self, bridge: &str) -> impl Iterator<Item = &Link> {
        let index = self.bridge(bridge).map(|bridge| bridge.index);
        self.links
            .values()
            .filter(move |link| index.is_some() && link.controller == index)
    }
}
