//! Asks for the lease of the boot before, beside the search (INIT-REBOOT; RFC 2131, sections 3.2
//! and 4.3.2).
//!
//! ```text
//! client     DISCOVER          REQUEST (if the OFFER comes first)
//! second              REQUEST            of the former address
//! server                        OFFER            ACK            the first usable answer counts
//! ```
//!
//! The search never waits: the second client sends its REQUEST after the first DISCOVER, and an
//! OFFER is requested at once as without it. br0 gets the address only with an ACK.
//!
//! | answer | consequence |
//! |---|---|
//! | ACK while no other address is requested, and no better offer is near | br0 has the lease |
//! | other ACK, NAK, or silence to four REQUESTs | the search goes on alone |
//!
//! The lease is no more than an address to ask for: its times are those of an earlier boot, and
//! the server decides whether it is still valid.

use buildos_dhcp::{Client, Event, Input, Instant, Lease, Output, State};
use buildos_types::{LinkIndex, MacAddress};

use super::{Effect, Election, config};
use crate::uplink::contender::Contender;

/// Unanswered REQUESTs after which the lease is given up.
const REQUESTS: u32 = 4;

/// What a second client has led to.
enum Answer {
    Granted(Box<Lease>),
    Denied,
}

impl Election {
    /// Asks for the lease that the NIC with the hardware address had in the boot before, if no
    /// client has a lease yet.
    pub fn ask_for_former_lease(&mut self, now: Instant, mac: MacAddress, lease: Lease) {
        if !lease.is_configured() {
            self.former_boot = Some((mac, lease));
            self.advance(now);
        }
    }

    /// Gives the former lease up.
    pub(super) fn forget_former_lease(&mut self) {
        self.former_boot = None;
        for contender in self.contenders.values_mut() {
            contender.former_boot = None;
        }
    }

    /// Processes the timers of second clients that are due.
    pub(super) fn former_boot_timeout(&mut self, now: Instant) {
        let mut is_silent = false;
        for contender in self.contenders.values_mut() {
            let Some(client) = &mut contender.former_boot else {
                continue;
            };
            if client.deadline().is_none_or(|at| at > now) {
                continue;
            }
            is_silent |= client.counters().requests >= REQUESTS;
            client.handle(now, Input::Timeout);
        }
        if is_silent {
            self.forget_former_lease();
        }
    }

    /// Starts and ends second clients, and evaluates their answers. Returns true if br0 has got
    /// the former lease.
    pub(super) fn update_former_boot(&mut self, now: Instant) -> bool {
        let Some((mac, lease)) = &self.former_boot else {
            return false;
        };
        if self
            .port()
            .is_some_and(|port| port.client.lease().is_some())
        {
            self.forget_former_lease();
            return false;
        }
        let (mac, lease) = (*mac, lease.clone());
        let seed = self.next_seed();
        let nic = self.contenders.iter_mut();
        let Some((index, contender)) = nic
            .map(|(index, contender)| (*index, contender))
            .find(|(_, contender)| contender.candidate.mac == mac)
        else {
            return false;
        };
        if !contender.searches() {
            contender.former_boot = None;
            return false;
        }
        let client = contender.former_boot.get_or_insert_with(|| {
            let config = config(&self.rules, &self.hostname, mac);
            let mut client = Client::new(config, seed);
            let asked_for = Lease {
                acquired: now,
                ..lease
            };
            client.handle(now, Input::Resume(Box::new(asked_for)));
            client
        });
        let mut answer = None;
        while let Some(output) = client.poll_output().filter(|_| answer.is_none()) {
            match output {
                Output::Transmit(transmit) => {
                    self.effects.push_back(Effect::Transmit(index, transmit));
                }
                Output::Event(Event::Renewed(lease)) => answer = Some(Answer::Granted(lease)),
                Output::Event(Event::Lost { .. } | Event::Unconfirmed(_)) => {
                    answer = Some(Answer::Denied);
                }
                Output::Event(event @ Event::Refused { .. }) => {
                    self.effects.push_back(Effect::Event(index, event));
                }
                Output::Event(
                    Event::Offered { .. } | Event::RequestFailed { .. } | Event::Bound(_),
                ) => {}
            }
        }
        match answer {
            None => false,
            Some(Answer::Denied) => {
                self.forget_former_lease();
                false
            }
            Some(Answer::Granted(lease)) => self.former_lease_granted(now, index, lease),
        }
    }

    /// Makes the NIC the port of br0, unless the election has requested a different address
    /// meanwhile, as a server has one address for a host, or a different NIC has a better offer
    /// or can get one within the head start.
    fn former_lease_granted(&mut self, now: Instant, index: LinkIndex, lease: Box<Lease>) -> bool {
        let is_requested_elsewhere = self.contenders.iter().any(|(other, contender)| {
            let requested = contender
                .client
                .offer()
                .filter(|_| contender.client.state() == State::Requesting);
            requested.is_some_and(|offer| {
                *other != index || (offer.address, offer.server) != (lease.address, lease.server)
            })
        });
        let rank = self
            .contenders
            .get(&index)
            .map(|contender| self.rank_of(contender, &lease));
        let is_useful = rank.is_some_and(|rank| {
            !self.is_worse_than_fallback(rank) && !self.is_better_offer_near(now, index, rank)
        });
        let contender = self.contenders.get_mut(&index);
        let client = contender.and_then(|contender| {
            let client = contender.former_boot.take()?;
            Some((contender, client))
        });
        let client = client.filter(|_| is_useful && !is_requested_elsewhere);
        let is_granted = client.is_some();
        if let Some((contender, client)) = client {
            contender.client = client;
            contender.offered_at = None;
            self.port = Some(index);
            let granted = Event::Bound(lease);
            self.effects.push_back(Effect::Event(index, granted));
        }
        self.forget_former_lease();
        is_granted
    }
}

impl Contender {
    /// Returns true while the client searches with the hardware address of the NIC.
    fn searches(&self) -> bool {
        let is_searching = match self.client.state() {
            State::Selecting | State::Requesting => true,
            State::Init
            | State::InitReboot
            | State::Rebooting
            | State::Bound
            | State::Renewing
            | State::Rebinding => false,
        };
        is_searching && self.running && self.candidate.carrier && !self.has_taken_identity()
    }
}
