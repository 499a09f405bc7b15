//! Builds rtnetlink messages from operations.

use std::net::{IpAddr, Ipv4Addr};

use buildos_dhcp::Instant;
use buildos_types::{LinkIndex, MacAddress};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol, CacheInfo,
};
use rtnetlink::packet_route::link::{BridgeStpState, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use crate::observed::{Address, BridgeSettings, InstalledRoute};

/// Mark of netd's addresses (`IFA_PROTO`): the number of `RTPROT_DHCP`, which marks its
/// routes. Both numbers are from the same registry (`/etc/iproute2/rt_protos`).
pub(super) const PROTOCOL: u8 = 16;
/// Unlimited lifetime of an address (`INFINITY_LIFE_TIME` of the kernel).
pub(super) const UNLIMITED: u32 = u32::MAX;

/// Returns a request that creates a bridge whose ports forward at once.
pub(super) fn new_bridge(name: &str, mac: MacAddress) -> LinkMessage {
    LinkMessageBuilder::<LinkBridge>::new(name)
        .address(mac.0.to_vec())
        .stp_state(BridgeStpState::Disabled)
        .forward_delay(BridgeSettings::FORWARD_AT_ONCE.forward_delay)
        .build()
}

/// Returns the requests that make the ports of a bridge forward at once, to be sent in
/// order: the kernel refuses the delay while spanning tree is on.
pub(super) fn bridge_settings(index: LinkIndex) -> [LinkMessage; 2] {
    let bridge = || LinkMessageBuilder::<LinkBridge>::new("").index(index.get());
    let delay = BridgeSettings::FORWARD_AT_ONCE.forward_delay;
    [
        without_name(bridge().stp_state(BridgeStpState::Disabled).build()),
        without_name(bridge().forward_delay(delay).build()),
    ]
}

/// Returns a builder of a request that changes a link.
pub(super) fn change(index: LinkIndex) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index.get())
}

/// Removes the name, which the builder of a bridge requires. The kernel refuses an empty one.
fn without_name(mut message: LinkMessage) -> LinkMessage {
    message
        .attributes
        .retain(|attribute| !matches!(attribute, LinkAttribute::IfName(_)));
    message
}

/// Returns the attributes of an added address: its lifetime and netd's mark.
pub(super) fn lifetime_and_mark(address: &Address, now: Instant) -> [AddressAttribute; 2] {
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

/// Returns a request that removes an address.
pub(super) fn removal(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = address.link.get();
    message.header.prefix_len = address.net.prefix_len();
    message.header.flags = AddressHeaderFlags::empty();
    message
        .attributes
        .push(AddressAttribute::Local(IpAddr::V4(address.net.addr())));
    message
}

/// Returns a message that adds or removes a route.
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
