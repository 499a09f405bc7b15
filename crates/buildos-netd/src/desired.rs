//! Defines the desired state of the kernel, which follows from the election and the
//! configuration. [`crate::plan`] compares it with the observed state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use buildos_dhcp::{Instant, Lease};
use buildos_types::{LinkIndex, MacAddress, PrivateNetwork, Route};
use ipnet::Ipv4Net;

use crate::observed::{Link, Observed, PUBLIC_BRIDGE};
use crate::settings::{Ipv6, Settings};
use crate::uplink::candidate;
use crate::uplink::election::Election;
use crate::uplink::path::NicVlan;

/// Shortest remaining lifetime with which netd applies a lease: the kernel counts
/// lifetimes in whole seconds and refuses 0.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(1);

/// The desired state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// All NICs, candidates or not. At most one of them is a port of br0.
    pub nics: BTreeSet<LinkIndex>,
    /// Links to set up, so that they can show carrier: the candidates.
    pub up: BTreeSet<LinkIndex>,
    /// VLANs of NICs. The NICs are set up, too.
    pub vlans: Vec<NicVlan>,
    /// Port of br0.
    pub uplink: Option<LinkIndex>,
    /// Hardware address of br0; [`None`] for that of its port.
    pub mac: Option<MacAddress>,
    /// IPv4 configuration of br0.
    pub lease: Option<UplinkSpec>,
    /// Address and prefix of br1.
    pub private: Option<Ipv4Net>,
    /// Configured MTU of br0 and of the NICs in `up`.
    pub mtu: Option<u32>,
    /// MTUs that NICs had before one was configured. They apply without a configured one.
    pub original_mtus: BTreeMap<LinkIndex, u32>,
    /// Smallest MTU of br0's ports that are not NICs. The kernel applies it to br0, too.
    pub other_ports_mtu: Option<u32>,
    /// Metric of the routes.
    pub metric: u32,
    /// br0 has IPv6.
    pub ipv6: bool,
}

/// IPv4 configuration of br0, from a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkSpec {
    /// Address and prefix.
    pub net: Ipv4Net,
    /// End of the lease; [`None`] if the address has no end.
    pub expires: Option<Instant>,
    /// Routes, in the order of the lease: the first one to a destination applies.
    pub routes: Vec<Route>,
    /// Largest packet in bytes that the network carries (option 26).
    pub mtu: Option<u32>,
}

impl Desired {
    /// Derives the desired state at `now`.
    #[must_use]
    pub fn new(
        election: &Election,
        settings: &Settings,
        observed: &Observed,
        private: Option<PrivateNetwork>,
        now: Instant,
    ) -> Self {
        let nics = candidate::nics(observed, &settings.include);
        let ports = observed.ports(PUBLIC_BRIDGE);
        let other_ports = ports.filter(|port| !nics.contains(&port.index));
        let is_usable = |lease: &&Lease| {
            lease
                .remaining(now)
                .is_none_or(|left| left >= SHORTEST_LIFETIME)
        };
        let keep = settings.keep_expired;
        let lease = election.lease();
        let lease = lease.filter(|lease| keep || is_usable(lease));
        Self {
            other_ports_mtu: other_ports.map(|port| port.mtu).min(),
            nics,
            up: election
                .contenders()
                .map(|contender| contender.candidate.index)
                .collect(),
            vlans: candidate::vlans(observed, settings),
            uplink: election.port().map(|port| port.candidate.index),
            mac: election.port().map(|port| port.client.mac()),
            lease: lease.map(|lease| UplinkSpec::new(lease, settings.keep_expired)),
            private: private.map(PrivateNetwork::interface),
            mtu: settings.mtu.map(u32::from),
            original_mtus: BTreeMap::new(),
            metric: settings.route_metric,
            ipv6: settings.ipv6 == Ipv6::Auto,
        }
    }
}

impl Desired {
    /// Returns the NICs in use, in the order of their indices: the candidates, and the NICs of
    /// VLANs.
    pub fn used_nics(&self, observed: &Observed) -> BTreeSet<LinkIndex> {
        let candidates = self.up.iter().map(|link| observed.nic_of(*link));
        candidates
            .chain(self.vlans.iter().map(|vlan| vlan.nic))
            .collect()
    }

    /// Returns the desired MTU of a NIC, if one is configured or was: at most what its driver
    /// accepts.
    #[must_use]
    pub fn nic_mtu(&self, nic: &Link) -> Option<u32> {
        let limit = nic.max_mtu.unwrap_or(u32::MAX);
        let original = self.original_mtus.get(&nic.index).copied();
        self.mtu.or(original).map(|mtu| mtu.min(limit))
    }
}

impl UplinkSpec {
    /// Returns the configuration by a lease. With `keep_expired`, the kernel must not remove the
    /// address at the end of the lease.
    fn new(lease: &Lease, keep_expired: bool) -> Self {
        Self {
            net: Ipv4Net::new_assert(lease.address, lease.prefix),
            expires: lease.expires_at().filter(|_| !keep_expired),
            routes: lease.routes.clone(),
            mtu: lease.mtu.map(u32::from),
        }
    }
}
