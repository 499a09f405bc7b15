//! OFFERs held, and servers that did not keep theirs.

use core::time::Duration;
use std::net::Ipv4Addr;

use crate::{Instant, Lease, Refusal};

/// How many OFFERs are kept as alternatives. A flood of invented servers must not
/// fill the memory.
const MOST_OFFERS: usize = 8;
/// How long an OFFER is worth a REQUEST. Servers keep an address for one to two
/// minutes; half of the shorter time leaves room for the exchange.
const OFFER_LIFETIME: Duration = Duration::from_secs(30);
/// How many servers are remembered.
const MOST_SHUNNED: usize = 16;
/// How long a server that did not keep its OFFER comes last.
const SHUNNED_FOR: Duration = Duration::from_secs(60);
/// When no other server has offered anything by then, the shunned one is better
/// than none: perhaps it is only slow.
const RELENT_AFTER: Duration = Duration::from_secs(10);
/// How often a REQUEST is sent before the OFFER is given up; doubled
/// when the same server failed before.
const ATTEMPTS: u32 = 2;

/// A usable OFFER.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) lease: Box<Lease>,
    received: Instant,
}

impl Offer {
    pub(crate) fn expires_at(&self) -> Instant {
        self.received.saturating_add(OFFER_LIFETIME)
    }
}

/// The OFFERs of one exchange, first come first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offers(Vec<Offer>);

impl Offers {
    pub(crate) fn first(&self) -> Option<&Offer> {
        self.0.first()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Holds an offer; true when its server had none here before. A newer OFFER of
    /// a server replaces its older one, in its place.
    pub(crate) fn hold(&mut self, lease: Lease, now: Instant) -> Result<bool, Refusal> {
        let offer = Offer {
            lease: Box::new(lease),
            received: now,
        };
        let server = offer.lease.server;
        if let Some(held) = self.0.iter_mut().find(|held| held.lease.server == server) {
            *held = offer;
            return Ok(false);
        }
        if self.0.len() == MOST_OFFERS {
            return Err(Refusal::TooMany);
        }
        self.0.push(offer);
        Ok(true)
    }

    /// The offer to request next, no longer held.
    pub(crate) fn take(&mut self) -> Option<Offer> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Drops the offers of this address and tells whose they were. Servers that
    /// share their leases offer the same.
    pub(crate) fn drop_address(&mut self, address: Ipv4Addr) -> Vec<Ipv4Addr> {
        let of_it = |held: &Offer| held.lease.address == address;
        let servers = self
            .0
            .iter()
            .filter(|held| of_it(held))
            .map(|held| held.lease.server);
        let servers = servers.collect();
        self.0.retain(|held| !of_it(held));
        servers
    }

    /// Drops the offers that are too old by now.
    pub(crate) fn drop_stale(&mut self, now: Instant) {
        self.0.retain(|held| held.expires_at() > now);
    }

    /// When the oldest offer becomes too old.
    pub(crate) fn next_stale(&self) -> Option<Instant> {
        self.0.iter().map(Offer::expires_at).min()
    }
}

#[derive(Debug, Clone)]
struct Failed {
    server: Ipv4Addr,
    last: Instant,
    failures: u32,
}

/// Servers whose OFFER led to nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shunned(Vec<Failed>);

impl Shunned {
    pub(crate) fn add(&mut self, server: Ipv4Addr, now: Instant) {
        let failures = match self.0.iter().position(|failed| failed.server == server) {
            Some(index) => self.0.remove(index).failures,
            None => 0,
        };
        if self.0.len() == MOST_SHUNNED {
            self.0.remove(0);
        }
        self.0.push(Failed {
            server,
            last: now,
            failures: failures.saturating_add(1),
        });
    }

    /// The server keeps its word after all.
    pub(crate) fn forgive(&mut self, server: Ipv4Addr) {
        self.0.retain(|failed| failed.server != server);
    }

    /// Whether an OFFER of the server may be held, given the others held.
    pub(crate) fn admits(&self, server: Ipv4Addr, others: &Offers, now: Instant) -> bool {
        self.0
            .iter()
            .find(|failed| failed.server == server)
            .is_none_or(|failed| {
                let ago = now.saturating_sub(failed.last);
                ago >= SHUNNED_FOR || (ago >= RELENT_AFTER && others.is_empty())
            })
    }

    /// How often to send a REQUEST to this server.
    pub(crate) fn attempts(&self, server: Ipv4Addr) -> u32 {
        let failures = self
            .0
            .iter()
            .find(|failed| failed.server == server)
            .map_or(0, |f| f.failures);
        ATTEMPTS << failures.min(1)
    }
}
