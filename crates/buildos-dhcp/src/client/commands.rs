//! Handles the inputs of the driver.

use super::machine::Client;
use super::phase::Phase;
use crate::event::{Event, Input, LeaseLoss};
use crate::lease::Lease;
use crate::message::{ClientMessage, MessageKind};
use crate::offers::Offers;
use crate::state::State;
use crate::time::Instant;

impl Client {
    /// Handles an input at the time `now`. Drain [`Client::poll_output`] afterwards.
    ///
    /// An input without a meaning in the current state changes nothing.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Stop => return self.stop(LeaseLoss::Stopped),
            Input::Release => return self.release(),
            Input::Suspend => return self.suspend(),
            Input::Start
            | Input::Packet(_)
            | Input::Timeout
            | Input::Resume(_)
            | Input::Select
            | Input::Renew
            | Input::Conflict { .. } => self.expire(now),
        }
        match input {
            Input::Start => self.start(now),
            Input::Packet(payload) => self.receive(now, payload),
            Input::Timeout => self.timeout(now),
            Input::Resume(lease) => self.resume(now, lease),
            Input::Select => self.select(now),
            Input::Renew => self.renew_now(now),
            Input::Conflict { address, mac } => self.conflict(now, address, mac),
            Input::Stop | Input::Release | Input::Suspend => {}
        }
    }

    fn start(&mut self, now: Instant) {
        match self.take_phase() {
            Phase::Init { .. } if now < self.not_before => {
                self.phase = Phase::Init {
                    search_at: Some(self.not_before),
                };
            }
            Phase::Init { .. } => self.search(now),
            Phase::InitReboot { lease } => self.confirm(now, lease),
            other @ (Phase::Selecting { .. }
            | Phase::Requesting { .. }
            | Phase::Rebooting { .. }
            | Phase::Bound { .. }
            | Phase::Renewing { .. }
            | Phase::Rebinding { .. }) => self.phase = other,
        }
    }

    fn stop(&mut self, reason: LeaseLoss) {
        let phase = self.take_phase();
        self.offers = Offers::default();
        self.last_failure = None;
        if let Some(lease) = phase.into_lease() {
            self.emit(Event::Lost { lease, reason });
        }
    }

    fn release(&mut self) {
        let has_carrier = self.state() != State::InitReboot;
        if let Some(lease) = self.lease().filter(|_| has_carrier) {
            let (address, server) = (lease.address, lease.server);
            let message = ClientMessage {
                ciaddr: address,
                server: Some(server),
                ..ClientMessage::new(MessageKind::Release, self.random.next())
            };
            self.transmit(server, message);
        }
        self.stop(LeaseLoss::Released);
    }

    fn suspend(&mut self) {
        self.offers = Offers::default();
        if let Some(lease) = self.take_phase().into_lease() {
            self.phase = Phase::InitReboot { lease };
        }
    }

    fn resume(&mut self, now: Instant, saved: Box<Lease>) {
        if self.state() != State::Init {
            return;
        }
        let lease = saved.clone().revalidate(now).and_then(|lease| {
            self.config.check(&lease)?;
            Ok(lease)
        });
        match lease {
            Ok(lease) if !lease.is_expired(now) => self.confirm(now, Box::new(lease)),
            Ok(lease) => {
                self.expired_address = Some(lease.address);
                self.lose(Box::new(lease), LeaseLoss::Expired);
                self.start(now);
            }
            Err(refusal) => {
                self.lose(saved, LeaseLoss::Unusable(refusal));
                self.start(now);
            }
        }
    }

    fn select(&mut self, now: Instant) {
        if self.state() != State::Selecting {
            return;
        }
        self.offers.remove_expired(now);
        if let Some(offer) = self.offers.take_first() {
            self.request(now, offer);
        }
    }

    fn renew_now(&mut self, now: Instant) {
        match self.take_phase() {
            Phase::Bound { lease } | Phase::Renewing { lease, .. } => self.renew(now, lease),
            Phase::Rebinding { lease, .. } => self.rebind(now, lease),
            other @ (Phase::Init { .. }
            | Phase::Selecting { .. }
            | Phase::Requesting { .. }
            | Phase::InitReboot { .. }
            | Phase::Rebooting { .. }) => self.phase = other,
        }
    }
}
