//! DHCP servers, one on the network of each NIC.

#![allow(dead_code)] // Each test uses a part of it.

use std::net::Ipv4Addr;

use buildos_dhcp::{MessageKind, Options, Transmit};
use buildos_types::{LinkIndex, MacAddress};

/// Lease time in seconds.
pub(crate) const LEASE: u32 = 3600;

/// Behaviour of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Good,
    /// Offers, but does not answer the REQUEST.
    OffersOnly,
    Silent,
    /// Does not offer, but confirms a lease.
    AcksOnly,
    /// Offers, and answers the REQUEST with NAK.
    Refuses,
    /// Grants a lease without a default route.
    NoRoute,
    /// Grants a link-local address without a default route and name servers, as management
    /// controllers do over USB.
    LinkLocal,
    /// Grants addresses of another network, and ignores REQUESTs for others, as servers do
    /// that are not authoritative.
    Elsewhere,
    /// Ignores REQUESTs of hosts that it has not offered an address.
    Forgetful,
}

/// Returns the address that the server on the network of a NIC grants.
pub(crate) fn address(index: LinkIndex) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(index.get()).unwrap() + 100)
}

/// Returns the address that [`Server::LinkLocal`] on the network of a NIC grants.
pub(crate) fn link_local_address(index: LinkIndex) -> Ipv4Addr {
    Ipv4Addr::new(169, 254, 95, u8::try_from(index.get()).unwrap() + 100)
}

/// Returns the address that [`Server::Elsewhere`] on the network of a NIC grants.
pub(crate) fn address_elsewhere(index: LinkIndex) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, u8::try_from(index.get()).unwrap() + 100)
}

/// Returns the message type (option 53) of the answer to a message.
pub(crate) fn answer(server: Server, to: &Transmit) -> Option<u8> {
    const OFFER: u8 = 2;
    const ACK: u8 = 5;
    const NAK: u8 = 6;
    const SERVER: u8 = 54;
    let names_server = || Options::parse(&to.payload).is_ok_and(|o| o.get(SERVER).is_some());
    match (server, to.kind) {
        (Server::Silent, _) | (Server::AcksOnly, MessageKind::Discover) => None,
        (_, MessageKind::Discover) => Some(OFFER),
        (Server::Elsewhere | Server::Forgetful, MessageKind::Request) => {
            names_server().then_some(ACK)
        }
        (
            Server::Good | Server::NoRoute | Server::LinkLocal | Server::AcksOnly,
            MessageKind::Request,
        ) => Some(ACK),
        (Server::Refuses, MessageKind::Request) => Some(NAK),
        _ => None,
    }
}

/// Returns the hardware address that a message names (`chaddr`).
pub(crate) fn client_mac(message: &Transmit) -> MacAddress {
    MacAddress(message.payload[28..34].try_into().unwrap())
}

/// Returns the NIC with the hardware address that a message names.
pub(crate) fn client_nic(message: &Transmit) -> LinkIndex {
    let MacAddress([.., last]) = client_mac(message);
    LinkIndex::new(last.into()).unwrap()
}

/// Returns a reply of the server on the network of that NIC (RFC 2131, table 3).
/// [`Server::Good`] is one server on one LAN: it gives a host the same address on every NIC.
pub(crate) fn reply(
    server: Server,
    index: LinkIndex,
    to: &Transmit,
    kind: u8,
    lease: u32,
) -> Vec<u8> {
    let address = match server {
        Server::LinkLocal => link_local_address(index),
        Server::Elsewhere => address_elsewhere(index),
        Server::Good => address(client_nic(to)),
        Server::OffersOnly
        | Server::AcksOnly
        | Server::Silent
        | Server::Refuses
        | Server::NoRoute
        | Server::Forgetful => address(index),
    };
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[2, 1, 6]);
    message[4..8].copy_from_slice(&to.payload[4..8]);
    message[16..20].copy_from_slice(&address.octets());
    message[28..34].copy_from_slice(&client_mac(to).0);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    let [a, b, c, _] = address.octets();
    message.extend([53, 1, kind, 54, 4, 192, 0, 2, 1]);
    message.extend([1, 4, 255, 255, 255, 0, 51, 4]);
    message.extend(lease.to_be_bytes());
    let router = [3, 4, a, b, c, 1];
    const NAME_SERVER: [u8; 6] = [6, 4, 192, 0, 2, 1];
    if !matches!(server, Server::NoRoute | Server::LinkLocal) {
        message.extend(router);
    }
    if server != Server::LinkLocal {
        message.extend(NAME_SERVER);
    }
    message.push(255);
    message
}
