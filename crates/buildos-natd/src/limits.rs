//! Limits what machines can take of tables that the kernel has once for the host.
//!
//! | table | limit | without it |
//! |---|---|---|
//! | connections | established ones expire after [`ESTABLISHED_S`] | those of a machine that is gone stay for five days |
//! | neighbours (ARP) | room for each lease | the kernel resolves no new neighbour, on br0 too |
//! | addresses that a bridge has learned | [`LEARNED_ADDRESSES`] | they fill memory that no control group is charged for |
//!
//! Connections in number are limited by [`crate::firewall::policy`].
//!
//! # Limits
//!
//! The kernel has the sysctls of neighbours in its first network namespace only, and
//! limits a bridge since version 6.7.

use buildos_types::PrivateNetwork;

use crate::dnsmasq::config;
use crate::sysctl::Bound;

/// Time after which the kernel forgets a silent TCP connection: the least that RFC 5382,
/// section 5 (REQ-5) allows a NAT.
pub const ESTABLISHED_S: u32 = 2 * 3600 + 4 * 60;
/// Addresses that a bridge learns. An attached machine has one, and the network of the
/// uplink some thousand. An entry takes 200 bytes. A frame to a further address goes to
/// all ports.
pub const LEARNED_ADDRESSES: u32 = 16_384;
/// Neighbours besides machines: those of br0.
const OTHER_NEIGHBOURS: u32 = 4096;

/// Returns the sysctls below `/proc/sys/net` with their bounds.
#[must_use]
pub fn sysctls(network: PrivateNetwork) -> [(&'static str, Bound); 3] {
    let neighbours = config::max_leases(network).saturating_add(OTHER_NEIGHBOURS);
    [
        (
            "netfilter/nf_conntrack_tcp_timeout_established",
            Bound::AtMost(ESTABLISHED_S),
        ),
        // Above the second threshold, the kernel removes entries that are five seconds
        // old; above the third, it adds none (arp(7)).
        ("ipv4/neigh/default/gc_thresh2", Bound::AtLeast(neighbours)),
        (
            "ipv4/neigh/default/gc_thresh3",
            Bound::AtLeast(neighbours.saturating_mul(2)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_have_room_for_every_lease() {
        let neighbours = |network: &str| {
            let network: PrivateNetwork = network.parse().unwrap();
            sysctls(network).map(|(_, bound)| bound)[1]
        };
        assert_eq!(neighbours("172.23.0.1/16"), Bound::AtLeast(65_533 + 4096));
        assert_eq!(neighbours("192.168.213.1/28"), Bound::AtLeast(13 + 4096));
        assert_eq!(neighbours("10.0.0.1/8"), Bound::AtLeast(65_536 + 4096));
    }
}
