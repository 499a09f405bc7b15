//! Ranks offers and leases, so that the best network becomes the uplink.
//!
//! The first property that differs decides:
//!
//! | order | property | without it |
//! |---|---|---|
//! | 1 | meets `online_requires` | the host is never online |
//! | 2 | is on the NIC that the machine booted from | perhaps not the network of the farm |
//! | 3 | has a default route | a network for storage, or for management |
//! | 4 | has a name server | programs resolve no names |
//! | 5 | is not link-local (RFC 3927, 169.254.0.0/16) | the network of a management controller |

use std::fmt;

use buildos_dhcp::Lease;

use crate::settings::OnlineRequires;

/// The rank of an offer or a lease; a greater one is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    meets_requirement: bool,
    booted_from: bool,
    has_default_route: bool,
    has_name_server: bool,
    is_routable: bool,
}

impl Rank {
    /// Returns the rank of a lease on a NIC that the machine booted from or did not.
    #[must_use]
    pub fn new(lease: &Lease, booted_from: bool, required: OnlineRequires) -> Self {
        let [has_default_route, has_name_server, is_routable] = lease.qualities();
        Self {
            meets_requirement: required == OnlineRequires::Lease || has_default_route,
            booted_from,
            has_default_route,
            has_name_server,
            is_routable,
        }
    }

    /// Returns the rank of the best possible offer on a NIC.
    #[must_use]
    pub fn best(booted_from: bool) -> Self {
        Self {
            meets_requirement: true,
            booted_from,
            has_default_route: true,
            has_name_server: true,
            is_routable: true,
        }
    }

    /// Returns true if the host is online with it.
    #[must_use]
    pub fn meets_requirement(self) -> bool {
        self.meets_requirement
    }

    /// Returns the rank without a preference for the NIC that the machine booted from.
    #[must_use]
    pub(super) fn without_preference(self) -> Self {
        Self {
            booted_from: false,
            ..self
        }
    }

    /// Returns the rank of a lease whose default route leads to a silent gateway.
    #[must_use]
    pub fn with_silent_gateway(self, required: OnlineRequires) -> Self {
        Self {
            meets_requirement: required == OnlineRequires::Lease,
            has_default_route: false,
            ..self
        }
    }
}

/// Lists the properties that a better lease would have, for operators.
impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = [
            (self.has_default_route, "no default route"),
            (self.has_name_server, "no name server"),
            (self.is_routable, "link-local address"),
            (self.booted_from, "not the NIC booted from"),
        ];
        let missing = missing.iter().filter(|(has, _)| !has);
        let texts: Vec<_> = missing.map(|(_, text)| *text).collect();
        f.write_str(&texts.join(", "))
    }
}
