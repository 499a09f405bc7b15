//! Decides which clients run, and which of their offers is requested.
//!
//! A lease is provisional while another NIC could bring a better one ([`Rank`]). The clients
//! of these NICs run, and a better offer is requested. A lease of the best rank is final.

use std::cmp::Reverse;

use buildos_dbus_api::network1::Reachability;
use buildos_dhcp::{Input, Instant};
use buildos_types::LinkIndex;

use super::Election;
use crate::uplink::contender::Contender;
use crate::uplink::notice::Notice;
use crate::uplink::rank::Rank;

impl Election {
    /// Returns the rank of the lease of the port of br0.
    #[must_use]
    pub fn rank(&self) -> Option<Rank> {
        let port = self.port()?;
        let lease = port.client.lease()?;
        let rank = self.rank_of(port, lease);
        match self.is_gateway_silent() {
            true => Some(rank.with_silent_gateway(self.rules.online_requires)),
            false => Some(rank),
        }
    }

    /// Returns true if br0 has a lease that a better one on another NIC would replace.
    #[must_use]
    pub fn is_provisional(&self) -> bool {
        self.rank().is_some_and(|rank| {
            self.contenders()
                .any(|contender| self.could_beat(contender, rank))
        })
    }

    pub(super) fn start_and_stop_clients(&mut self, now: Instant) {
        let open = self.is_open(now);
        if open && self.open_since.is_none() {
            self.open_since = Some(now);
            let wait = self.rules.bootif_wait;
            self.bootif_until = self.rules.bootif.map(|_| now.saturating_add(wait));
        }
        if !open {
            self.open_since = None;
        }
        self.end_replaced_leases();
        let rank = self.rank().filter(|_| !open);
        let may_win = |contender: &Contender| rank.is_none_or(|r| self.could_beat(contender, r));
        let contenders = self.contenders.iter();
        let winners = contenders.filter(|(_, contender)| may_win(contender));
        let winners: Vec<LinkIndex> = winners.map(|(index, _)| *index).collect();
        for (index, contender) in &mut self.contenders {
            let is_port = self.port == Some(*index);
            let run = contender.candidate.carrier && (is_port || winners.contains(index));
            let holds_lease = contender.client.lease().is_some();
            let input = match (run, contender.running) {
                (true, false) => Input::Start,
                (false, true) if is_port && holds_lease => Input::Suspend,
                (false, true) => Input::Stop,
                (true, true) | (false, false) => continue,
            };
            contender.client.handle(now, input);
            contender.running = run;
            contender.offered_at = None;
        }
    }

    /// Ends the leases of NICs other than the port of br0.
    fn end_replaced_leases(&mut self) {
        let Some(port) = self.port else { return };
        let winner = self.port().map(|port| port.candidate.name.clone());
        for (index, contender) in &mut self.contenders {
            let lease = contender.client.lease().cloned();
            let Some((lease, by)) = lease.zip(winner.clone()).filter(|_| *index != port) else {
                continue;
            };
            let monitor = contender.monitor.as_ref();
            let silent = monitor.is_some_and(|m| m.reachability() == Reachability::Unreachable);
            contender.stop();
            let reason = match contender.no_carrier_since {
                Some(_) => "no carrier".to_owned(),
                None if silent => "its gateway does not answer".to_owned(),
                None => format!("the lease of {by} is better"),
            };
            self.effects.push_back(super::Effect::Notice(
                *index,
                Notice::Replaced {
                    lease: Box::new(lease),
                    by,
                    reason,
                },
            ));
        }
    }

    /// Returns true if any NIC may win, whatever its offer.
    fn is_open(&self, now: Instant) -> bool {
        let Some(port) = self.port() else { return true };
        let outage = port.no_carrier_since.map(|since| now.saturating_sub(since));
        port.client.lease().is_none() || outage.is_some_and(|o| o >= self.rules.carrier_grace)
    }

    /// Returns the contender that may send a REQUEST now: the one with the best offer, then
    /// the one with the oldest.
    ///
    /// While the head start lasts, an offer waits for clients that could still be offered
    /// something better.
    pub(super) fn next_to_request(&self, now: Instant) -> Option<LinkIndex> {
        if self.is_requesting() || self.do_offers_wait_for_takeover() {
            return None;
        }
        let lease = self.rank().filter(|_| self.open_since.is_none());
        self.contenders
            .iter()
            .filter_map(|(index, c)| Some((index, c, self.offer_rank(c)?)))
            .filter(|(_, c, rank)| {
                lease.is_none_or(|lease| self.beats(*rank, lease) && self.is_proven(c))
            })
            .filter(|(.., rank)| !self.is_worse_than_fallback(*rank))
            .filter(|(index, _, rank)| !self.waits_for_better(now, **index, *rank))
            .map(|(index, c, rank)| (Reverse(rank), c.offered_at, *index))
            .min()
            .map(|(.., index)| index)
    }

    /// Returns true while the head start lasts and a different NIC could still be offered
    /// something better.
    fn waits_for_better(&self, now: Instant, nic: LinkIndex, rank: Rank) -> bool {
        let head_start = self
            .open_since
            .is_some_and(|since| now < since.saturating_add(self.rules.head_start));
        let others = self.contenders.iter().filter(|(index, _)| **index != nic);
        let mut others = others.filter(|(_, c)| c.running && !c.holds_offer());
        head_start && others.any(|(_, other)| self.best_rank(other) > rank)
    }

    /// Returns true if an offer is better than the lease of a NIC, or one of a different NIC can
    /// still be within the head start.
    pub(super) fn is_better_offer_near(&self, now: Instant, nic: LinkIndex, rank: Rank) -> bool {
        let mut offers = self.contenders().filter_map(|c| self.offer_rank(c));
        offers.any(|offer| offer > rank) || self.waits_for_better(now, nic, rank)
    }

    /// Returns true if the contender holds an offer that is not worse than what br0 has
    /// without it.
    pub(super) fn may_request(&self, contender: &Contender) -> bool {
        let rank = self.offer_rank(contender);
        rank.is_some_and(|rank| !self.is_worse_than_fallback(rank))
    }

    /// Returns true unless br0's gateway is silent and that of the offer, too: an untried
    /// network does not replace one that worked.
    fn is_proven(&self, contender: &Contender) -> bool {
        let monitor = contender.monitor.as_ref();
        let answers = monitor.is_some_and(|m| m.reachability() == Reachability::Reachable);
        answers || !self.is_gateway_silent()
    }

    fn offer_rank(&self, contender: &Contender) -> Option<Rank> {
        let offer = contender
            .client
            .offer()
            .filter(|_| contender.holds_offer())?;
        Some(self.rank_of(contender, offer))
    }

    pub(super) fn rank_of(&self, contender: &Contender, lease: &buildos_dhcp::Lease) -> Rank {
        let required = self.rules.online_requires;
        Rank::new(lease, self.is_booted_from(contender), required)
    }

    fn best_rank(&self, contender: &Contender) -> Rank {
        Rank::best(self.is_booted_from(contender))
    }

    /// Returns true if the machine booted from the NIC, or from an unknown one.
    pub(super) fn is_booted_from(&self, contender: &Contender) -> bool {
        let bootif = self.rules.bootif;
        bootif.is_none_or(|mac| mac == contender.candidate.mac)
    }

    /// Returns true if the NIC is not the port of br0 and could bring a better lease. A NIC
    /// whose hardware address br0 has by another port is on the same LAN, and silent.
    fn could_beat(&self, contender: &Contender, lease: Rank) -> bool {
        let is_port = self.port == Some(contender.candidate.index);
        let identity = self.port().map(|port| port.client.mac());
        let gave_identity = identity == Some(contender.candidate.mac);
        !is_port && !gave_identity && self.beats(self.best_rank(contender), lease)
    }

    /// Returns true if an offer replaces a lease. The NIC that the machine booted from has
    /// precedence for a while only, so that a late cable does not change a network that works.
    fn beats(&self, offer: Rank, lease: Rank) -> bool {
        match self.rules.bootif.is_some() && self.bootif_until.is_none() {
            true => offer.without_preference() > lease,
            false => offer > lease,
        }
    }
}
