//! Defines an IPv4 route of a lease.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// An IPv4 route, from DHCP option 3, 33 or 121 (RFC 2132, RFC 3442).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination network; `0.0.0.0/0` is the default route.
    pub destination: Ipv4Net,
    /// Next hop; [`None`] if the destination is on the link itself.
    pub gateway: Option<Ipv4Addr>,
    /// The gateway is on the link although no subnet covers it (`onlink` of
    /// ip-route(8)), as in a lease with a /32 mask.
    pub onlink: bool,
}

impl Route {
    /// Returns true for the default route.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }
}
