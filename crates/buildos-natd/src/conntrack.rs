//! Removes tracked connections of addresses whose machine is gone.
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
const FILTER: u16 = 25 | NESTED;
/// `CTA_TUPLE_IP` (enum ctattr_tuple).
const TUPLE_IP: u16 = 1 | NESTED;
/// `CTA_IP_V4_SRC` (enum ctattr_ip).
const IPV4_SOURCE: u16 = 1;
// enum ctattr_filter
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// `CTA_FILTER_F_CTA_IP_SRC`: only the source address is compared.
const COMPARE_SOURCE: u32 = 1;
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

fn request(source: Ipv4Addr) -> NetfilterMessage {
    let address = attribute(TUPLE_IP, &attribute(IPV4_SOURCE, &source.octets()));
    let compared = [
        attribute(FILTER_ORIGINAL, &COMPARE_SOURCE.to_ne_bytes()),
        attribute(FILTER_REPLY, &COMPARE_NOTHING.to_ne_bytes()),
    ];
    NetfilterMessage {
        subsystem: libc::NFNL_SUBSYS_CTNETLINK as u8,
        kind: DELETE,
        family: libc::NFPROTO_IPV4 as u8,
        version: VERSION,
        attributes: [
            attribute(TUPLE_ORIGINAL, &address),
            attribute(FILTER, &compared.concat()),
        ]
        .concat(),
    }
}

/// Encodes an attribute. Every value here is a multiple of four bytes long, so it needs no
/// padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

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
