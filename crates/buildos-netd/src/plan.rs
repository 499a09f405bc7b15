//! Computes the operations that lead from the observed to the desired state.
//!
//! [`plan()`] is pure. It returns operations for different parts only, in this order:
//!
//! | order | operations | reason |
//! |---|---|---|
//! | 1 | NICs: IPv6 and ARP off, MTU, up | hardware takes seconds to find its carrier; some loses it when the MTU changes |
//! | 2 | VLANs of NICs: remove, create, same as NICs | a VLAN is down while its NIC is |
//! | 3 | bridges: create, settings, port, up | a former uplink leaves br0 before the new one joins |
//! | 4 | routes, then addresses: remove | a route needs its source address |
//! | 5 | addresses, then routes: add | same |
//!
//! Operations on a bridge or a VLAN that does not exist yet follow in the next round
//! ([`crate::reconcile`]).
//!
//! # Limits
//!
//! Only VLANs, addresses and routes that carry netd's mark are removed. A restarted netd
//! recognises its own by the mark (`IFLA_GROUP`, `IFA_PROTO`, `RTA_PROTOCOL`).

use std::time::Duration;

use buildos_dhcp::Instant;
use buildos_types::{LinkIndex, MacAddress};

use crate::desired::Desired;
use crate::observed::{
    Address, BridgeSettings, InstalledRoute, Link, Observed, PRIVATE_BRIDGE, PUBLIC_BRIDGE,
};
use crate::uplink::path::NicVlan;

/// Hardware address of br1, locally administered. A bridge without a fixed address takes
/// the lowest of its ports' addresses, which changes as machines come and go.
pub const PRIVATE_MAC: MacAddress = MacAddress([0x02, 0x62, 0x6f, 0x73, 0x00, 0x01]);
/// Hardware address of br0 until it has a port. udev replaces a random address of a new
/// link at any time (systemd.link(5), `MACAddressPolicy=`), but not a fixed one.
const PORTLESS_MAC: MacAddress = MacAddress([0x02, 0x62, 0x6f, 0x73, 0x00, 0x00]);

/// Largest difference between two lifetimes that count as equal. The kernel counts
/// lifetimes in whole seconds.
const LIFETIME_TOLERANCE: Duration = Duration::from_secs(2);

/// One change of the kernel's network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Create a bridge with [`BridgeSettings::FORWARD_AT_ONCE`] and this hardware address.
    CreateBridge(&'static str, MacAddress),
    /// Create a VLAN of a NIC, with netd's mark.
    CreateVlan(NicVlan),
    /// Remove a VLAN that netd made.
    RemoveVlan(LinkIndex),
    /// Disable IPv6 on a NIC, and ARP replies for addresses of other links.
    DisableIpv6AndArp(LinkIndex),
    /// Disable IPv6 on a link.
    DisableIpv6(LinkIndex),
    /// Enable IPv6 and router advertisements on a link.
    EnableIpv6(LinkIndex),
    /// Apply [`BridgeSettings::FORWARD_AT_ONCE`] to a bridge.
    SetBridge(LinkIndex),
    /// Change the hardware address of a link.
    SetMac(LinkIndex, MacAddress),
    /// Change the MTU of a link.
    SetMtu(LinkIndex, u32),
    /// Set a link up.
    SetUp(LinkIndex),
    /// Remove a port from its bridge.
    Detach(LinkIndex),
    /// Add a port to a bridge.
    Attach {
        /// The link that becomes a port.
        port: LinkIndex,
        /// The bridge.
        bridge: LinkIndex,
    },
    /// Remove an address.
    RemoveAddress(Address),
    /// Add an address, or replace its lifetime in place.
    SetAddress(Address),
    /// Remove a route.
    RemoveRoute(InstalledRoute),
    /// Add a route.
    AddRoute(InstalledRoute),
}

/// Returns the operations of the next round; empty if the observed state is the desired one.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let public = observed.bridge(PUBLIC_BRIDGE);
    let private = observed.bridge(PRIVATE_BRIDGE);
    let mut ops = Vec::new();
    prepare_nics(desired, observed, &mut ops);
    prepare_vlans(desired, observed, &mut ops);
    match public {
        None => ops.push(Op::CreateBridge(PUBLIC_BRIDGE, PORTLESS_MAC)),
        Some(bridge) => public_bridge(desired, observed, bridge, &mut ops),
    }
    match private {
        None => ops.push(Op::CreateBridge(PRIVATE_BRIDGE, PRIVATE_MAC)),
        Some(bridge) => private_bridge(bridge, &mut ops),
    }
    let addresses = addresses(desired, public, private);
    let routes = routes(desired, public);
    remove_others(observed, &addresses, &routes, &mut ops);
    for address in addresses {
        let present = observed.addresses.iter().any(|other| {
            other.is_same_apart_from_lifetime(&address)
                && is_same_lifetime(other.expires, address.expires)
        });
        if !present {
            ops.push(Op::SetAddress(address));
        }
    }
    let missing = routes.into_iter().filter(|r| !observed.routes.contains(r));
    ops.extend(missing.map(Op::AddRoute));
    ops
}

/// Sets NICs up, with IPv6 and ARP for other links off. Both belong to br0: a default route
/// that a NIC learns leads nowhere once the NIC is a port, and a second NIC on br0's
/// network would attract br0's traffic.
fn prepare_nics(desired: &Desired, observed: &Observed, ops: &mut Vec<Op>) {
    let nics = desired.used_nics(observed);
    for link in nics.iter().filter_map(|i| observed.links.get(i)) {
        if link.ipv6 == Some(true) || link.answers_arp {
            ops.push(Op::DisableIpv6AndArp(link.index));
        }
        if let Some(mtu) = desired.nic_mtu(link).filter(|mtu| link.mtu != *mtu) {
            ops.push(Op::SetMtu(link.index, mtu));
        }
        if !link.up {
            ops.push(Op::SetUp(link.index));
        }
    }
}

/// Removes and creates VLANs, and sets up those that exist.
fn prepare_vlans(desired: &Desired, observed: &Observed, ops: &mut Vec<Op>) {
    let own = |link: &Link| Some((link.index, link.own_vlan()?));
    for (index, vlan) in observed.links.values().filter_map(own) {
        let mut needed = desired.vlans.iter();
        if !needed.any(|needed| (needed.nic, needed.id.get()) == (vlan.nic, vlan.id)) {
            ops.push(Op::RemoveVlan(index));
        }
    }
    for vlan in &desired.vlans {
        let nic = observed.links.get(&vlan.nic);
        let Some(link) = observed.vlan(vlan.nic, vlan.id.get()) else {
            ops.push(Op::CreateVlan(vlan.clone()));
            continue;
        };
        if link.ipv6 == Some(true) || link.answers_arp {
            ops.push(Op::DisableIpv6AndArp(link.index));
        }
        let Some(nic) = nic.filter(|nic| nic.up) else {
            continue;
        };
        if link.mtu != nic.mtu {
            ops.push(Op::SetMtu(link.index, nic.mtu));
        }
        if !link.up {
            ops.push(Op::SetUp(link.index));
        }
    }
}

fn private_bridge(bridge: &Link, ops: &mut Vec<Op>) {
    if bridge.bridge != Some(BridgeSettings::FORWARD_AT_ONCE) {
        ops.push(Op::SetBridge(bridge.index));
    }
    if bridge.mac != Some(PRIVATE_MAC) {
        ops.push(Op::SetMac(bridge.index, PRIVATE_MAC));
    }
    if !bridge.up {
        ops.push(Op::SetUp(bridge.index));
    }
}

/// Configures br0, its port, and the properties that br0 takes over from the port.
fn public_bridge(desired: &Desired, observed: &Observed, bridge: &Link, ops: &mut Vec<Op>) {
    if bridge.bridge != Some(BridgeSettings::FORWARD_AT_ONCE) {
        ops.push(Op::SetBridge(bridge.index));
    }
    detach_former_uplinks(desired, observed, bridge, ops);
    let uplink = desired.uplink.and_then(|index| observed.links.get(&index));
    let mac = uplink.and_then(|link| desired.mac.or(link.mac));
    let other_mac = mac.is_some() && mac != bridge.mac;
    // The kernel derives the link-local address from the hardware address at the time when
    // br0 goes up, and keeps it. Therefore IPv6 is off until br0 has its final address.
    let mut ipv6 = bridge.ipv6;
    let is_early = other_mac || (uplink.is_none() && !bridge.up);
    if ipv6 == Some(true) && (is_early || !desired.ipv6) {
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
    let mtu = public_mtu(desired, uplink);
    if bridge.mtu != mtu {
        ops.push(Op::SetMtu(bridge.index, mtu));
    }
    if ipv6 == Some(false) && desired.ipv6 && !observed.ipv6_disabled {
        ops.push(Op::EnableIpv6(bridge.index));
    }
}

/// Returns the MTU of br0. A bridge drops packets that are larger than the MTU of the port.
fn public_mtu(desired: &Desired, uplink: &Link) -> u32 {
    let leased = desired.lease.as_ref().and_then(|lease| lease.mtu);
    let limits = [desired.mtu.or(leased), desired.other_ports_mtu];
    let limits = limits.into_iter().flatten();
    limits.chain([uplink.mtu]).min().unwrap_or(uplink.mtu)
}

/// Detaches NICs that are not the uplink. Two NICs on one network in a bridge without
/// spanning tree form a loop. Without an uplink, a former uplink stays in br0 while it is
/// a candidate. Ports that are not NICs, such as containers of bslave, are left alone.
fn detach_former_uplinks(desired: &Desired, observed: &Observed, br0: &Link, ops: &mut Vec<Op>) {
    let former = observed.links.values().filter(|link| {
        desired.nics.contains(&link.index)
            && link.controller == Some(br0.index)
            && desired.uplink != Some(link.index)
            && (desired.uplink.is_some() || !desired.up.contains(&link.index))
    });
    ops.extend(former.map(|link| Op::Detach(link.index)));
}

/// Removes routes and addresses that carry netd's mark and are not desired.
fn remove_others(
    observed: &Observed,
    addresses: &[Address],
    routes: &[InstalledRoute],
    ops: &mut Vec<Op>,
) {
    let other_routes = observed.routes.iter().filter(|r| !routes.contains(r));
    ops.extend(other_routes.cloned().map(Op::RemoveRoute));
    let is_desired = |address: &&Address| {
        addresses
            .iter()
            .any(|desired| desired.is_same_apart_from_lifetime(address))
    };
    let other_addresses = observed.addresses.iter().filter(|a| !is_desired(a));
    ops.extend(other_addresses.cloned().map(Op::RemoveAddress));
}

fn addresses(desired: &Desired, public: Option<&Link>, private: Option<&Link>) -> Vec<Address> {
    let leased = public
        .zip(desired.lease.as_ref())
        .map(|(bridge, lease)| Address {
            link: bridge.index,
            net: lease.net,
            expires: lease.expires,
        });
    let own = private.zip(desired.private).map(|(bridge, net)| Address {
        link: bridge.index,
        net,
        expires: None,
    });
    leased.into_iter().chain(own).collect()
}

fn routes(desired: &Desired, public: Option<&Link>) -> Vec<InstalledRoute> {
    let Some((bridge, lease)) = public.zip(desired.lease.as_ref()) else {
        return Vec::new();
    };
    let mut routes: Vec<InstalledRoute> = Vec::new();
    for route in &lease.routes {
        let mut route = route.clone();
        route.destination = route.destination.trunc();
        let is_duplicate = |other: &InstalledRoute| other.route.destination == route.destination;
        // The kernel holds one route per destination and metric. A lease lists the preferred
        // gateway first (RFC 2132, section 3.5).
        if !routes.iter().any(is_duplicate) {
            routes.push(InstalledRoute {
                link: bridge.index,
                metric: desired.metric,
                route,
                source: lease.net.addr(),
            });
        }
    }
    routes
}

fn is_same_lifetime(a: Option<Instant>, b: Option<Instant>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.abs_diff(b) <= LIFETIME_TOLERANCE,
        (None, Some(_)) | (Some(_), None) => false,
    }
}

impl Op {
    /// Returns true for the removal of a port of br0.
    #[must_use]
    pub fn is_detach(&self) -> bool {
        matches!(self, Self::Detach(_) | Self::RemoveVlan(_))
    }

    /// Returns the address of an operation that only replaces its lifetime.
    #[must_use]
    pub fn only_lifetime(&self, observed: &Observed) -> Option<&Address> {
        let Self::SetAddress(address) = self else {
            return None;
        };
        let mut addresses = observed.addresses.iter();
        let is_present = addresses.any(|other| other.is_same_apart_from_lifetime(address));
        is_present.then_some(address)
    }

    /// Returns true if the operation only changes a lifetime, by at most the rounding of
    /// two renewals in a row. Such an operation is not a repair.
    #[must_use]
    pub fn only_rounds(&self, observed: &Observed) -> bool {
        let Self::SetAddress(address) = self else {
            return false;
        };
        observed
            .addresses
            .iter()
            .filter(|other| other.is_same_apart_from_lifetime(address))
            .filter_map(|other| other.expires.zip(address.expires))
            .any(|(a, b)| a.abs_diff(b) <= 2 * LIFETIME_TOLERANCE)
    }

    /// Returns a description that completes "cannot …".
    #[must_use]
    pub fn describe(&self, observed: &Observed) -> String {
        let link = |index: &LinkIndex| match observed.links.get(index) {
            Some(link) => link.name.to_string(),
            None => format!("link {index}"),
        };
        match self {
            Self::CreateBridge(name, _) => {
                let mut links = observed.links.values();
                match links.any(|link| link.name == *name) {
                    true => format!(
                        "create bridge {name}: a link with this name exists that is not a bridge"
                    ),
                    false => format!("create bridge {name}"),
                }
            }
            Self::CreateVlan(NicVlan { nic, id, name }) => {
                let mut links = observed.links.values();
                let taken = match links.any(|link| link.name == *name) {
                    true => ": a different link has this name",
                    false => "",
                };
                format!("create VLAN {id} of {} as {name}{taken}", link(nic))
            }
            Self::RemoveVlan(i) => format!("remove VLAN {}", link(i)),
            Self::DisableIpv6AndArp(i) => {
                format!("disable IPv6 and ARP for other links on {}", link(i))
            }
            Self::DisableIpv6(i) => format!("disable IPv6 on {}", link(i)),
            Self::EnableIpv6(i) => format!("enable IPv6 on {}", link(i)),
            Self::SetBridge(i) => format!("disable spanning tree on {}", link(i)),
            Self::SetMac(i, mac) => format!("set the hardware address of {} to {mac}", link(i)),
            Self::SetMtu(i, mtu) => format!("set the MTU of {} to {mtu}", link(i)),
            Self::SetUp(i) => format!("set {} up", link(i)),
            Self::Detach(i) => format!("detach {} from its bridge", link(i)),
            Self::Attach { port, bridge } => {
                format!("attach {} to bridge {}", link(port), link(bridge))
            }
            Self::SetAddress(a) => format!("set address {} on {}", a.net, link(&a.link)),
            Self::RemoveAddress(a) => format!("remove address {} from {}", a.net, link(&a.link)),
            Self::AddRoute(r) => {
                format!(
                    "add the route to {} on {}",
                    r.route.destination,
                    link(&r.link)
                )
            }
            Self::RemoveRoute(r) => {
                format!(
                    "remove the route to {} on {}",
                    r.route.destination,
                    link(&r.link)
                )
            }
        }
    }
}
