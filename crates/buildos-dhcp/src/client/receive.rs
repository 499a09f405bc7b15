//! What a server's message does.

use std::net::Ipv4Addr;

use super::{Client, Phase};
use crate::message::decode;
use crate::retransmission::nak_gap;
use crate::{Event, Failure, Instant, Lease, Loss, MessageKind, Refusal, ServerMessage};

/// How many refusals of one exchange are told at most. More servers than that on
/// one network are an attack, and each one would be a line in the journal.
const REFUSALS_TOLD: u32 = 64;

impl Client {
    pub(super) fn packet(&mut self, now: Instant, payload: &[u8]) {
        match decode(payload, self.config.mac) {
            Ok(message) if message.xid == self.exchange.xid && self.answer(now, &message) => {}
            _ => self.counters.ignored = self.counters.ignored.saturating_add(1),
        }
    }

    /// Handles an answer to this exchange; false when this state expects none such.
    fn answer(&mut self, now: Instant, message: &ServerMessage) -> bool {
        match (message.kind, &self.phase) {
            (MessageKind::Offer, Phase::Selecting { .. } | Phase::Requesting { .. }) => {
                self.hold(now, message);
            }
            // RFC 2131, section 3.1, step 4: only the server selected has a say.
            (MessageKind::Ack | MessageKind::Nak, Phase::Requesting { offer, .. })
                if message.server != Some(offer.lease.server) =>
            {
                return false;
            }
            (MessageKind::Ack, phase) => {
                let Some(asked) = phase.asked() else {
                    return false;
                };
                self.ack(now, asked, message);
            }
            (MessageKind::Nak, phase) if phase.asked().is_some() => {
                if message
                    .server
                    .is_some_and(|server| !self.config.allows(server))
                {
                    return false;
                }
                self.nak(now, message);
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

    fn hold(&mut self, now: Instant, message: &ServerMessage) {
        let held = Lease::from_message(message, now).and_then(|lease| {
            self.config.check(&lease)?;
            let (server, address) = (lease.server, lease.address);
            if !self.shunned.admits(server, &self.offers, now) {
                return Err(Refusal::Shunned(server));
            }
            let first = self.offers.hold(lease, now)?;
            Ok(first.then_some(Event::Offered { server, address }))
        });
        match held {
            Ok(event) => {
                self.counters.offers = self.counters.offers.saturating_add(1);
                event.into_iter().for_each(|event| self.emit(event));
            }
            Err(why) => self.refuse(MessageKind::Offer, message.server, why),
        }
    }

    fn ack(&mut self, now: Instant, asked: Ipv4Addr, message: &ServerMessage) {
        let lease = Lease::from_message(message, self.exchange.requested_at).and_then(|lease| {
            self.config.check(&lease)?;
            if lease.address != asked {
                return Err(Refusal::OtherAddress {
                    asked,
                    got: lease.address,
                });
            }
            Ok(Box::new(lease))
        });
        match (lease, self.leave()) {
            (Ok(lease), phase) => {
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
                self.shunned.forgive(lease.server);
                self.naks = 0;
                self.hint = None;
                self.setback = None;
                self.offers = Default::default();
                self.phase = Phase::Bound { lease };
                self.emit(event);
            }
            (Err(why), Phase::Requesting { offer, .. }) => {
                self.refuse(MessageKind::Ack, message.server, why.clone());
                self.fail(now, offer.lease.server, Failure::BadAck(why));
            }
            (Err(why), phase) => {
                self.phase = phase;
                self.refuse(MessageKind::Ack, message.server, why);
            }
        }
    }

    fn nak(&mut self, now: Instant, message: &ServerMessage) {
        self.naks = self.naks.saturating_add(1);
        self.hint = None;
        match self.leave() {
            Phase::Requesting { offer, .. } => {
                self.fail(
                    now,
                    offer.lease.server,
                    Failure::Nak {
                        message: message.text(),
                    },
                );
            }
            Phase::Rebooting { lease, .. }
            | Phase::Renewing { lease, .. }
            | Phase::Rebinding { lease, .. } => {
                let why = Loss::Nak {
                    server: message.server,
                    message: message.text(),
                };
                self.lose(lease, why);
                self.search_after(now, nak_gap(self.naks));
            }
            other @ (Phase::Init { .. }
            | Phase::Selecting { .. }
            | Phase::InitReboot { .. }
            | Phase::Bound { .. }) => self.phase = other,
        }
    }

    /// Tells of a message refused. A server that repeats itself is told of once, and
    /// of a flood only the beginning; all are counted.
    pub(super) fn refuse(&mut self, kind: MessageKind, server: Option<Ipv4Addr>, why: Refusal) {
        self.counters.refused = self.counters.refused.saturating_add(1);
        let refusal = Some((server, why.clone()));
        if self.last_refusal != refusal && self.counters.refused <= REFUSALS_TOLD {
            self.last_refusal = refusal;
            self.emit(Event::Refused { kind, server, why });
        }
    }
}

impl Phase {
    /// The address for which a REQUEST is on its way.
    fn asked(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Requesting { offer, .. } => Some(offer.lease.address),
            Self::Rebooting { lease, .. }
            | Self::Renewing { lease, .. }
            | Self::Rebinding { lease, .. } => Some(lease.address),
            Self::Init { .. }
            | Self::Selecting { .. }
            | Self::InitReboot { .. }
            | Self::Bound { .. } => None,
        }
    }
}
