//! Decides what br0 has while no server grants a lease.
//!
//! | situation | br0 has |
//! |---|---|
//! | the lease expired, and `keep_expired` is true | the expired lease |
//! | no lease for `static_wait_s`, and a static address is configured | the static address |
//! | otherwise | no address |
//!
//! The clients go on searching. Any lease ends the fallback, with one exception: an offer that
//! does not meet `online_requires` does not replace a fallback that does.
//!
//! Before br0 gets the static address, a [`Detector`] probes for it (RFC 5227). If another host
//! has it, the next attempt follows after a minute. An expired lease ends when another host
//! claims its address: the server may have assigned it.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::address_conflict::Detector;
use buildos_dhcp::{Instant, Lease};
use buildos_types::{LinkIndex, MacAddress};

use super::{Effect, Election};
use crate::uplink::contender::{Claim, Contender, Fallback};
use crate::uplink::notice::Notice;
use crate::uplink::rank::Rank;

/// Delay of the next attempt to use an address that another host has.
const REST: Duration = Duration::from_secs(60);

impl Election {
    /// Returns true if br0 has an expired lease.
    #[must_use]
    pub fn is_lease_expired(&self) -> bool {
        let fallback = self.fallback().filter(|fallback| fallback.in_use);
        fallback.is_some_and(|fallback| !fallback.lease.is_configured())
    }

    /// Returns the host that has the address of the fallback.
    #[must_use]
    pub fn fallback_claim(&self) -> Option<&Claim> {
        self.fallback_claim.as_ref()
    }

    /// Begins, uses and ends the fallback.
    pub(super) fn update_fallback(&mut self, now: Instant) {
        if let Some(granted) = self.granted_lease() {
            let granted = granted.address;
            self.no_lease_since = None;
            self.fallback_claim = None;
            return self.end_fallback(granted);
        }
        let has_carrier = self.contenders().any(|c| c.candidate.carrier);
        let since = self.no_lease_since.filter(|_| has_carrier);
        self.no_lease_since = since.or_else(|| has_carrier.then_some(now));
        self.withdraw_fallback(now);
        if self.fallback().is_none() && self.fallback_due().is_some_and(|due| due <= now) {
            self.begin_static(now);
        }
        self.use_fallback();
    }

    /// Returns the time of the next change of the fallback.
    pub(super) fn fallback_deadline(&self) -> Option<Instant> {
        match self.fallback() {
            Some(fallback) if !fallback.lease.is_configured() => None,
            Some(_) => self.abandoned_at(),
            None => self.fallback_due(),
        }
    }

    /// Ends the fallback whose address another host has.
    pub(super) fn claim_fallback(&mut self, now: Instant, index: LinkIndex, by: MacAddress) {
        let contender = self.contenders.get_mut(&index);
        let Some(fallback) = contender.and_then(|c| c.fallback.take()) else {
            return;
        };
        let address = fallback.lease.address;
        let known = self.fallback_claim.map(|claim| (claim.address, claim.by));
        if fallback.in_use || known != Some((address, by)) {
            let notice = Notice::FallbackClaimed { address, by };
            self.effects.push_back(Effect::Notice(index, notice));
        }
        self.fallback_claim = Some(Claim {
            address,
            by,
            retry_at: now.saturating_add(REST),
        });
    }

    /// Returns true if the offer would be worse than what br0 has without it.
    pub(super) fn is_worse_than_fallback(&self, offer: Rank) -> bool {
        let port = self.port().filter(|port| port.client.lease().is_none());
        let fallback = port.and_then(|port| Some((port, port.lease()?)));
        let rank = fallback.map(|(port, lease)| self.rank_of(port, lease));
        rank.is_some_and(|rank| rank.meets_requirement() && !offer.meets_requirement())
    }

    fn granted_lease(&self) -> Option<&Lease> {
        self.port()?.client.lease()
    }

    fn fallback(&self) -> Option<&Fallback> {
        self.contenders().find_map(|c| c.fallback.as_ref())
    }

    /// Returns the time at which the static address is due.
    fn fallback_due(&self) -> Option<Instant> {
        let address = self.rules.static_address.as_ref()?.address();
        let due = self.no_lease_since?.saturating_add(self.rules.static_wait);
        let claim = self.fallback_claim.filter(|claim| claim.address == address);
        let retry = claim.map(|claim| claim.retry_at);
        Some(retry.map_or(due, |retry| retry.max(due)))
    }

    /// Returns the time at which the fallback leaves its NIC, which has no carrier, for another.
    fn abandoned_at(&self) -> Option<Instant> {
        let mut holders = self.contenders().filter(|c| c.fallback.is_some());
        let since = holders.find_map(|c| c.no_carrier_since)?;
        let mut others = self.contenders().filter(|c| c.fallback.is_none());
        let has_other = others.any(|c| c.candidate.carrier);
        has_other.then(|| since.saturating_add(self.rules.carrier_grace))
    }

    /// Ends a fallback that the rules do not permit any more, or whose NIC has no carrier.
    fn withdraw_fallback(&mut self, now: Instant) {
        let abandoned = self.abandoned_at().is_some_and(|at| at <= now);
        let rules = &self.rules;
        for contender in self.contenders.values_mut() {
            contender.fallback.take_if(|fallback| {
                let lease = &*fallback.lease;
                let permitted = match lease.is_configured() {
                    true => rules.static_lease(lease.acquired).as_ref() == Some(lease),
                    false => rules.keep_expired,
                };
                !permitted || (abandoned && lease.is_configured())
            });
        }
    }

    /// Begins to probe for the static address, on the NIC that the machine booted from if it has
    /// carrier.
    fn begin_static(&mut self, now: Instant) {
        let Some(lease) = self.rules.static_lease(now) else {
            return;
        };
        let with_carrier = self.contenders().filter(|c| c.candidate.carrier);
        let order = |c: &Contender| {
            let index = c.candidate.index;
            (!self.is_booted_from(c), self.port != Some(index), index)
        };
        let Some((.., index)) = with_carrier.map(order).min() else {
            return;
        };
        if let Some(contender) = self.contenders.get_mut(&index) {
            contender.fallback = Some(Fallback {
                lease: Box::new(lease),
                in_use: false,
            });
            contender.detector = None;
        }
    }

    /// Gives br0 the static address once no other host has answered for it.
    fn use_fallback(&mut self) {
        let detect = self.rules.detect_conflicts;
        for (index, contender) in &mut self.contenders {
            let Some(fallback) = contender.fallback.as_mut().filter(|f| !f.in_use) else {
                continue;
            };
            let address = fallback.lease.address;
            let is_free = |d: &Detector| d.address() == address && d.is_unanswered();
            if !detect || contender.detector.as_ref().is_some_and(is_free) {
                fallback.in_use = true;
                self.port = Some(*index);
                let notice = Notice::FallbackUsed(fallback.lease.clone());
                self.effects.push_back(Effect::Notice(*index, notice));
            }
        }
    }

    fn end_fallback(&mut self, granted: Ipv4Addr) {
        for (index, contender) in &mut self.contenders {
            let fallback = contender.fallback.take().filter(|f| f.in_use);
            let address = fallback.map(|fallback| fallback.lease.address);
            let notice = address
                .filter(|address| *address != granted)
                .map(|address| Notice::FallbackEnded { address, granted });
            let effect = notice.map(|notice| Effect::Notice(*index, notice));
            self.effects.extend(effect);
        }
    }
}
