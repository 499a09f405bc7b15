//! Parses rtnetlink messages into [`crate::observed`].

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use buildos_dhcp::Instant;
use buildos_types::{InterfaceName, LinkIndex, MacAddress, Route};
use ipnet::{Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgeStpState, InfoBridge, InfoData, InfoKind,
    InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, VlanProtocol,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
};

use super::build::{OWN_GROUP, PROTOCOL, UNLIMITED};
use crate::observed::{Address, BridgeSettings, InstalledRoute, Link, Vlan};

/// Parses a link. Returns [`None`] for links whose names are not [`InterfaceName`]s.
pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    // The kernel also announces bridge ports with family AF_BRIDGE.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let name = message.attributes.iter().find_map(interface_name)?;
    let mut link = Link {
        index: LinkIndex::new(message.header.index)?,
        name,
        mac: None,
        mtu: 0,
        max_mtu: None,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        controller: None,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        kind: None,
        device: false,
        virtual_function: false,
        carrier_losses: 0,
        wireless: false,
        ipv6: None,
        answers_arp: false,
        bridge: None,
        vlan: None,
    };
    let (mut nic, mut group, mut is_elsewhere) = (None, 0, false);
    let mut vlan_id = None;
    #[allow(clippy::wildcard_enum_match_arm)] // The kernel sends dozens of others.
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) if link.ethernet => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddress);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            // 0 is no limit.
            LinkAttribute::MaxMtu(max) => link.max_mtu = Some(*max).filter(|max| *max > 0),
            LinkAttribute::CarrierDownCount(count) => link.carrier_losses = *count,
            LinkAttribute::ParentDevName(_) => link.device = true,
            LinkAttribute::Controller(index) => link.controller = LinkIndex::new(*index),
            LinkAttribute::LinkInfo(info) => {
                (link.kind, link.bridge) = kind(info);
                vlan_id = vlan(info);
            }
            LinkAttribute::Link(index) => nic = LinkIndex::new(*index),
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::Group(number) => group = *number,
            LinkAttribute::AfSpecUnspec(families) => {
                (link.answers_arp, link.ipv6) = protocols(families);
            }
            _ => {}
        }
    }
    // The index of a link in a different network namespace means nothing here.
    let nic = nic.filter(|_| !is_elsewhere);
    link.vlan = nic.zip(vlan_id).map(|(nic, id)| Vlan {
        nic,
        id,
        is_own: group == OWN_GROUP,
    });
    // The carrier of a VLAN is that of its NIC, which the kernel copies before the VLAN can send.
    link.carrier &= link.vlan.is_none() || message.header.flags.contains(LinkFlags::Running);
    // Only links without a kind can be hardware. There can be hundreds of others.
    if link.kind.is_none() {
        let sysfs = Path::new("/sys/class/net").join(link.name.as_str());
        // The link may have been renamed since the message.
        link.device |= sysfs.join("device").exists();
        link.virtual_function = link.device && sysfs.join("device/physfn").exists();
        link.wireless = sysfs.join("wireless").exists() || sysfs.join("phy80211").exists();
    }
    Some(link)
}

#[allow(clippy::wildcard_enum_match_arm)] // Others do not matter.
fn interface_name(attribute: &LinkAttribute) -> Option<InterfaceName> {
    match attribute {
        LinkAttribute::IfName(name) => InterfaceName::new(name).ok(),
        _ => None,
    }
}

/// Returns the number of a VLAN, of IEEE 802.1Q only.
#[allow(clippy::wildcard_enum_match_arm)] // Others do not matter.
fn vlan(info: &[LinkInfo]) -> Option<u16> {
    let settings = info.iter().find_map(|part| match part {
        LinkInfo::Data(InfoData::Vlan(settings)) => Some(settings),
        _ => None,
    })?;
    let mut id = None;
    for setting in settings {
        match setting {
            InfoVlan::Id(number) => id = Some(*number),
            InfoVlan::Protocol(protocol) if *protocol != VlanProtocol::Ieee8021Q => return None,
            _ => {}
        }
    }
    id
}

/// Returns the kind of a link and, for a bridge, its settings.
#[allow(clippy::wildcard_enum_match_arm)] // Others do not matter.
fn kind(info: &[LinkInfo]) -> (Option<String>, Option<BridgeSettings>) {
    let mut kind = None;
    let mut bridge = None;
    for part in info {
        match part {
            LinkInfo::Kind(InfoKind::Other(name)) => kind = Some(name.clone()),
            LinkInfo::Kind(known) => kind = Some(known.to_string()),
            LinkInfo::Data(InfoData::Bridge(settings)) => {
                let mut found = BridgeSettings {
                    stp: false,
                    forward_delay: 0,
                };
                for setting in settings {
                    match setting {
                        InfoBridge::StpState(state) => {
                            found.stp = *state != BridgeStpState::Disabled;
                        }
                        InfoBridge::ForwardDelay(delay) => found.forward_delay = *delay,
                        _ => {}
                    }
                }
                bridge = Some(found);
            }
            _ => {}
        }
    }
    (kind, bridge)
}

/// Returns [`Link::answers_arp`] and [`Link::ipv6`].
#[allow(clippy::wildcard_enum_match_arm)] // Others do not matter.
fn protocols(families: &[AfSpecUnspec]) -> (bool, Option<bool>) {
    let (mut arp, mut ipv6) = (false, None);
    for family in families {
        match family {
            AfSpecUnspec::Inet(parts) => {
                arp |= parts
                    .iter()
                    .any(|part| matches!(part, AfSpecInet::DevConf(c) if c.arp_ignore == 0));
            }
            AfSpecUnspec::Inet6(parts) => {
                ipv6 = parts.iter().find_map(|part| match part {
                    AfSpecInet6::DevConf(settings) => Some(settings.disable_ipv6 == 0),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (arp, ipv6)
}

/// Parses an IPv4 address. Returns true with it if it carries netd's mark.
pub(super) fn address(message: &AddressMessage, now: Instant) -> Option<(Address, bool)> {
    let mut ip = None;
    let mut valid = UNLIMITED;
    let mut marked = false;
    #[allow(clippy::wildcard_enum_match_arm)] // Others do not matter.
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(local)) => ip = Some(*local),
            AddressAttribute::CacheInfo(info) => valid = info.ifa_valid,
            AddressAttribute::Protocol(protocol) => marked = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    let net = Ipv4Net::new(ip?, message.header.prefix_len).ok()?;
    let link = LinkIndex::new(message.header.index)?;
    let expires = (valid != UNLIMITED).then(|| now + Duration::from_secs(valid.into()));
    Some((Address { link, net, expires }, marked))
}

/// Parses an IPv6 address. Returns [`None`] while duplicate address detection runs, and
/// after it failed.
pub(super) fn ipv6_address(message: &AddressMessage) -> Option<(LinkIndex, Ipv6Net)> {
    let mut ip = None;
    #[allow(clippy::wildcard_enum_match_arm)] // Others do not matter.
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(IpAddr::V6(address)) => ip = Some(*address),
            AddressAttribute::Flags(flags)
                if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) =>
            {
                return None;
            }
            _ => {}
        }
    }
    let net = Ipv6Net::new(ip?, message.header.prefix_len).ok()?;
    Some((LinkIndex::new(message.header.index)?, net))
}

/// Parses an IPv4 route. Returns [`None`] unless it is in the main table and carries netd's
/// mark.
pub(super) fn route(message: &RouteMessage) -> Option<InstalledRoute> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN
        || message.header.protocol != RouteProtocol::Dhcp
        || message.header.address_family != AddressFamily::Inet
    {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let (mut link, mut gateway, mut source) = (None, None, None);
    let mut metric = 0;
    #[allow(clippy::wildcard_enum_match_arm)] // Others do not matter.
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => link = LinkIndex::new(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    Some(InstalledRoute {
        link: link?,
        metric,
        route: Route {
            destination: Ipv4Net::new(destination, message.header.destination_prefix_length)
                .ok()?,
            gateway,
            onlink: message.header.flags.contains(RouteFlags::Onlink),
        },
        source: source.unwrap_or(Ipv4Addr::UNSPECIFIED),
    })
}
