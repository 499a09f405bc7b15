//! Builds rtnetlink messages from operations.

use std::net::{IpAddr, Ipv4Addr};

use buildos_dhcp::Instant;
use buildos_netlink::{RouteNetlinkMessage, bridge};
use buildos_types::{LinkIndex, MacAddress};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressMessage, AddressProtocol, CacheInfo,
};
use rtnetlink::packet_route::link::{BridgeStpState, InfoBridge, LinkAttribute};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVlan, RouteMessageBuilder};

use crate::observed::{Address, BridgeSettings, InstalledRoute};
use crate::uplink::path::NicVlan;

/// Mark of netd's addresses (`IFA_PROTO`): the number of `RTPROT_DHCP`, which marks its
/// routes. Both numbers are from the same registry (`/etc/iproute2/rt_protos`).
pub(super) const PROTOCOL: u8 = 16;
/// Mark of netd's links (`IFLA_GROUP`), the bytes "bos1": other programs have no reason to take
/// this number. Unlike an alias, the kernel sets it together with the creation.
pub(super) const OWN_GROUP: u32 = 0x626f_7331;
/// Unlimited lifetime of an address (`INFINITY_LIFE_TIME` of the kernel).
pub(super) const UNLIMITED: u32 = u32::MAX;

/// Returns the message that creates a bridge whose ports forward at once.
pub(super) fn new_bridge(name: &str, mac: MacAddress) -> RouteNetlinkMessage {
    let bridge = LinkMessageBuilder::<LinkBridge>::new(name)
        .address(mac.0.to_vec())
        .stp_state(BridgeStpState::Disabled)
        .forward_delay(BridgeSettings::FORWARD_AT_ONCE.forward_delay);
    RouteNetlinkMessage::NewLink(bridge.build())
}

/// Returns the message that creates a VLAN of a NIC, with netd's mark.
pub(super) fn new_vlan(vlan: &NicVlan) -> RouteNetlinkMessage {
    let link = LinkVlan::new(vlan.name.as_str(), vlan.nic.get(), vlan.id.get());
    let group = LinkAttribute::Group(OWN_GROUP);
    RouteNetlinkMessage::NewLink(link.append_extra_attribute(group).build())
}

/// Returns the message that removes a link.
pub(super) fn link_removal(index: LinkIndex) -> RouteNetlinkMessage {
    let builder = LinkUnspec::new_with_index(index.get());
    RouteNetlinkMessage::DelLink(builder.build())
}

/// Returns the messages that make the ports of a bridge forward at once, to be sent in
/// order: the kernel refuses the delay while spanning tree is on.
pub(super) fn bridge_settings(index: LinkIndex) -> [RouteNetlinkMessage; 2] {
    let delay = BridgeSettings::FORWARD_AT_ONCE.forward_delay;
    [
        InfoBridge::StpState(BridgeStpState::Disabled),
        InfoBridge::ForwardDelay(delay),
    ]
    .map(|setting| bridge::set(index, vec![setting]))
}

/// Returns the message that changes a link as `set` says.
pub(super) fn change(
    index: LinkIndex,
    set: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) -> RouteNetlinkMessage {
    let builder = LinkUnspec::new_with_index(index.get());
    RouteNetlinkMessage::SetLink(set(builder).build())
}

/// Returns the message that adds an address with its lifetime and netd's mark, or replaces
/// the lifetime.
pub(super) fn address(address: &Address, now: Instant) -> RouteNetlinkMessage {
    let mut message = bare_address(address);
    let ip = IpAddr::V4(address.net.addr());
    message.attributes.push(AddressAttribute::Address(ip));
    // Longer prefixes have no broadcast address (RFC 3021).
    if address.net.prefix_len() < 31 {
        let broadcast = AddressAttribute::Broadcast(address.net.broadcast());
        message.attributes.push(broadcast);
    }
    message.attributes.extend(lifetime_and_mark(address, now));
    RouteNetlinkMessage::NewAddress(message)
}

/// Returns the attributes of an added address: its lifetime and netd's mark.
fn lifetime_and_mark(address: &Address, now: Instant) -> [AddressAttribute; 2] {
    let valid = address
        .expires
        .map_or(UNLIMITED, |end| whole_seconds(end, now));
    let mut info = CacheInfo::default();
    info.ifa_valid = valid;
    info.ifa_preferred = valid;
    [
        AddressAttribute::CacheInfo(info),
        AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
    ]
}

/// Returns the seconds until `end`, rounded down: an address must not outlive its lease.
/// The kernel refuses 0.
fn whole_seconds(end: Instant, now: Instant) -> u32 {
    let left = end.saturating_sub(now).as_secs();
    u32::try_from(left)
        .unwrap_or(UNLIMITED)
        .clamp(1, UNLIMITED - 1)
}

/// Returns the message that removes an address.
pub(super) fn removal(address: &Address) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelAddress(bare_address(address))
}

fn bare_address(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = address.link.get();
    message.header.prefix_len = address.net.prefix_len();
    let ip = IpAddr::V4(address.net.addr());
    message.attributes.push(AddressAttribute::Local(ip));
    message
}

/// Returns a route of the main table, to be added or removed.
pub(super) fn route(installed: &InstalledRoute) -> RouteMessage {
    let route = &installed.route;
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.addr(), route.destination.prefix_len())
        .output_interface(installed.link.get())
        .protocol(RouteProtocol::Dhcp)
        .pref_source(installed.source)
        .priority(installed.metric);
    match route.gateway {
        Some(gateway) => builder = builder.gateway(gateway),
        None => builder = builder.scope(RouteScope::Link),
    }
    if route.onlink {
        builder = builder.onlink();
    }
    builder.build()
}
