//! What the race's outcome means to the kernel: a value that [`crate::plan`]
//! compares with what is there.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{Instant, Lease};
use ipnet::Ipv4Net;

use crate::config::Settings;
use crate::private::{self, PrivateNetwork};
use crate::uplink::election::Race;

/// The kernel counts lifetimes in whole seconds. What is left of a lease below that
/// is not used.
const LEAST: Duration = Duration::from_secs(1);

/// What should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// NICs, candidates or not: only one of them may be in br0.
    pub nics: BTreeSet<u32>,
    /// Links that are up so that they can show carrier.
    pub up: BTreeSet<u32>,
    /// Port of br0.
    pub uplink: Option<u32>,
    /// What br0 carries besides its port.
    pub lease: Option<LeaseWish>,
    /// Address of br1.
    pub private: Option<Ipv4Net>,
}

/// What a lease means to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseWish {
    /// Address and prefix on br0.
    pub net: Ipv4Net,
    /// When it ends; none for never.
    pub expires: Option<Instant>,
    /// `(destination, gateway, onlink)` in the order of the lease.
    pub routes: Vec<(Ipv4Net, Option<Ipv4Addr>, bool)>,
    /// Largest packet that the network carries.
    pub mtu: Option<u32>,
}

impl Wish {
    /// What to have at `now`, with these NICs and that private network on br1.
    #[must_use]
    pub fn new(
        race: &Race,
        nics: BTreeSet<u32>,
        private: Option<PrivateNetwork>,
        now: Instant,
    ) -> Self {
        let lease = race
            .lease()
            .filter(|lease| lease.remaining(now).is_none_or(|left| left >= LEAST));
        Self {
            nics,
            up: race
                .runners()
                .map(|runner| runner.candidate.index)
                .collect(),
            uplink: race.port().map(|port| port.candidate.index),
            lease: lease.map(LeaseWish::new),
            private: private.map(PrivateNetwork::interface),
        }
    }
}

impl LeaseWish {
    fn new(lease: &Lease) -> Self {
        Self {
            net: Ipv4Net::new_assert(lease.address, lease.prefix),
            expires: lease.expires_at(),
            routes: lease
                .routes
                .iter()
                .map(|route| (route.destination, route.gateway, route.onlink))
                .collect(),
            mtu: lease.mtu.map(u32::from),
        }
    }
}

/// The private network: the current one, or another when the uplink brings an overlap.
#[must_use]
pub fn private(
    race: &Race,
    settings: &Settings,
    current: Option<PrivateNetwork>,
) -> Option<PrivateNetwork> {
    let occupied = race.lease().map(occupied).unwrap_or_default();
    private::choose(&settings.private, current, &occupied)
}

/// The networks that a lease brings, which the private network must not overlap.
#[must_use]
pub fn occupied(lease: &Lease) -> Vec<Ipv4Net> {
    let routes = lease.routes.iter().filter(|route| !route.is_default());
    routes
        .map(|route| route.destination)
        .chain([lease.network()])
        .collect()
}
