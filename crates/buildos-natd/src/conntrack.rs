//! Removes tracked connections of addresses whose machine is gone, and of closed ports.
//!
//! A machine that ends does not close its connections. The kernel would keep established
//! ones for hours, and they count for the next machine with the address.
//!
//! The request is that of `conntrack --delete --orig-src ADDRESS` (conntrack(8)), with a
//! filter, so that the kernel needs one message for all connections of the address.
//!
//! # Sources
//!
//! - linux/netfilter/nfnetlink_conntrack.h: `ctattr_type`, `ctattr_filter`
//! - net/netfilter/nf_conntrack_netlink.c: `ctnetlink_del_conntrack`, `ctnetlink_alloc_filter`
//!
//! # Limits
//!
//! Kernels before 6.11 refuse the filter. Connections then stay until they time out.

use std::io;
use std::net::Ipv4Addr;

use buildos_netlink::{NetfilterMessage, Socket};

/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u8 = 2;
/// A family is part of the filter from this version of `struct nfgenmsg` on. With version 0
/// the kernel would ignore the address and remove all connections.
const VERSION: u8 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
// enum ctattr_type
const TUPLE_ORIGINAL: u16 = 1 | NESTED;
const TUPLE_REPLY: u16 = 2 | NESTED;
const FILTER: u16 = 25 | NESTED;
/// `CTA_TUPLE_IP` (enum ctattr_tuple).
const TUPLE_IP: u16 = 1 | NESTED;
/// `CTA_TUPLE_PROTO` (enum ctattr_tuple).
const TUPLE_PROTOCOL: u16 = 2 | NESTED;
/// `CTA_IP_V4_SRC` (enum ctattr_ip).
const IPV4_SOURCE: u16 = 1;
// enum ctattr_l4proto
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
// enum ctattr_filter
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// `CTA_FILTER_F_CTA_IP_SRC`: only the source address is compared.
const COMPARE_SOURCE: u32 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM`.
const COMPARE_PROTOCOL: u32 = 1 << 3;
/// `CTA_FILTER_F_CTA_PROTO_SRC_PORT`.
const COMPARE_SOURCE_PORT: u32 = 1 << 4;
/// Nothing is compared.
const COMPARE_NOTHING: u32 = 0;

/// Removes the connections that this address opened.
///
/// # Errors
///
/// Connection tracking is not loaded; the kernel does not know the filter; CAP_NET_ADMIN is
/// missing.
pub async fn remove(source: Ipv4Addr) -> io::Result<()> {
    let mut socket = Socket::open()?;
    socket.change(request(source)).await
}

/// Removes the connections that a TCP port of this address answers.
///
/// # Errors
///
/// As [`remove`].
pub async fn remove_to(address: Ipv4Addr, port: u16) -> io::Result<()> {
    let mut socket = Socket::open()?;
    socket.change(request_to(address, port)).await
}

fn request(source: Ipv4Addr) -> NetfilterMessage {
    let tuple = attribute(TUPLE_ORIGINAL, &address(source));
    message(&tuple, COMPARE_SOURCE, COMPARE_NOTHING)
}

fn request_to(source: Ipv4Addr, port: u16) -> NetfilterMessage {
    let protocol = [
        attribute(PROTOCOL_NUMBER, &[libc::IPPROTO_TCP as u8]),
        attribute(SOURCE_PORT, &port.to_be_bytes()),
    ];
    let tuple = [
        address(source),
        attribute(TUPLE_PROTOCOL, &protocol.concat()),
    ];
    let tuple = attribute(TUPLE_REPLY, &tuple.concat());
    let compared = COMPARE_SOURCE | COMPARE_PROTOCOL | COMPARE_SOURCE_PORT;
    message(&tuple, COMPARE_NOTHING, compared)
}

fn address(source: Ipv4Addr) -> Vec<u8> {
    attribute(TUPLE_IP, &attribute(IPV4_SOURCE, &source.octets()))
}

fn message(tuple: &[u8], original: u32, reply: u32) -> NetfilterMessage {
    let compared = [
        attribute(FILTER_ORIGINAL, &original.to_ne_bytes()),
        attribute(FILTER_REPLY, &reply.to_ne_bytes()),
    ];
    NetfilterMessage {
        subsystem: libc::NFNL_SUBSYS_CTNETLINK as u8,
        kind: DELETE,
        family: libc::NFPROTO_IPV4 as u8,
        version: VERSION,
        attributes: [tuple, &attribute(FILTER, &compared.concat())].concat(),
    }
}

/// Encodes an attribute, padded to a multiple of four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_for_closed_port_compares_reply() {
        let request = request_to(Ipv4Addr::new(172, 23, 0, 9), 22);
        if cfg!(target_endian = "little") {
            let tuple = [
                36, 0, 2, 128, 12, 0, 1, 128, 8, 0, 1, 0, 172, 23, 0, 9, 20, 0, 2, 128, 5, 0, 1, 0,
                6, 0, 0, 0, 6, 0, 2, 0, 0, 22, 0, 0,
            ];
            let filter = [
                20, 0, 25, 128, 8, 0, 1, 0, 0, 0, 0, 0, 8, 0, 2, 0, 25, 0, 0, 0,
            ];
            assert_eq!(request.attributes, [&tuple[..], &filter].concat());
        }
    }

    #[test]
    fn request_compares_source_address_only() {
        let request = request(Ipv4Addr::new(172, 23, 0, 9));
        assert_eq!((request.subsystem, request.kind), (1, 2));
        assert_eq!((request.family, request.version), (2, 1));
        if cfg!(target_endian = "little") {
            let tuple = [16, 0, 1, 128, 12, 0, 1, 128, 8, 0, 1, 0, 172, 23, 0, 9];
            let filter = [
                20, 0, 25, 128, 8, 0, 1, 0, 1, 0, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0,
            ];
            assert_eq!(request.attributes, [&tuple[..], &filter].concat());
        }
    }
}
