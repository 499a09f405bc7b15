//! `org.build2.buildos.network1` of buildos-netd: the uplink, its lease and the two
//! bridges.

use std::collections::HashMap;

use serde::Deserialize;
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Type, as_value};

use crate::string_enum::string_enum;
use crate::watch::{Snapshot, Watch};

/// Bus name of buildos-netd.
pub const NAME: &str = "org.build2.buildos.network1";
/// Object that serves [`ManagerProxy`].
pub const PATH: &str = "/org/build2/buildos/network1";
/// Parent of the link objects; the last element is the interface index.
pub const LINK_PREFIX: &str = "/org/build2/buildos/network1/link";

string_enum! {
    /// State of the host's network.
    State("network1 state") {
        /// No candidate NIC has carrier.
        NoCarrier = "no-carrier",
        /// At least one NIC has carrier, but there is no lease yet, or the lease was
        /// lost.
        Acquiring = "acquiring",
        /// br0 has a port and a valid lease, which has a default route unless
        /// `online_requires` is `lease`.
        Online = "online",
        /// br0 has a port and a valid lease, but the lease has no default route.
        NoDefaultRoute = "no-default-route",
        /// br0 has a valid lease, but its port has lost carrier.
        CarrierLost = "carrier-lost",
    }
}

string_enum! {
    /// Whether the gateway answers ARP.
    Reachability("network1 gateway reachability") {
        /// Not asked yet, or it never answered.
        Unknown = "unknown",
        /// Answers.
        Reachable = "reachable",
        /// Answered before, and does not any more.
        Unreachable = "unreachable",
    }
}

string_enum! {
    /// Origin of the address of br0.
    AddressOrigin("network1 address origin") {
        /// A lease.
        Lease = "lease",
        /// A lease that expired, with `keep_expired`.
        ExpiredLease = "expired-lease",
        /// The configuration (`static`, `boot_address`, `ip=`).
        Static = "static",
    }
}

string_enum! {
    /// Role of a link.
    LinkRole("network1 link role") {
        /// netd does not use it; the link's reason says why.
        Ignored = "ignored",
        /// May become the uplink.
        Candidate = "candidate",
        /// The port of br0 that carries the lease.
        Uplink = "uplink",
        /// Carries a VLAN that is the uplink or may become it.
        Nic = "nic",
        /// One of the two bridges.
        Bridge = "bridge",
    }
}

/// Uplink, lease, bridges.
#[zbus::proxy(
    interface = "org.build2.buildos.network1.Manager",
    default_service = "org.build2.buildos.network1",
    default_path = "/org/build2/buildos/network1",
    gen_blocking = false
)]
pub trait Manager {
    /// Asks the DHCP server to extend the lease now.
    fn renew(&self) -> zbus::Result<()>;
    /// Reads the configuration again and applies what changed.
    fn reconfigure(&self) -> zbus::Result<()>;

    /// A [`State`].
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// One line for operators: what is configured, or what netd waits for.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// True in the state `online`.
    #[zbus(property)]
    fn online(&self) -> zbus::Result<bool>;
    /// True if br0 has a lease that a better one on another NIC would replace.
    #[zbus(property)]
    fn provisional(&self) -> zbus::Result<bool>;
    /// Name of the NIC, or of its VLAN, in br0, or empty.
    #[zbus(property)]
    fn uplink(&self) -> zbus::Result<String>;
    /// MAC address of br0 (`aa:bb:cc:dd:ee:ff`): that of the NIC that the lease was granted
    /// on. Empty without an uplink.
    #[zbus(property)]
    fn uplink_address(&self) -> zbus::Result<String>;
    /// Device and port at the other end of the uplink's cable by LLDP (`sw1 port 12`), escaped, or
    /// empty.
    #[zbus(property)]
    fn uplink_neighbour(&self) -> zbus::Result<String>;
    /// Names of the NICs and VLANs that can become the uplink, including the uplink.
    #[zbus(property)]
    fn candidates(&self) -> zbus::Result<Vec<String>>;
    /// Name of the public bridge, `br0`.
    #[zbus(property)]
    fn public_bridge(&self) -> zbus::Result<String>;
    /// Name of the private bridge, `br1`.
    #[zbus(property)]
    fn private_bridge(&self) -> zbus::Result<String>;
    /// Address of the host on the private bridge with its prefix
    /// (`172.23.0.1/16`), or empty while br1 has none.
    #[zbus(property)]
    fn private_network(&self) -> zbus::Result<String>;
    /// Leased address with its prefix (`192.0.2.7/24`), or empty.
    #[zbus(property)]
    fn address(&self) -> zbus::Result<String>;
    /// Where the address is from, an [`AddressOrigin`]; empty without an address.
    #[zbus(property)]
    fn address_origin(&self) -> zbus::Result<String>;
    /// Default gateway, or empty.
    #[zbus(property)]
    fn gateway(&self) -> zbus::Result<String>;
    /// Whether the gateway answers ARP, a [`Reachability`]; empty without a gateway.
    #[zbus(property)]
    fn gateway_reachability(&self) -> zbus::Result<String>;
    /// Name servers of the lease, in its order.
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> zbus::Result<Vec<String>>;
    /// Search domains of the lease, options 119 and 15.
    #[zbus(property)]
    fn search_domains(&self) -> zbus::Result<Vec<String>>;
    /// NTP servers of the lease.
    #[zbus(property, name = "NTP")]
    fn ntp(&self) -> zbus::Result<Vec<String>>;
    /// Host name of the lease (option 12) as received but escaped, or empty.
    #[zbus(property)]
    fn hostname(&self) -> zbus::Result<String>;
    /// Fully qualified name of the lease (option 81) as received but escaped, or empty.
    #[zbus(property, name = "FQDN")]
    fn fqdn(&self) -> zbus::Result<String>;
    /// The lease: `Address`, `PrefixLength`, `Server`, its length as `LeaseSeconds`, the
    /// times `AcquiredUSec`, `RenewUSec` (T1), `RebindUSec` (T2) and `ExpiresUSec`
    /// (CLOCK_REALTIME; absent for an unlimited lease), and `Option1` … as received.
    #[zbus(property)]
    fn lease(&self) -> zbus::Result<HashMap<String, OwnedValue>>;
    /// IPv6 addresses of br0 with their prefixes, link-local ones included. The
    /// kernel configures them by router advertisements.
    #[zbus(property, name = "IPv6Addresses")]
    fn ipv6_addresses(&self) -> zbus::Result<Vec<String>>;
    /// Names of the ports of br0: the uplink, and ports of other programs.
    #[zbus(property)]
    fn public_ports(&self) -> zbus::Result<Vec<String>>;
    /// Names of the ports of br1.
    #[zbus(property)]
    fn private_ports(&self) -> zbus::Result<Vec<String>>;
    /// Objects of the links, see [`LinkProxy`].
    #[zbus(property)]
    fn links(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
    /// Errors in the configuration, one line each; empty if there are none.
    #[zbus(property)]
    fn configuration_problems(&self) -> zbus::Result<Vec<String>>;
}

/// One link that netd observes.
#[zbus::proxy(
    interface = "org.build2.buildos.network1.Link",
    default_service = "org.build2.buildos.network1",
    gen_blocking = false
)]
pub trait Link {
    /// Kernel name of the link.
    #[zbus(property)]
    fn name(&self) -> zbus::Result<String>;
    /// Kernel index of the link.
    #[zbus(property)]
    fn index(&self) -> zbus::Result<u32>;
    /// MAC address.
    #[zbus(property)]
    fn hardware_address(&self) -> zbus::Result<String>;
    /// True if the link has carrier.
    #[zbus(property)]
    fn carrier(&self) -> zbus::Result<bool>;
    /// A [`LinkRole`].
    #[zbus(property)]
    fn role(&self) -> zbus::Result<String>;
    /// RFC 2131 state of the DHCP client on this link (`SELECTING`), or empty.
    #[zbus(property, name = "DHCPState")]
    fn dhcp_state(&self) -> zbus::Result<String>;
    /// One line for operators: why the link is in this role and state.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// Number of the VLAN, if netd made the link for one; otherwise 0.
    #[zbus(property, name = "VLAN")]
    fn vlan(&self) -> zbus::Result<u16>;
    /// Name of the NIC of that VLAN, or empty.
    #[zbus(property, name = "VLANParent")]
    fn vlan_parent(&self) -> zbus::Result<String>;
    /// Device at the other end of the cable by LLDP, escaped, or empty.
    #[zbus(property)]
    fn neighbour_system(&self) -> zbus::Result<String>;
    /// Its port, escaped, or empty.
    #[zbus(property)]
    fn neighbour_port(&self) -> zbus::Result<String>;
    /// VLAN of frames without a tag on that port; 0 if the device does not say.
    #[zbus(property, name = "NeighbourUntaggedVLAN")]
    fn neighbour_untagged_vlan(&self) -> zbus::Result<u16>;
    /// VLANs of frames with a tag on that port, in ascending order, 16 at most.
    #[zbus(property, name = "NeighbourTaggedVLANs")]
    fn neighbour_tagged_vlans(&self) -> zbus::Result<Vec<u16>>;
}

/// Properties of [`ManagerProxy`] that other daemons use, read in one call.
/// A property that another version of netd does not send has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
pub struct Network {
    /// A [`State`], or empty.
    #[serde(with = "as_value")]
    pub state: String,
    /// One line for operators.
    #[serde(with = "as_value")]
    pub reason: String,
    /// True in the state `online`.
    #[serde(with = "as_value")]
    pub online: bool,
    /// Name of the NIC, or of its VLAN, in br0, or empty.
    #[serde(with = "as_value")]
    pub uplink: String,
    /// MAC address of br0, or empty.
    #[serde(with = "as_value")]
    pub uplink_address: String,
    /// Names of the NICs and VLANs that can become the uplink.
    #[serde(with = "as_value")]
    pub candidates: Vec<String>,
    /// Name of the public bridge.
    #[serde(with = "as_value")]
    pub public_bridge: String,
    /// Name of the private bridge.
    #[serde(with = "as_value")]
    pub private_bridge: String,
    /// Address of the host on the private bridge with its prefix, or empty.
    #[serde(with = "as_value")]
    pub private_network: String,
    /// Leased address with its prefix, or empty.
    #[serde(with = "as_value")]
    pub address: String,
    /// Default gateway, or empty.
    #[serde(with = "as_value")]
    pub gateway: String,
    /// Name servers of the lease.
    #[serde(rename = "DNS", with = "as_value")]
    pub dns: Vec<String>,
    /// Search domains of the lease.
    #[serde(with = "as_value")]
    pub search_domains: Vec<String>,
    /// Host name of the lease, escaped, or empty.
    #[serde(with = "as_value")]
    pub hostname: String,
    /// Fully qualified name of the lease, escaped, or empty.
    #[serde(rename = "FQDN", with = "as_value")]
    pub fqdn: String,
}

impl Snapshot for Network {
    const INTERFACE: &'static str = "org.build2.buildos.network1.Manager";
    const CACHED: bool = true;
}

/// Follows netd.
///
/// # Errors
///
/// As [`Watch::new`].
pub async fn watch(connection: &zbus::Connection) -> zbus::Result<Watch<Network>> {
    Watch::new(connection, NAME, PATH).await
}
