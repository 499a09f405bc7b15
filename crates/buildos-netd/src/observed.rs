//! Links as the kernel shows them (rtnetlink(7), `/sys/class/net`).

use buildos_types::MacAddress;

/// One network interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Kernel index; stays when the link is renamed.
    pub index: u32,
    /// Kernel name.
    pub name: String,
    /// Hardware address, if it is an Ethernet one.
    pub mac: Option<MacAddress>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// `IFF_LOWER_UP`; only meaningful while [`Link::up`].
    pub carrier: bool,
    /// Index of the bridge (or bond, …) that the link is a port of.
    pub controller: Option<u32>,
    /// `ARPHRD_ETHER`.
    pub ethernet: bool,
    /// `IFLA_INFO_KIND` (`bridge`, `veth`, …); hardware has none.
    pub kind: Option<String>,
    /// Whether a device stands behind it (`/sys/class/net/NAME/device`).
    pub device: bool,
    /// Whether it is a radio.
    pub wireless: bool,
    /// Whether the kernel configures IPv6 on it (`disable_ipv6` is 0); none where it
    /// cannot, as below an MTU of 1280.
    pub ipv6: Option<bool>,
    /// Whether it answers ARP for addresses of other links (`arp_ignore` is 0).
    pub answers_arp: bool,
    /// Bridge settings, if it is a bridge.
    pub bridge: Option<BridgeSettings>,
}

/// What matters of a bridge's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeSettings {
    /// Spanning tree protocol. With it a port is silent for half a minute.
    pub stp: bool,
    /// Time in each of listening and learning, in hundredths of a second.
    pub forward_delay: u32,
}

impl BridgeSettings {
    /// What br0 and br1 have: ports forward at once.
    pub const OURS: Self = Self {
        stp: false,
        forward_delay: 0,
    };
}
