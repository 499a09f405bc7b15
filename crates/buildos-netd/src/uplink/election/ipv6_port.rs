//! Gives br0 a port for IPv6 while no DHCP server grants a lease.
//!
//! On a network with router advertisements only, people reach the host by IPv6. The kernel
//! configures it on br0, which needs a port for it:
//!
//! | time | port of br0 |
//! |---|---|
//! | 10 s with carrier on any NIC and without a lease | the NIC booted from, else the first with carrier |
//! | 15 s later without a global IPv6 address | the next NIC with carrier |
//! | after all NICs | the next NIC with carrier every 5 minutes |
//!
//! A configured static address decides on the port instead ([`super::fallback`]).
//!
//! The DHCP clients of all NICs go on. The first lease decides on the port, as without IPv6. A
//! port that had a lease stays while it has carrier: containers on br0 use its network.

use std::time::Duration;

use buildos_dhcp::Instant;
use buildos_types::LinkIndex;

use super::{Effect, Election};
use crate::uplink::contender::Contender;
use crate::uplink::ipv6_port::Ipv6Port;
use crate::uplink::notice::Notice;

/// Time without a lease after which br0 gets a port. Servers that exist answer within it, also
/// those that probe addresses first.
const DELAY: Duration = Duration::from_secs(10);
/// Time in which the kernel solicits router advertisements three times, 4 s apart (RFC 4861,
/// section 10).
const TRY: Duration = Duration::from_secs(15);
/// Time per NIC after all NICs were tried.
const SLOW_TRY: Duration = Duration::from_secs(300);

impl Election {
    /// Replaces what is known about IPv6: whether it is permitted, and whether br0 has a global
    /// address.
    pub fn set_ipv6(&mut self, possible: bool, has_address: bool) {
        self.ipv6_port.possible = possible;
        self.ipv6_port.has_address = has_address;
    }

    /// Changes the port of br0 if it is time.
    pub(super) fn update_ipv6_port(&mut self, now: Instant) {
        let is_any_with_carrier = self.contenders().any(|c| c.candidate.carrier);
        if !self.ipv6_port.possible || self.lease().is_some() || !is_any_with_carrier {
            self.ipv6_port = Ipv6Port {
                possible: self.ipv6_port.possible,
                has_address: self.ipv6_port.has_address,
                ..Ipv6Port::default()
            };
            return;
        }
        let since = &mut self.ipv6_port.without_lease_since;
        *since = since.or(Some(now));
        if self.next_ipv6_port_at().is_none_or(|at| at > now) {
            return;
        }
        let Some(index) = self.next_ipv6_port() else {
            return;
        };
        self.port = Some(index);
        self.ipv6_port.tried_since = Some(now);
        self.ipv6_port.tried = self.ipv6_port.tried.saturating_add(1);
        let effect = Effect::Notice(index, Notice::Ipv6Only);
        self.effects.push_back(effect);
    }

    /// Returns the time at which the port of br0 changes for IPv6.
    pub(super) fn next_ipv6_port_at(&self) -> Option<Instant> {
        let state = &self.ipv6_port;
        // A REQUEST in flight ends soon, with a lease or without.
        let has_static_address = self.rules.static_address.is_some();
        let may_change = state.possible && !has_static_address && !self.is_requesting();
        let since = state.without_lease_since.filter(|_| may_change)?;
        let Some(port) = self.port() else {
            return Some(since.saturating_add(DELAY));
        };
        let mut others = self.contenders();
        if !others.any(|other| other.candidate.carrier && self.port != Some(other.candidate.index))
        {
            return None;
        }
        if let Some(lost) = port.no_carrier_since {
            return Some(since.max(lost).saturating_add(DELAY));
        }
        let tried_since = state.tried_since.filter(|_| !state.has_address)?;
        let is_first_round =
            state.tried < self.contenders().filter(|c| c.candidate.carrier).count();
        let duration = if is_first_round { TRY } else { SLOW_TRY };
        Some(tried_since.saturating_add(duration))
    }

    /// Returns the NIC with carrier after the current port: first the one booted from, then in
    /// the order of the indices.
    fn next_ipv6_port(&self) -> Option<LinkIndex> {
        let mut nics: Vec<&Contender> = self.contenders().collect();
        nics.retain(|nic| nic.candidate.carrier || self.port == Some(nic.candidate.index));
        nics.sort_by_key(|nic| !self.is_booted_from(nic));
        let current = nics
            .iter()
            .position(|nic| self.port == Some(nic.candidate.index));
        let next = current.map_or(0, |current| (current + 1) % nics.len());
        let next = nics.get(next)?;
        next.candidate.carrier.then_some(next.candidate.index)
    }
}
