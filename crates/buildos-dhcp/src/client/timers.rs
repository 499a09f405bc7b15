//! Computes the deadline and makes the transitions that time causes.

use super::machine::Client;
use super::phase::Phase;
use crate::event::{Event, LeaseLoss, RequestFailure};
use crate::state::State;
use crate::time::Instant;

/// REQUESTs sent in REBOOTING, within about ten seconds, before the client uses the
/// lease unconfirmed.
const CONFIRMATION_REQUESTS: u32 = 8;

impl Client {
    /// Returns the time by which to call [`Client::handle`] with
    /// [`Input::Timeout`](crate::Input::Timeout), possibly a past one. With `None` the
    /// client waits for other inputs only.
    pub fn deadline(&self) -> Option<Instant> {
        let earliest = |times: [Option<Instant>; 3]| times.into_iter().flatten().min();
        match &self.phase {
            Phase::Init { search_at } => *search_at,
            Phase::Selecting { retry_at } => self.offers.next_expiry().or(Some(*retry_at)),
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

    /// Drops an expired lease. Runs before every input, so that no input uses one.
    pub(super) fn expire(&mut self, now: Instant) {
        if !self.lease().is_some_and(|lease| lease.is_expired(now)) {
            return;
        }
        let has_carrier = self.state() != State::InitReboot;
        if let Some(lease) = self.take_phase().into_lease() {
            self.expired_address = Some(lease.address);
            self.lose(lease, LeaseLoss::Expired);
        }
        if has_carrier {
            self.search(now);
        }
    }

    pub(super) fn timeout(&mut self, now: Instant) {
        match self.take_phase() {
            Phase::Init {
                search_at: Some(search_at),
            } if search_at <= now => self.search(now),
            Phase::Selecting { retry_at } => self.offers_timeout(now, retry_at),
            Phase::Requesting { offer, retry_at } if retry_at <= now => {
                let server = offer.lease.server;
                let requests = self.exchange.sent;
                if requests < self.failed_servers.requests(server) {
                    self.send_request(now, offer);
                } else {
                    self.fail_request(now, server, RequestFailure::Unanswered { requests });
                }
            }
            Phase::Rebooting { lease, retry_at } if retry_at <= now => {
                if self.exchange.sent < CONFIRMATION_REQUESTS {
                    self.send_confirmation(now, lease);
                } else {
                    self.last_failure = Some("not confirmed by any server".to_owned());
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

    fn offers_timeout(&mut self, now: Instant, retry_at: Instant) {
        self.offers.remove_expired(now);
        if self.offers.is_empty() && retry_at <= now {
            self.send_discover(now);
        } else {
            self.phase = Phase::Selecting { retry_at };
        }
    }
}

fn is_due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}
