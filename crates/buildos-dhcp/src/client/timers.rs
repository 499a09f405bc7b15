//! What time does, and what is sent when.

use core::time::Duration;
use std::net::Ipv4Addr;

use super::{Client, Counters, Exchange, Phase};
use crate::message::ClientMessage;
use crate::offers::{Offer, Offers};
use crate::retransmission::{discovery_gap, renewal_gap, request_gap};
use crate::{Event, Failure, Instant, Lease, Loss, MessageKind, State};

/// How often a lease is presented for confirmation before it is used without:
/// about ten seconds.
const CONFIRMATIONS: u32 = 6;
/// How many messages are sent without the broadcast flag before every other one
/// carries it: some relays cannot deliver a unicast answer.
const WITHOUT_BROADCAST: u32 = 4;

impl Client {
    /// When to call [`Client::handle`] with [`Input::Timeout`](crate::Input::Timeout)
    /// at the latest. It may lie in the past. None: only other inputs matter.
    pub fn deadline(&self) -> Option<Instant> {
        let earliest = |times: [Option<Instant>; 3]| times.into_iter().flatten().min();
        match &self.phase {
            Phase::Init { wake } => *wake,
            Phase::Selecting { retry_at } => self.offers.next_stale().or(Some(*retry_at)),
            Phase::Requesting { retry_at, .. } => Some(*retry_at),
            Phase::InitReboot { lease } => lease.expires_at(),
            Phase::Bound { lease } => lease.renew_at(),
            Phase::Renewing { lease, retry_at } => {
                earliest([Some(*retry_at), lease.rebind_at(), lease.expires_at()])
            }
            Phase::Rebooting { lease, retry_at } | Phase::Rebinding { lease, retry_at } => {
                earliest([Some(*retry_at), lease.expires_at(), None])
            }
        }
    }

    /// Gives the lease up when its time is over, whatever else has happened.
    pub(super) fn expire(&mut self, now: Instant) {
        if !self.lease().is_some_and(|lease| lease.is_expired(now)) {
            return;
        }
        let suspended = self.state() == State::InitReboot;
        if let Some(lease) = self.leave().into_lease() {
            self.hint = Some(lease.address);
            self.lose(lease, Loss::Expired);
        }
        if !suspended {
            self.search(now);
        }
    }

    pub(super) fn timeout(&mut self, now: Instant) {
        match self.leave() {
            Phase::Init { wake: Some(wake) } if wake <= now => self.search(now),
            Phase::Selecting { retry_at } => self.await_offers(now, retry_at),
            Phase::Requesting { offer, retry_at } if retry_at <= now => {
                let server = offer.lease.server;
                let requests = self.exchange.sent;
                if requests < self.shunned.attempts(server) {
                    self.send_request(now, offer);
                } else {
                    self.fail(now, server, Failure::Unanswered { requests });
                }
            }
            Phase::Rebooting { lease, retry_at } if retry_at <= now => {
                if self.exchange.sent < CONFIRMATIONS {
                    self.send_confirmation(now, lease);
                } else {
                    self.setback = Some("not confirmed by any server".to_owned());
                    self.emit(Event::Unconfirmed(lease.clone()));
                    self.phase = Phase::Bound { lease };
                }
            }
            Phase::Bound { lease } | Phase::Renewing { lease, .. }
                if is_due(lease.rebind_at(), now) =>
            {
                self.rebind(now, lease);
            }
            Phase::Bound { lease } if is_due(lease.renew_at(), now) => self.renew(now, lease),
            Phase::Renewing { lease, retry_at } if retry_at <= now => self.send_renewal(now, lease),
            Phase::Rebinding { lease, retry_at } if retry_at <= now => {
                self.send_rebinding(now, lease);
            }
            other @ (Phase::Init { .. }
            | Phase::Requesting { .. }
            | Phase::InitReboot { .. }
            | Phase::Rebooting { .. }
            | Phase::Bound { .. }
            | Phase::Renewing { .. }
            | Phase::Rebinding { .. }) => self.phase = other,
        }
    }

    fn await_offers(&mut self, now: Instant, retry_at: Instant) {
        self.offers.drop_stale(now);
        if self.offers.is_empty() && retry_at <= now {
            self.send_discover(now);
        } else {
            self.phase = Phase::Selecting { retry_at };
        }
    }

    /// A new search, from INIT.
    pub(super) fn search(&mut self, now: Instant) {
        self.begin(now);
        self.discover(now);
    }

    /// A new search, now or after a wait.
    pub(super) fn search_after(&mut self, now: Instant, wait: Duration) {
        if wait.is_zero() {
            self.search(now)
        } else {
            self.hold_off(now, wait)
        }
    }

    /// DISCOVERs with a new transaction id, within the same search.
    pub(super) fn discover(&mut self, now: Instant) {
        self.offers = Offers::default();
        self.exchange.xid = self.random.next();
        self.exchange.sent = 0;
        self.send_discover(now);
    }

    /// Requests an OFFER, with its transaction id.
    pub(super) fn request(&mut self, now: Instant, offer: Offer) {
        self.exchange.sent = 0;
        self.exchange.requested_at = now;
        self.send_request(now, offer);
    }

    /// Asks whether a lease of earlier holds on this network.
    pub(super) fn reboot(&mut self, now: Instant, lease: Box<Lease>) {
        self.begin(now);
        self.send_confirmation(now, lease);
    }

    pub(super) fn renew(&mut self, now: Instant, lease: Box<Lease>) {
        self.begin(now);
        self.send_renewal(now, lease);
    }

    pub(super) fn rebind(&mut self, now: Instant, lease: Box<Lease>) {
        self.begin(now);
        self.send_rebinding(now, lease);
    }

    fn begin(&mut self, now: Instant) {
        self.counters = Counters::default();
        self.last_refusal = None;
        self.exchange = Exchange {
            xid: self.random.next(),
            began: now,
            requested_at: now,
            ..Exchange::default()
        };
    }

    fn send_discover(&mut self, now: Instant) {
        self.count();
        self.counters.discovers = self.counters.discovers.saturating_add(1);
        self.exchange.secs = self.secs(now);
        let message = ClientMessage {
            requested: self.hint,
            ..self.message(MessageKind::Discover)
        };
        self.transmit(Ipv4Addr::BROADCAST, message);
        self.phase = Phase::Selecting {
            retry_at: self.discovery_retry(now),
        };
    }

    fn send_request(&mut self, now: Instant, offer: Offer) {
        // The broadcast flag stays that of the DISCOVER which was answered.
        self.exchange.sent = self.exchange.sent.saturating_add(1);
        self.counters.requests = self.counters.requests.saturating_add(1);
        let message = ClientMessage {
            requested: Some(offer.lease.address),
            server: Some(offer.lease.server),
            ..self.message(MessageKind::Request)
        };
        self.transmit(Ipv4Addr::BROADCAST, message);
        let gap = self.random.jitter(request_gap(self.exchange.sent));
        self.phase = Phase::Requesting {
            offer,
            retry_at: now.saturating_add(gap),
        };
    }

    fn send_confirmation(&mut self, now: Instant, lease: Box<Lease>) {
        self.count();
        self.counters.requests = self.counters.requests.saturating_add(1);
        self.exchange.secs = self.secs(now);
        let message = ClientMessage {
            requested: Some(lease.address),
            ..self.message(MessageKind::Request)
        };
        self.transmit(Ipv4Addr::BROADCAST, message);
        self.phase = Phase::Rebooting {
            lease,
            retry_at: self.discovery_retry(now),
        };
    }

    fn send_renewal(&mut self, now: Instant, lease: Box<Lease>) {
        let retry_at = self.send_extension(now, &lease, lease.server, lease.rebind_at());
        self.phase = Phase::Renewing { lease, retry_at };
    }

    fn send_rebinding(&mut self, now: Instant, lease: Box<Lease>) {
        let everybody = Ipv4Addr::BROADCAST;
        let retry_at = self.send_extension(now, &lease, everybody, lease.expires_at());
        self.phase = Phase::Rebinding { lease, retry_at };
    }

    /// A REQUEST from the leased address. The gaps are long, so each one gets a
    /// transaction id of its own, which RFC 2131, section 4.1 leaves to the client:
    /// it tells from which REQUEST on the extended lease counts.
    fn send_extension(
        &mut self,
        now: Instant,
        lease: &Lease,
        destination: Ipv4Addr,
        until: Option<Instant>,
    ) -> Instant {
        self.exchange.xid = self.random.next();
        self.exchange.requested_at = now;
        self.exchange.sent = self.exchange.sent.saturating_add(1);
        self.counters.requests = self.counters.requests.saturating_add(1);
        self.exchange.secs = self.secs(now);
        let message = ClientMessage {
            ciaddr: lease.address,
            ..self.message(MessageKind::Request)
        };
        self.transmit(destination, message);
        let remains = until.map(|until| until.saturating_sub(now));
        now.saturating_add(renewal_gap(remains, lease.term.map(|term| term.lease)))
    }

    /// Counts a broadcast message and decides on its broadcast flag.
    fn count(&mut self) {
        self.exchange.sent = self.exchange.sent.saturating_add(1);
        let odd = self.exchange.sent % 2 == 1;
        self.exchange.broadcast = odd && self.exchange.sent > WITHOUT_BROADCAST;
    }

    /// Seconds since the exchange began, for the header.
    fn secs(&self, now: Instant) -> u16 {
        let seconds = now.saturating_sub(self.exchange.began).as_secs();
        u16::try_from(seconds).unwrap_or(u16::MAX)
    }

    fn discovery_retry(&mut self, now: Instant) -> Instant {
        let elapsed = now.saturating_sub(self.exchange.began);
        let gap = self
            .random
            .jitter(discovery_gap(self.exchange.sent, elapsed));
        now.saturating_add(gap)
    }

    /// A message with what all messages of the exchange have in common.
    fn message(&self, kind: MessageKind) -> ClientMessage {
        ClientMessage {
            secs: self.exchange.secs,
            broadcast: self.exchange.broadcast,
            ..ClientMessage::new(kind, self.exchange.xid)
        }
    }
}

fn is_due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}
