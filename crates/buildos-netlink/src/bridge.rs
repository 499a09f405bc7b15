//! Builds requests that change settings of bridges and their ports (ip-link(8),
//! bridge(8)).

use buildos_types::{InterfaceName, LinkIndex, MacAddress};
pub use netlink_packet_route::link::{InfoBridge, InfoBridgePort};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// Returns the request for a link of this name, for
/// [`Socket::get`](crate::Socket::get).
#[must_use]
pub fn get(name: &InterfaceName) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    let name = LinkAttribute::IfName(name.to_string());
    message.attributes.push(name);
    RouteNetlinkMessage::GetLink(message)
}

/// Returns index and settings of a bridge, or [`None`] if the message describes no
/// bridge.
#[must_use]
pub fn settings(message: &RouteNetlinkMessage) -> Option<(LinkIndex, &[InfoBridge])> {
    let RouteNetlinkMessage::NewLink(link) = message else {
        return None;
    };
    let mut info = link.attributes.iter().flat_map(|attribute| {
        let LinkAttribute::LinkInfo(info) = attribute else {
            return &[][..];
        };
        info
    });
    let settings = info.find_map(|info| {
        let LinkInfo::Data(InfoData::Bridge(settings)) = info else {
            return None;
        };
        Some(settings.as_slice())
    });
    Some((LinkIndex::new(link.header.index)?, settings?))
}

/// Returns the request that changes settings of the bridge with this index, for
/// [`Socket::change`](crate::Socket::change).
#[must_use]
pub fn set(index: LinkIndex, settings: Vec<InfoBridge>) -> RouteNetlinkMessage {
    let kind = LinkInfo::Kind(InfoKind::Bridge);
    let data = LinkInfo::Data(InfoData::Bridge(settings));
    link(index, vec![kind, data])
}

/// Returns the request that changes settings of the port with this index.
#[must_use]
pub fn set_port(index: LinkIndex, settings: Vec<InfoBridgePort>) -> RouteNetlinkMessage {
    let kind = LinkInfo::PortKind(InfoPortKind::Bridge);
    let data = LinkInfo::PortData(InfoPortData::BridgePort(settings));
    link(index, vec![kind, data])
}

/// An address that a bridge forwards to a port. Each port has one of its own at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Learned {
    pub mac: MacAddress,
    pub port: LinkIndex,
}

/// Returns the request for the forwarding tables of all bridges, for
/// [`Socket::dump`](crate::Socket::dump).
#[must_use]
pub fn get_learned() -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Returns an entry of the forwarding table of the bridge with this index, or [`None`] if
/// the message describes another.
#[must_use]
pub fn learned(message: &RouteNetlinkMessage, bridge: LinkIndex) -> Option<Learned> {
    let RouteNetlinkMessage::NewNeighbour(entry) = message else {
        return None;
    };
    let of_bridge = NeighbourAttribute::Controller(bridge.get());
    if !entry.attributes.contains(&of_bridge) {
        return None;
    }
    let mac = entry.attributes.iter().find_map(|attribute| {
        let NeighbourAttribute::LinkLayerAddress(address) = attribute else {
            return None;
        };
        address.as_slice().try_into().ok()
    });
    Some(Learned {
        mac: MacAddress(mac?),
        port: LinkIndex::new(entry.header.ifindex)?,
    })
}

/// Builds an RTM_NEWLINK request. In RTM_SETLINK the kernel ignores settings of the link
/// kind.
fn link(index: LinkIndex, info: Vec<LinkInfo>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index.get();
    message.attributes.push(LinkAttribute::LinkInfo(info));
    RouteNetlinkMessage::NewLink(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NetlinkSerializable as _;

    /// Returns `struct ifinfomsg` with an index, and IFLA_LINKINFO with a setting of a
    /// kind.
    fn encoded(kind: u16, data: u16, setting: &[u8]) -> Vec<u8> {
        let header = [0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let attribute = |kind: u16, value: &[u8]| {
            let length = (4 + value.len()) as u16;
            let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let info = [attribute(kind, b"bridge\0"), attribute(data, setting)];
        let info = attribute(libc::IFLA_LINKINFO, &info.concat());
        [&header[..], &info].concat()
    }

    fn bytes(message: &RouteNetlinkMessage) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn settings_of_bridge_are_found_in_its_message() {
        let index = LinkIndex::new(7).unwrap();
        let limit = InfoBridge::FdbMaxLearned(1024);
        let bridge = set(index, vec![limit.clone()]);
        assert_eq!(settings(&bridge), Some((index, &[limit][..])));
        let port = set_port(index, vec![InfoBridgePort::Isolated(true)]);
        assert_eq!(settings(&port), None);
        let request = get(&InterfaceName::new("br1").unwrap());
        assert_eq!(settings(&request), None);
    }

    #[test]
    fn learned_address_is_found_in_its_message() {
        let index = |number| LinkIndex::new(number).unwrap();
        let mut entry = NeighbourMessage::default();
        entry.header.ifindex = 7;
        let address = NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]);
        entry.attributes = vec![address, NeighbourAttribute::Controller(3)];
        let entry = RouteNetlinkMessage::NewNeighbour(entry);
        let expected = Learned {
            mac: MacAddress([2, 0, 0, 0, 0, 9]),
            port: index(7),
        };
        assert_eq!(learned(&entry, index(3)), Some(expected));
        assert_eq!(learned(&entry, index(4)), None);
        assert_eq!(learned(&get_learned(), index(3)), None);
    }

    #[test]
    fn settings_encode_as_ip_link_sends_them() {
        // IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_FDB_MAX_LEARNED, IFLA_BRPORT_ISOLATED.
        let on = |setting: u8| [5, 0, setting, 0, 1, 0, 0, 0];
        let limit = [8, 0, 49, 0, 0, 4, 0, 0];
        let index = LinkIndex::new(0x0102).unwrap();
        if cfg!(target_endian = "little") {
            let bridge = |setting| bytes(&set(index, vec![setting]));
            assert_eq!(
                bridge(InfoBridge::NfCallIpTables(true)),
                encoded(1, 2, &on(36))
            );
            assert_eq!(
                bridge(InfoBridge::FdbMaxLearned(1024)),
                encoded(1, 2, &limit)
            );
            assert_eq!(
                bytes(&set_port(index, vec![InfoBridgePort::Isolated(true)])),
                encoded(4, 5, &on(33))
            );
        }
    }
}
