//! Declines addresses that another host uses (RFC 2131, section 3.1, step 5).
//!
//! Each DECLINE costs the server an address. A host that answers every ARP request must
//! not empty the pool, or keep this host off the network. After two conflicts in a row
//! the client therefore uses the next address despite claims.

use core::time::Duration;
use std::net::Ipv4Addr;

use super::machine::Client;
use super::phase::Phase;
use crate::event::{LeaseLoss, RequestFailure};
use crate::message::{ClientMessage, MessageKind};
use crate::refusal::Refusal;
use crate::retransmission::{CONFLICT_MEMORY, conflict_delay};
use crate::state::State;
use buildos_types::MacAddress;

use crate::time::Instant;

/// Maximum number of conflicts in a row after which the client declines an address.
const MAXIMUM_CONFLICTS: u32 = 2;

impl Client {
    /// Returns true if the client declines an address in use by another host
    /// ([`Input::Conflict`](crate::Input::Conflict)). Otherwise it uses the address.
    pub fn may_decline(&self, now: Instant) -> bool {
        self.recent_conflicts(now) < MAXIMUM_CONFLICTS
    }

    /// Returns the number of conflicts in a row.
    fn recent_conflicts(&self, now: Instant) -> u32 {
        let is_recent = now.saturating_sub(self.last_conflict) < CONFLICT_MEMORY;
        if is_recent { self.conflicts } else { 0 }
    }

    pub(super) fn conflict(&mut self, now: Instant, address: Ipv4Addr, mac: MacAddress) {
        if !self.may_decline(now) {
            return;
        }
        match self.take_phase() {
            Phase::Requesting { offer, .. } if offer.lease.address == address => {
                self.decline(offer.lease.server, address);
                self.decline_offers(address, mac);
                self.fail_request(now, offer.lease.server, RequestFailure::Conflict { mac });
            }
            Phase::Bound { lease }
            | Phase::Renewing { lease, .. }
            | Phase::Rebinding { lease, .. }
            | Phase::Rebooting { lease, .. }
                if lease.address == address =>
            {
                self.decline(lease.server, address);
                self.lose(lease, LeaseLoss::Conflict { mac });
                let delay = self.count_conflict(now);
                self.wait_in_init(now, delay);
            }
            other @ (Phase::Init { .. }
            | Phase::Selecting { .. }
            | Phase::Requesting { .. }
            | Phase::InitReboot { .. }
            | Phase::Rebooting { .. }
            | Phase::Bound { .. }
            | Phase::Renewing { .. }
            | Phase::Rebinding { .. }) => {
                self.phase = other;
                let declined = self.decline_offers(address, mac);
                if declined && self.state() == State::Selecting {
                    let delay = self.count_conflict(now);
                    self.next_offer(now, delay);
                }
            }
        }
    }

    /// Counts a conflict and returns the delay before the next search, which does not
    /// request the address of an expired lease.
    pub(super) fn count_conflict(&mut self, now: Instant) -> Duration {
        self.conflicts = self.recent_conflicts(now).saturating_add(1);
        self.last_conflict = now;
        self.expired_address = None;
        conflict_delay(self.conflicts)
    }

    /// Declines the OFFERs of this address, and returns true if there were any.
    fn decline_offers(&mut self, address: Ipv4Addr, mac: MacAddress) -> bool {
        let servers = self.offers.remove_address(address);
        for server in &servers {
            self.decline(*server, address);
            let refusal = Refusal::InUse { address, mac };
            self.refuse(MessageKind::Offer, Some(*server), refusal);
        }
        !servers.is_empty()
    }

    fn decline(&mut self, server: Ipv4Addr, address: Ipv4Addr) {
        let message = ClientMessage {
            requested: Some(address),
            server: Some(server),
            ..ClientMessage::new(MessageKind::Decline, self.random.next())
        };
        self.transmit(Ipv4Addr::BROADCAST, message);
    }
}
