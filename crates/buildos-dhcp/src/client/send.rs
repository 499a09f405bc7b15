//! Begins exchanges and sends DISCOVER and the REQUESTs of each state.
//!
//! | state | message | destination |
//! |---|---|---|
//! | SELECTING | DISCOVER | broadcast |
//! | REQUESTING | REQUEST with server identifier and requested address | broadcast |
//! | REBOOTING | REQUEST with requested address | broadcast |
//! | RENEWING | REQUEST from the leased address | server of the lease |
//! | REBINDING | REQUEST from the leased address | broadcast |

use core::time::Duration;
use std::net::Ipv4Addr;

use super::exchange::{Counters, Exchange};
use super::machine::Client;
use super::phase::Phase;
use crate::lease::Lease;
use crate::message::{ClientMessage, MessageKind};
use crate::offers::{Offer, Offers};
use crate::retransmission::{confirmation_delay, discovery_delay, renewal_delay, request_delay};
use crate::time::Instant;

impl Client {
    /// Begins a new search.
    pub(super) fn search(&mut self, now: Instant) {
        self.begin_exchange(now);
        self.discover(now);
    }

    /// Begins a new search after `delay`.
    pub(super) fn search_after(&mut self, now: Instant, delay: Duration) {
        if delay.is_zero() {
            self.search(now)
        } else {
            self.wait_in_init(now, delay)
        }
    }

    /// Continues the search with a new transaction id and without the OFFERs held.
    pub(super) fn discover(&mut self, now: Instant) {
        self.offers = Offers::default();
        self.exchange.xid = self.random.next();
        self.exchange.sent = 0;
        self.send_discover(now);
    }

    /// Requests an OFFER, with the transaction id of the search.
    pub(super) fn request(&mut self, now: Instant, offer: Offer) {
        self.exchange.sent = 0;
        self.exchange.requested_at = now;
        self.send_request(now, offer);
    }

    /// Asks the network to confirm a lease (INIT-REBOOT).
    pub(super) fn confirm(&mut self, now: Instant, lease: Box<Lease>) {
        self.begin_exchange(now);
        self.send_confirmation(now, lease);
    }

    pub(super) fn renew(&mut self, now: Instant, lease: Box<Lease>) {
        self.begin_exchange(now);
        self.send_renewal(now, lease);
    }

    pub(super) fn rebind(&mut self, now: Instant, lease: Box<Lease>) {
        self.begin_exchange(now);
        self.send_rebinding(now, lease);
    }

    fn begin_exchange(&mut self, now: Instant) {
        self.counters = Counters::default();
        self.last_refusal = None;
        self.exchange = Exchange::new(now, self.random.next());
    }

    pub(super) fn send_discover(&mut self, now: Instant) {
        self.exchange.count_broadcast(self.config.broadcast);
        self.counters.discovers = self.counters.discovers.saturating_add(1);
        self.exchange.set_secs(now);
        let message = ClientMessage {
            requested: self.expired_address,
            ..self.exchange.message(MessageKind::Discover)
        };
        self.transmit(Ipv4Addr::BROADCAST, message);
        self.phase = Phase::Selecting {
            retry_at: self.broadcast_retry(now, discovery_delay),
        };
    }

    pub(super) fn send_request(&mut self, now: Instant, offer: Offer) {
        // The broadcast flag stays that of the answered DISCOVER.
        self.exchange.sent = self.exchange.sent.saturating_add(1);
        self.counters.requests = self.counters.requests.saturating_add(1);
        let message = ClientMessage {
            requested: Some(offer.lease.address),
            server: Some(offer.lease.server),
            ..self.exchange.message(MessageKind::Request)
        };
        self.transmit(Ipv4Addr::BROADCAST, message);
        let delay = self.random.jitter(request_delay(self.exchange.sent));
        self.phase = Phase::Requesting {
            offer,
            retry_at: now.saturating_add(delay),
        };
    }

    pub(super) fn send_confirmation(&mut self, now: Instant, lease: Box<Lease>) {
        self.exchange.count_broadcast(self.config.broadcast);
        self.counters.requests = self.counters.requests.saturating_add(1);
        self.exchange.set_secs(now);
        let message = ClientMessage {
            requested: Some(lease.address),
            ..self.exchange.message(MessageKind::Request)
        };
        self.transmit(Ipv4Addr::BROADCAST, message);
        self.phase = Phase::Rebooting {
            lease,
            retry_at: self.broadcast_retry(now, confirmation_delay),
        };
    }

    pub(super) fn send_renewal(&mut self, now: Instant, lease: Box<Lease>) {
        let retry_at = self.send_extension(now, &lease, lease.server, lease.rebind_at());
        self.phase = Phase::Renewing { lease, retry_at };
    }

    pub(super) fn send_rebinding(&mut self, now: Instant, lease: Box<Lease>) {
        let retry_at = self.send_extension(now, &lease, Ipv4Addr::BROADCAST, lease.expires_at());
        self.phase = Phase::Rebinding { lease, retry_at };
    }

    /// Sends a REQUEST from the leased address and returns the time of the next one.
    ///
    /// The extended lease counts from the REQUEST that the server answers. Each REQUEST
    /// therefore has its own transaction id, as RFC 2131, section 4.1 permits.
    fn send_extension(
        &mut self,
        now: Instant,
        lease: &Lease,
        destination: Ipv4Addr,
        next_state_at: Option<Instant>,
    ) -> Instant {
        self.exchange.xid = self.random.next();
        self.exchange.requested_at = now;
        self.exchange.sent = self.exchange.sent.saturating_add(1);
        self.counters.requests = self.counters.requests.saturating_add(1);
        self.exchange.set_secs(now);
        let message = ClientMessage {
            ciaddr: lease.address,
            ..self.exchange.message(MessageKind::Request)
        };
        self.transmit(destination, message);
        let remaining = next_state_at.map(|at| at.saturating_sub(now));
        now.saturating_add(renewal_delay(remaining, lease.term.map(|term| term.lease)))
    }

    /// Returns the time of the next broadcast of the exchange, by the number of messages sent
    /// and the time since its beginning.
    fn broadcast_retry(&mut self, now: Instant, delay: fn(u32, Duration) -> Duration) -> Instant {
        let elapsed = now.saturating_sub(self.exchange.began);
        let delay = self.random.jitter(delay(self.exchange.sent, elapsed));
        now.saturating_add(delay)
    }
}
