//! Holds the OFFERs of one search.

use core::cmp::Reverse;
use core::time::Duration;
use std::net::Ipv4Addr;

use crate::lease::Lease;
use crate::refusal::Refusal;
use crate::time::Instant;

/// Maximum number of OFFERs held: bounds the memory that a flood of invented servers
/// can take.
const MAXIMUM_OFFERS: usize = 8;
/// Time for which an OFFER may be requested. Servers reserve an address for one to two
/// minutes; half a minute leaves room for the exchange.
const OFFER_LIFETIME: Duration = Duration::from_secs(30);

/// A usable OFFER.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) lease: Box<Lease>,
    received: Instant,
}

impl Offer {
    fn expires_at(&self) -> Instant {
        self.received.saturating_add(OFFER_LIFETIME)
    }
}

/// The OFFERs of one search: better leases first, then in the order of arrival.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offers(Vec<Offer>);

impl Offers {
    pub(crate) fn first(&self) -> Option<&Offer> {
        self.0.first()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an OFFER and returns true if it is the first from its server. A later OFFER
    /// from the same server takes the place of the earlier one.
    pub(crate) fn hold(&mut self, lease: Lease, now: Instant) -> Result<bool, Refusal> {
        let offer = Offer {
            lease: Box::new(lease),
            received: now,
        };
        let server = offer.lease.server;
        if let Some(held) = self.0.iter_mut().find(|held| held.lease.server == server) {
            *held = offer;
            self.sort();
            return Ok(false);
        }
        if self.0.len() == MAXIMUM_OFFERS {
            return Err(Refusal::TooManyOffers);
        }
        self.0.push(offer);
        self.sort();
        Ok(true)
    }

    fn sort(&mut self) {
        self.0.sort_by_key(|held| Reverse(held.lease.qualities()));
    }

    /// Removes and returns the OFFER to request next.
    pub(crate) fn take_first(&mut self) -> Option<Offer> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Removes the OFFERs of this address and returns their servers. Servers that share
    /// a lease database offer the same address.
    pub(crate) fn remove_address(&mut self, address: Ipv4Addr) -> Vec<Ipv4Addr> {
        let offers_address = |held: &Offer| held.lease.address == address;
        let servers = self
            .0
            .iter()
            .filter(|held| offers_address(held))
            .map(|held| held.lease.server);
        let servers = servers.collect();
        self.0.retain(|held| !offers_address(held));
        servers
    }

    pub(crate) fn remove_expired(&mut self, now: Instant) {
        self.0.retain(|held| held.expires_at() > now);
    }

    /// Returns the time at which the first of the OFFERs expires.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.0.iter().map(Offer::expires_at).min()
    }
}
