//! Keeps the state of the search for a port of br0 for IPv6, which [`super::election`] makes.

use buildos_dhcp::Instant;

/// The search for a port of br0 for IPv6.
#[derive(Debug, Default)]
pub(super) struct Ipv6Port {
    /// IPv6 is not disabled.
    pub(super) possible: bool,
    /// br0 has a global IPv6 address.
    pub(super) has_address: bool,
    /// Time since when a NIC has carrier and no NIC has a lease.
    pub(super) without_lease_since: Option<Instant>,
    /// Time since when the current port is tried; [`None`] for a port that had a lease.
    pub(super) tried_since: Option<Instant>,
    /// Number of NICs tried so far.
    pub(super) tried: usize,
}
