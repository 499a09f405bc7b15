//! Moves br0 to another NIC of the same LAN, with its lease and its identity.
//!
//! The identity of br0 is its hardware address, which DHCP messages also carry. It is that of
//! the NIC that the lease was granted on. It lasts as long as the lease, so that connections of
//! the host and of machines survive.
//!
//! | NIC of br0 | another NIC with carrier takes br0 over when |
//! |---|---|
//! | without carrier for 1 s | the server confirms the lease there (INIT-REBOOT), or the gateway answers there with the hardware address known from before (RFC 4436) |
//! | with a silent gateway | the same, and the gateway answers there |
//!
//! Offers on other NICs wait for the answers for up to 3 s. If no NIC is on the same LAN, the
//! election goes on as without a takeover, and br0 gets the hardware address of the winner.
//!
//! # Limits
//!
//! - Virtual routers (VRRP, HSRP) have the same hardware address in many LANs. It confirms
//!   nothing.
//! - A NIC that is removed takes the lease with it.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dbus_api::network1::Reachability;
use buildos_dhcp::address_conflict::Detector;
use buildos_dhcp::{Client, Config, Instant, Lease, Output, arp};
use buildos_types::{LinkIndex, MacAddress};

use super::{Effect, Election, config};
use crate::uplink::contender::Contender;
use crate::uplink::notice::Notice;
use crate::uplink::takeover::{Stage, Takeover, is_virtual_router};

/// Time without carrier after which other NICs are asked. It is longer than the interruption by
/// most changes of a link's settings.
const DELAY: Duration = Duration::from_secs(1);
/// The uplink that another NIC takes over.
struct Former {
    index: LinkIndex,
    mac: MacAddress,
    lease: Lease,
    /// The gateway that answered last, and its hardware address.
    known_gateway: Option<(Ipv4Addr, MacAddress)>,
}

impl Election {
    /// Returns the time at which other NICs are asked about the lease of a port that lost its
    /// carrier; [`None`] if they are asked already or not at all.
    pub(super) fn takeover_at(&self) -> Option<Instant> {
        let port = self.port().filter(|_| self.rules.keep_identity)?;
        let since = port
            .no_carrier_since
            .filter(|_| port.client.lease().is_some())?;
        let is_unasked = |other: &Contender| other.candidate.carrier && other.takeover.is_none();
        let is_any_unasked = self.contenders().any(is_unasked);
        is_any_unasked.then(|| since.saturating_add(DELAY))
    }

    /// Returns true while offers wait for the answers to a takeover.
    pub(super) fn do_offers_wait_for_takeover(&self) -> bool {
        let mut takeovers = self.contenders().filter_map(|c| c.takeover.as_ref());
        takeovers.any(|takeover| takeover.is_asking() && takeover.offers_wait_until.is_some())
    }

    /// Asks other NICs about the lease of a port that fails, and moves br0 to one that is on the
    /// same LAN.
    pub(super) fn update_takeovers(&mut self, now: Instant) {
        let Some(former) = self.failing_port(now) else {
            for contender in self.contenders.values_mut() {
                contender.takeover = None;
            }
            return;
        };
        self.ask_other_nics(now, &former);
        let winner = self.contenders.iter().find_map(|(index, contender)| {
            let confirmed_by = self.confirmation(contender)?;
            Some((*index, confirmed_by))
        });
        if let Some((index, confirmed_by)) = winner {
            self.take_over(now, former, index, confirmed_by);
        }
    }

    /// Returns the port of br0 if it has a lease that another NIC may take over.
    fn failing_port(&self, now: Instant) -> Option<Former> {
        let port = self.port().filter(|_| self.rules.keep_identity)?;
        let lease = port.client.lease()?;
        let is_dead = port
            .no_carrier_since
            .is_some_and(|since| since.saturating_add(DELAY) <= now);
        (is_dead || self.is_gateway_silent()).then(|| Former {
            index: port.candidate.index,
            mac: port.client.mac(),
            lease: lease.clone(),
            known_gateway: port.known_gateway,
        })
    }

    fn ask_other_nics(&mut self, now: Instant, former: &Former) {
        let seed = self.next_seed();
        for (index, contender) in &mut self.contenders {
            if *index == former.index || !contender.candidate.carrier {
                contender.takeover = None;
                continue;
            }
            let takeover = contender.takeover.as_ref();
            if takeover.is_none_or(|takeover| takeover.is_due_again(now)) {
                let config = Config {
                    broadcast: contender.candidate.mac != former.mac,
                    ..config(&self.rules, &self.hostname, former.mac)
                };
                contender.takeover = Some(Takeover::new(now, config, seed, &former.lease));
                let is_unique = |(_, mac): &(Ipv4Addr, MacAddress)| !is_virtual_router(*mac);
                contender.known_gateway = former.known_gateway.filter(is_unique);
                contender.monitor = None;
            }
            let Some(takeover) = &mut contender.takeover else {
                continue;
            };
            while let Some(output) = takeover.client.poll_output() {
                let effect = match output {
                    Output::Transmit(transmit) if takeover.is_asking() => {
                        Some(Effect::Transmit(*index, transmit))
                    }
                    Output::Transmit(_) => None,
                    Output::Event(event) => takeover
                        .event(now, event)
                        .map(|event| Effect::Event(*index, event)),
                };
                self.effects.extend(effect);
            }
        }
    }

    /// Returns the proof that the NIC is on the LAN of br0's lease, for operators.
    fn confirmation(&self, contender: &Contender) -> Option<&'static str> {
        let takeover = contender.takeover.as_ref()?;
        let monitor = contender.monitor.as_ref();
        let answers = monitor.is_some_and(|m| m.reachability() == Reachability::Reachable);
        if self.is_gateway_silent() && !answers {
            return None;
        }
        let by_gateway = monitor.is_some_and(super::Monitor::confirms_network);
        match takeover.stage {
            Stage::Confirmed => Some("the server confirmed it"),
            Stage::Asking | Stage::Silent { .. } if by_gateway => {
                Some("the gateway is the same one")
            }
            Stage::Asking | Stage::Silent { .. } | Stage::Denied { .. } => None,
        }
    }

    fn take_over(
        &mut self,
        now: Instant,
        former: Former,
        to: LinkIndex,
        confirmed_by: &'static str,
    ) {
        let seed = self.next_seed();
        let Some(old) = self.contenders.get_mut(&former.index) else {
            return;
        };
        let from = old.candidate.name.clone();
        let own = config(&self.rules, &self.hostname, old.candidate.mac);
        let carrier_lost = old.no_carrier_since.is_some();
        old.withdraw(Client::new(own, seed));
        let Some(new) = self.contenders.get_mut(&to) else {
            return;
        };
        let Some(mut takeover) = new.takeover.take() else {
            return;
        };
        let acquired = takeover.client.lease().map(|lease| lease.acquired);
        if acquired.is_none_or(|acquired| acquired < former.lease.acquired) {
            let config = Config {
                broadcast: new.candidate.mac != former.mac,
                ..config(&self.rules, &self.hostname, former.mac)
            };
            takeover = Takeover::new(now, config, seed, &former.lease);
        }
        let known_gateway = new.known_gateway.or(former.known_gateway);
        new.withdraw(takeover.client);
        new.running = true;
        new.known_gateway = known_gateway;
        let detects = self.rules.detect_conflicts;
        // The address is in use: it is defended, not probed for.
        new.detector = new
            .claimed_address()
            .filter(|_| detects)
            .map(|interface| Detector::in_use(former.mac, interface));
        for contender in self.contenders.values_mut() {
            contender.takeover = None;
        }
        self.port = Some(to);
        self.announcement_due = true;
        let notice = Notice::TakenOver {
            lease: Box::new(former.lease),
            from,
            reason: match carrier_lost {
                true => "no carrier",
                false => "its gateway does not answer",
            },
            confirmed_by,
        };
        self.effects.push_back(Effect::Notice(to, notice));
    }

    /// Announces the address of br0 by ARP if br0 moved to another NIC: switches learn the
    /// new way to its hardware address. Call it when the NIC is a port of br0.
    pub fn port_attached(&mut self) {
        let due = std::mem::take(&mut self.announcement_due);
        let port = self.port().filter(|_| due);
        let announcement = port.and_then(|port| {
            let address = port.client.lease()?.address;
            let packet = arp::Packet::announcement(port.client.mac(), address);
            Some(Effect::Arp(port.candidate.index, packet))
        });
        self.effects.extend(announcement);
    }
}

impl Contender {
    /// Replaces the client and forgets everything about the former one.
    fn withdraw(&mut self, client: Client) {
        self.stop();
        self.client = client;
        self.detector = None;
        self.monitor = None;
        self.scout = None;
        self.unconfirmed = false;
        self.scouted = false;
        self.fallback = None;
    }

    /// Returns the gateway that a takeover checks from 0.0.0.0. The gateway of an offer has
    /// precedence once offers do not wait any more.
    pub(super) fn takeover_gateway(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let takeover = self.takeover.as_ref()?;
        let has_time = takeover.offers_wait_until.is_some() || !self.holds_offer();
        let is_checked = match takeover.stage {
            Stage::Confirmed => true,
            Stage::Asking | Stage::Silent { .. } => has_time,
            Stage::Denied { .. } => false,
        };
        let gateway = takeover.gateway.filter(|_| is_checked)?;
        Some((Ipv4Addr::UNSPECIFIED, gateway))
    }

    /// Returns true if the client sends a hardware address that is not the NIC's.
    pub(super) fn has_taken_identity(&self) -> bool {
        self.client.mac() != self.candidate.mac
    }
}
