//! The difference between what should be and what is.
//!
//! [`Wish`] and [`Observed`] are values; [`plan()`] lists the operations that
//! lead from one to the other, removals first. Operations on a bridge that
//! does not exist yet come in the next round: the loop is observe, plan, apply,
//! and again until there is nothing left to do. What is already right is not
//! touched, and what is not ours is not looked at: our addresses and routes
//! carry a protocol number (`IFA_PROTO`, `RTA_PROTOCOL`), so that a netd that was
//! killed finds them again.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::Instant;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::desired::Wish;
use crate::mac::MacAddress;
use crate::observed::{BridgeSettings, Link};

/// Name of the bridge that contains the uplink.
pub const PUBLIC_BRIDGE: &str = "br0";
/// Name of the bridge for machines behind NAT.
pub const PRIVATE_BRIDGE: &str = "br1";

/// Hardware address of br1, locally administered. Without one of its own a
/// bridge takes the lowest of its ports' and changes it as machines come and go.
pub const PRIVATE_MAC: MacAddress = MacAddress([0x02, 0x62, 0x6f, 0x73, 0x00, 0x01]);
/// Hardware address of br0 until it has a port. udev gives another one to a link
/// that was made without (systemd.link(5), `MACAddressPolicy=`), at any time.
const PORTLESS_MAC: MacAddress = MacAddress([0x02, 0x62, 0x6f, 0x73, 0x00, 0x00]);

/// The kernel counts lifetimes in whole seconds; that much difference is rounding and
/// delay.
const LIFETIME_TOLERANCE: Duration = Duration::from_secs(2);

/// What the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// By index.
    pub links: BTreeMap<u32, Link>,
    /// IPv4 addresses that carry our mark.
    pub addresses: Vec<Address>,
    /// IPv4 routes of the main table that carry our mark.
    pub routes: Vec<Route>,
    /// IPv6 addresses in use, by index of their link. The kernel configures them.
    pub ipv6: Vec<(u32, Ipv6Net)>,
}

/// An IPv4 address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// Address and prefix.
    pub net: Ipv4Net,
    /// When its lifetime ends; none for never.
    pub expires: Option<Instant>,
}

/// An IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Index of the link it leaves by.
    pub link: u32,
    /// Where it leads.
    pub destination: Ipv4Net,
    /// Next hop; none for what is on the link itself.
    pub gateway: Option<Ipv4Addr>,
    /// The gateway is on the link although no address says so.
    pub onlink: bool,
    /// Preferred source address.
    pub source: Ipv4Addr,
}

/// One change to the kernel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Create a bridge with [`BridgeSettings::OURS`] and this hardware address.
    CreateBridge(&'static str, MacAddress),
    /// Keep the kernel from having IPv6 on a NIC, and from answering ARP there for
    /// addresses of other links.
    Silence(u32),
    /// Keep the kernel from having IPv6 on a link.
    DisableIpv6(u32),
    /// Have the kernel configure IPv6 on a link by router advertisements.
    EnableIpv6(u32),
    /// Give a bridge [`BridgeSettings::OURS`].
    SetBridge(u32),
    /// Change the hardware address of a link.
    SetMac(u32, MacAddress),
    /// Change the MTU of a link.
    SetMtu(u32, u32),
    /// Set a link up.
    SetUp(u32),
    /// Take a port out of its bridge.
    Detach(u32),
    /// Put a link into a bridge.
    Attach {
        /// The link.
        port: u32,
        /// The bridge.
        bridge: u32,
    },
    /// Remove an address.
    RemoveAddress(Address),
    /// Add an address, or renew its lifetime in place.
    SetAddress(Address),
    /// Remove a route.
    RemoveRoute(Route),
    /// Add a route.
    AddRoute(Route),
}

/// The operations that bring what is closer to what should be; none when it is there.
#[must_use]
pub fn plan(wish: &Wish, observed: &Observed) -> Vec<Op> {
    let public = observed.bridge(PUBLIC_BRIDGE);
    let private = observed.bridge(PRIVATE_BRIDGE);
    let mut ops = Vec::new();
    // First, as real hardware takes seconds to find its carrier.
    for link in wish.up.iter().filter_map(|index| observed.links.get(index)) {
        if link.ipv6 == Some(true) || link.answers_arp {
            // Both are br0's. A default route that a NIC learned by itself would
            // lead nowhere once it is a port, and a second NIC on br0's network
            // would draw br0's traffic to itself.
            ops.push(Op::Silence(link.index));
        }
        if !link.up {
            ops.push(Op::SetUp(link.index));
        }
    }
    match public {
        None => ops.push(Op::CreateBridge(PUBLIC_BRIDGE, PORTLESS_MAC)),
        Some(bridge) => public_bridge(wish, observed, bridge, &mut ops),
    }
    match private {
        None => ops.push(Op::CreateBridge(PRIVATE_BRIDGE, PRIVATE_MAC)),
        Some(bridge) => private_bridge(bridge, &mut ops),
    }
    let wanted = addresses(wish, public, private);
    let routes = routes(wish, public);
    ops.extend(
        observed
            .routes
            .iter()
            .filter(|r| !routes.contains(r))
            .cloned()
            .map(Op::RemoveRoute),
    );
    for address in &observed.addresses {
        if !wanted
            .iter()
            .any(|w| w.link == address.link && w.net == address.net)
        {
            ops.push(Op::RemoveAddress(address.clone()));
        }
    }
    for address in wanted {
        let present = observed.addresses.iter().any(|a| {
            a.link == address.link
                && a.net == address.net
                && same_lifetime(a.expires, address.expires)
        });
        if !present {
            ops.push(Op::SetAddress(address));
        }
    }
    ops.extend(
        routes
            .into_iter()
            .filter(|r| !observed.routes.contains(r))
            .map(Op::AddRoute),
    );
    ops
}

fn private_bridge(bridge: &Link, ops: &mut Vec<Op>) {
    if bridge.bridge != Some(BridgeSettings::OURS) {
        ops.push(Op::SetBridge(bridge.index));
    }
    if bridge.mac != Some(PRIVATE_MAC) {
        ops.push(Op::SetMac(bridge.index, PRIVATE_MAC));
    }
    if !bridge.up {
        ops.push(Op::SetUp(bridge.index));
    }
}

/// br0, its port, and what it takes over from it.
fn public_bridge(wish: &Wish, observed: &Observed, bridge: &Link, ops: &mut Vec<Op>) {
    if bridge.bridge != Some(BridgeSettings::OURS) {
        ops.push(Op::SetBridge(bridge.index));
    }
    // A former uplink goes out before the new one comes in: two NICs on one
    // network in a bridge without spanning tree are a loop. One that is no
    // candidate any more goes out at once. Other ports, such as containers of
    // bslave, belong to somebody else.
    let former = observed.links.values().filter(|link| {
        wish.nics.contains(&link.index)
            && link.controller == Some(bridge.index)
            && wish.uplink != Some(link.index)
            && (wish.uplink.is_some() || !wish.up.contains(&link.index))
    });
    ops.extend(former.map(|link| Op::Detach(link.index)));
    let uplink = wish.uplink.and_then(|index| observed.links.get(&index));
    let mac = uplink.and_then(|link| link.mac);
    let other_mac = mac.is_some() && mac != bridge.mac;
    // The kernel makes the link-local address of the hardware address that br0 has
    // when it goes up, and keeps it. So there is no IPv6 on br0 before it has the
    // hardware address of its port.
    let mut ipv6 = bridge.ipv6;
    if ipv6 == Some(true) && (other_mac || (uplink.is_none() && !bridge.up)) {
        ops.push(Op::DisableIpv6(bridge.index));
        ipv6 = Some(false);
    }
    if let Some(mac) = mac.filter(|_| other_mac) {
        ops.push(Op::SetMac(bridge.index, mac));
    }
    if !bridge.up {
        ops.push(Op::SetUp(bridge.index));
    }
    let Some(uplink) = uplink else { return };
    if uplink.controller != Some(bridge.index) {
        ops.push(Op::Attach {
            port: uplink.index,
            bridge: bridge.index,
        });
    }
    let mtu = wish
        .lease
        .as_ref()
        .and_then(|lease| lease.mtu)
        .unwrap_or(uplink.mtu)
        .min(uplink.mtu);
    if bridge.mtu != mtu {
        ops.push(Op::SetMtu(bridge.index, mtu));
    }
    if ipv6 == Some(false) {
        ops.push(Op::EnableIpv6(bridge.index));
    }
}

fn addresses(wish: &Wish, public: Option<&Link>, private: Option<&Link>) -> Vec<Address> {
    let leased = public
        .zip(wish.lease.as_ref())
        .map(|(bridge, lease)| Address {
            link: bridge.index,
            net: lease.net,
            expires: lease.expires,
        });
    let own = private.zip(wish.private).map(|(bridge, net)| Address {
        link: bridge.index,
        net,
        expires: None,
    });
    leased.into_iter().chain(own).collect()
}

fn routes(wish: &Wish, public: Option<&Link>) -> Vec<Route> {
    let Some((bridge, lease)) = public.zip(wish.lease.as_ref()) else {
        return Vec::new();
    };
    let mut routes = Vec::new();
    for &(destination, gateway, onlink) in &lease.routes {
        let route = Route {
            link: bridge.index,
            destination: destination.trunc(),
            gateway,
            onlink,
            source: lease.net.addr(),
        };
        // The kernel holds one route of a metric per destination; the lease
        // names the better ones first.
        if !routes
            .iter()
            .any(|r: &Route| r.destination == route.destination)
        {
            routes.push(route);
        }
    }
    routes
}

fn same_lifetime(a: Option<Instant>, b: Option<Instant>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.abs_diff(b) <= LIFETIME_TOLERANCE,
        (None, Some(_)) | (Some(_), None) => false,
    }
}

impl Observed {
    /// The bridge of that name.
    #[must_use]
    pub fn bridge(&self, name: &str) -> Option<&Link> {
        self.links
            .values()
            .find(|link| link.name == name && link.bridge.is_some())
    }
}

impl Op {
    /// Whether it moves the end of an address by no more than the rounding of lifetimes
    /// makes of two renewals in a row: nobody has undone anything then.
    #[must_use]
    pub fn only_rounds(&self, observed: &Observed) -> bool {
        let Self::SetAddress(address) = self else {
            return false;
        };
        observed
            .addresses
            .iter()
            .filter(|a| a.link == address.link && a.net == address.net)
            .filter_map(|a| a.expires.zip(address.expires))
            .any(|(a, b)| a.abs_diff(b) <= 2 * LIFETIME_TOLERANCE)
    }

    /// What it does, in words that follow "cannot" or "put back:".
    #[must_use]
    pub fn describe(&self, observed: &Observed) -> String {
        let link = |index: &u32| match observed.links.get(index) {
            Some(link) => link.name.clone(),
            None => format!("link {index}"),
        };
        match self {
            Self::CreateBridge(name, _) => format!("create bridge {name}"),
            Self::Silence(i) => format!("keep {} from IPv6 and ARP of its own", link(i)),
            Self::DisableIpv6(i) => format!("switch IPv6 off on {}", link(i)),
            Self::EnableIpv6(i) => format!("switch IPv6 on on {}", link(i)),
            Self::SetBridge(i) => format!("switch spanning tree off on {}", link(i)),
            Self::SetMac(i, mac) => format!("give {} the hardware address {mac}", link(i)),
            Self::SetMtu(i, mtu) => format!("set the MTU of {} to {mtu}", link(i)),
            Self::SetUp(i) => format!("set {} up", link(i)),
            Self::Detach(i) => format!("take {} out of its bridge", link(i)),
            Self::Attach { port, bridge } => {
                format!("put {} into bridge {}", link(port), link(bridge))
            }
            Self::SetAddress(a) => format!("set address {} on {}", a.net, link(&a.link)),
            Self::RemoveAddress(a) => format!("remove address {} from {}", a.net, link(&a.link)),
            Self::AddRoute(r) => format!("add the route to {} by {}", r.destination, link(&r.link)),
            Self::RemoveRoute(r) => {
                format!("remove the route to {} by {}", r.destination, link(&r.link))
            }
        }
    }
}
