//! Handles the messages of servers.

use core::time::Duration;
use std::net::Ipv4Addr;

use super::machine::Client;
use super::phase::Phase;
use crate::event::{Event, LeaseLoss, RequestFailure};
use crate::lease::Lease;
use crate::message::{MessageKind, ServerMessage, decode_for};
use crate::offers::Offer;
use crate::refusal::Refusal;
use crate::retransmission::nak_delay;
use crate::time::Instant;

/// Maximum number of refusals reported per exchange. Each one is a line in the journal;
/// more servers on one network are an attack.
const MAXIMUM_REFUSAL_EVENTS: u32 = 64;

impl Client {
    pub(super) fn receive(&mut self, now: Instant, payload: &[u8]) {
        match decode_for(payload, self.config.mac, &self.config.identity.client_id) {
            Ok(message) if message.xid == self.exchange.xid && self.answer(now, &message) => {}
            _ => self.counters.ignored = self.counters.ignored.saturating_add(1),
        }
    }

    /// Handles an answer to this exchange, and returns false if the state expects none
    /// of this kind.
    fn answer(&mut self, now: Instant, message: &ServerMessage) -> bool {
        match (message.kind, &self.phase) {
            (MessageKind::Offer, Phase::Selecting { .. } | Phase::Requesting { .. }) => {
                self.offer_received(now, message);
            }
            // RFC 2131, section 3.1, step 4: only the selected server answers.
            (MessageKind::Ack | MessageKind::Nak, Phase::Requesting { offer, .. })
                if message.server != Some(offer.lease.server) =>
            {
                return false;
            }
            (MessageKind::Ack, phase) => {
                let Some(requested) = phase.requested_address() else {
                    return false;
                };
                self.ack_received(now, requested, message);
            }
            (MessageKind::Nak, phase) if phase.requested_address().is_some() => {
                if message
                    .server
                    .is_some_and(|server| !self.config.allows(server))
                {
                    return false;
                }
                self.nak_received(now, message);
            }
            (
                MessageKind::Discover
                | MessageKind::Offer
                | MessageKind::Request
                | MessageKind::Decline
                | MessageKind::Nak
                | MessageKind::Release,
                _,
            ) => return false,
        }
        true
    }

    fn offer_received(&mut self, now: Instant, message: &ServerMessage) {
        let held = Lease::from_message(message, now).and_then(|lease| {
            self.config.check(&lease)?;
            let (server, address) = (lease.server, lease.address);
            let has_other = !self.offers.is_empty();
            if !self.failed_servers.permits(server, has_other, now) {
                return Err(Refusal::RecentFailure(server));
            }
            let is_first = self.offers.hold(lease, now)?;
            Ok(is_first.then_some(Event::Offered { server, address }))
        });
        match held {
            Ok(event) => {
                self.counters.offers = self.counters.offers.saturating_add(1);
                event.into_iter().for_each(|event| self.emit(event));
            }
            Err(refusal) => self.refuse(MessageKind::Offer, message.server, refusal),
        }
    }

    fn ack_received(&mut self, now: Instant, requested: Ipv4Addr, message: &ServerMessage) {
        let lease = Lease::from_message(message, self.exchange.requested_at).and_then(|lease| {
            self.config.check(&lease)?;
            if lease.address != requested {
                return Err(Refusal::OtherAddress {
                    requested,
                    granted: lease.address,
                });
            }
            Ok(Box::new(lease))
        });
        match (lease, self.take_phase()) {
            (Ok(mut lease), phase) => {
                if self.config.jitter {
                    lease.spread(&mut self.random);
                }
                let event = match phase {
                    Phase::Requesting { .. } => Event::Bound(lease.clone()),
                    Phase::Init { .. }
                    | Phase::Selecting { .. }
                    | Phase::InitReboot { .. }
                    | Phase::Bound { .. }
                    | Phase::Rebooting { .. }
                    | Phase::Renewing { .. }
                    | Phase::Rebinding { .. } => Event::Renewed(lease.clone()),
                };
                self.failed_servers.remove(lease.server);
                self.naks = 0;
                self.expired_address = None;
                self.last_failure = None;
                self.offers = Default::default();
                self.phase = Phase::Bound { lease };
                self.emit(event);
            }
            (Err(refusal), Phase::Requesting { offer, .. }) => {
                self.refuse(MessageKind::Ack, message.server, refusal.clone());
                self.fail_request(now, offer.lease.server, RequestFailure::BadAck(refusal));
            }
            (Err(refusal), phase) => {
                self.phase = phase;
                self.refuse(MessageKind::Ack, message.server, refusal);
            }
        }
    }

    fn nak_received(&mut self, now: Instant, message: &ServerMessage) {
        self.naks = self.naks.saturating_add(1);
        self.expired_address = None;
        match self.take_phase() {
            Phase::Requesting { offer, .. } => {
                self.fail_request(
                    now,
                    offer.lease.server,
                    RequestFailure::Nak {
                        message: message.text(),
                    },
                );
            }
            Phase::Rebooting { lease, .. }
            | Phase::Renewing { lease, .. }
            | Phase::Rebinding { lease, .. } => {
                let reason = LeaseLoss::Nak {
                    server: message.server,
                    message: message.text(),
                };
                self.lose(lease, reason);
                self.search_after(now, nak_delay(self.naks));
            }
            other @ (Phase::Init { .. }
            | Phase::Selecting { .. }
            | Phase::InitReboot { .. }
            | Phase::Bound { .. }) => self.phase = other,
        }
    }

    /// Counts a refusal and reports it, unless it repeats the last one or the maximum is
    /// reached.
    pub(super) fn refuse(&mut self, kind: MessageKind, server: Option<Ipv4Addr>, reason: Refusal) {
        self.counters.refused = self.counters.refused.saturating_add(1);
        let refusal = Some((server, reason.clone()));
        if self.last_refusal != refusal && self.counters.refused <= MAXIMUM_REFUSAL_EVENTS {
            self.last_refusal = refusal;
            self.emit(Event::Refused {
                kind,
                server,
                reason,
            });
        }
    }

    /// Ends the exchange for an OFFER without a lease.
    pub(super) fn fail_request(&mut self, now: Instant, server: Ipv4Addr, reason: RequestFailure) {
        // A server that restarts, or that forgets its OFFER after the ping check, denies the
        // first REQUEST and grants the next one.
        let (delay, is_failure) = match reason {
            RequestFailure::Unanswered { .. } | RequestFailure::BadAck(_) => (Duration::ZERO, true),
            RequestFailure::Nak { .. } => (nak_delay(self.naks), self.naks > 1),
            RequestFailure::Conflict { .. } => (self.count_conflict(now), false),
        };
        if is_failure {
            self.failed_servers.add(server, now);
        }
        self.last_failure = Some(format!("{server}: {reason}"));
        self.emit(Event::RequestFailed { server, reason });
        self.next_offer(now, delay);
    }

    /// Announces the next OFFER held. Without one, sends a DISCOVER after `delay`.
    pub(super) fn next_offer(&mut self, now: Instant, delay: Duration) {
        self.offers.remove_expired(now);
        match self.offers.first() {
            Some(Offer { lease, .. }) => {
                let (server, address) = (lease.server, lease.address);
                self.phase = Phase::Selecting { retry_at: now };
                self.emit(Event::Offered { server, address });
            }
            None if delay.is_zero() => self.discover(now),
            None => self.wait_in_init(now, delay),
        }
    }
}
