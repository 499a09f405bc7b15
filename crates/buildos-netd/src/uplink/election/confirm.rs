//! Confirms that br0 is still on the network of its lease.
//!
//! After carrier returned or netd restarted, the lease is confirmed by
//!
//! - its server, by an ACK to the REQUEST of INIT-REBOOT (RFC 2131, section 3.2), or
//! - its gateway, by an ARP answer of the hardware address known from before (RFC 4436).
//!
//! Servers that are not authoritative do not answer REQUESTs of hosts from other networks. If
//! server and gateway are silent, a second client therefore searches beside the lease, after
//! about 1.5 s:
//!
//! | first offer | consequence |
//! |---|---|
//! | of the network of the lease | the lease is kept |
//! | of a different network | the lease ends, and the offer takes part in the election |
//!
//! The same happens when the gateway falls silent while carrier stays.

use std::time::Duration;

use buildos_dbus_api::network1::Reachability;
use buildos_dhcp::{Client, Event, Input, Instant, Lease, Output, State};
use buildos_types::{LinkIndex, MacAddress};

use super::{Effect, Election, config};
use crate::uplink::candidate::Candidate;
use crate::uplink::contender::Contender;
use crate::uplink::gateway::{Change, Monitor};
use crate::uplink::notice::Notice;

/// Delay of the first check after a lease was granted. At boot the CPU is needed elsewhere.
const FIRST_CHECK: Duration = Duration::from_secs(3);

/// Unanswered REQUESTs of INIT-REBOOT after which the search beside the lease begins: about
/// 1.5 s. A server that has the lease answers the first one.
const SEARCH_AFTER_REQUESTS: u32 = 4;

impl Election {
    /// Returns true if the gateway of br0 answered before and does not any more.
    #[must_use]
    pub fn is_gateway_silent(&self) -> bool {
        self.gateway_reachability() == Some(Reachability::Unreachable)
    }

    /// Returns the reachability of the gateway of br0; [`None`] without one.
    #[must_use]
    pub fn gateway_reachability(&self) -> Option<Reachability> {
        let port = self.port()?;
        port.lease()?.gateway()?;
        let monitor = port.monitor.as_ref();
        Some(monitor.map_or(Reachability::Unknown, Monitor::reachability))
    }

    /// Returns the hardware address of the gateway of br0, for a restarted netd.
    #[must_use]
    pub fn gateway_mac(&self) -> Option<MacAddress> {
        let port = self.port()?;
        let gateway = port.lease()?.gateway()?;
        let (known, mac) = port.known_gateway?;
        (known == gateway).then_some(mac)
    }

    /// Processes the timers of monitors and scouts that are due.
    pub(super) fn confirmation_timeout(&mut self, now: Instant) {
        for (index, contender) in &mut self.contenders {
            let change = contender.monitor.as_mut().and_then(|m| m.timeout(now));
            if change == Some(Change::Silent) && self.port == Some(*index) {
                let gateway = contender.monitor.as_ref().map(Monitor::gateway);
                let notice = gateway.map(Notice::GatewaySilent);
                let effect = notice.map(|notice| Effect::Notice(*index, notice));
                self.effects.extend(effect);
                // The server knows whether this is still the network of the lease.
                contender.confirm(now);
            }
            if let Some(scout) = &mut contender.scout {
                if scout.deadline().is_some_and(|at| at <= now) {
                    scout.handle(now, Input::Timeout);
                }
            }
        }
    }

    /// Processes an ARP packet that may be an answer of a gateway.
    pub(super) fn gateway_arp(
        &mut self,
        now: Instant,
        index: LinkIndex,
        packet: &buildos_dhcp::arp::Packet,
    ) {
        let Some(contender) = self.contenders.get_mut(&index) else {
            return;
        };
        let Some(monitor) = &mut contender.monitor else {
            return;
        };
        let was_silent = monitor.reachability() == Reachability::Unreachable;
        let change = monitor.received(now, packet);
        let gateway = monitor.gateway();
        contender.known_gateway = monitor.mac().map(|mac| (gateway, mac));
        if change == Some(Change::Answers) && was_silent && self.port == Some(index) {
            let notice = Notice::GatewayAnswers(gateway);
            self.effects.push_back(Effect::Notice(index, notice));
        }
    }

    /// Starts and ends the monitors of gateways, and collects their requests.
    pub(super) fn update_monitors(&mut self, now: Instant) {
        let failover = self.is_gateway_silent();
        let seed = self.next_seed();
        for (index, contender) in &mut self.contenders {
            let is_port = self.port == Some(*index);
            let checked = match is_port {
                true => contender.leased_gateway(),
                false => contender
                    .takeover_gateway()
                    .or_else(|| contender.offered_gateway().filter(|_| failover)),
            };
            // ARP of a port of br0 comes from br0.
            let mac = match is_port {
                true => contender.client.mac(),
                false => contender.candidate.mac,
            };
            let same = |monitor: &Monitor| {
                checked.is_some_and(|(address, gateway)| monitor.checks(address, gateway))
            };
            if !contender.monitor.as_ref().is_some_and(same) {
                let wait = is_port && contender.client.state() != State::Rebooting;
                let delay = if wait { FIRST_CHECK } else { Duration::ZERO };
                contender.monitor = checked.map(|(address, gateway)| {
                    let known = contender.known_gateway.filter(|(ip, _)| *ip == gateway);
                    let known = known.map(|(_, mac)| mac);
                    let start = now.saturating_add(delay);
                    Monitor::new(start, mac, address, gateway, known, seed)
                });
            }
            let Some(monitor) = &mut contender.monitor else {
                continue;
            };
            if monitor.deadline() <= now {
                monitor.timeout(now);
            }
            while let Some(request) = monitor.poll() {
                self.effects.push_back(Effect::AskGateway(*index, request));
            }
        }
    }

    /// Starts and ends the searches beside unconfirmed leases, and evaluates their offers.
    pub(super) fn update_scouts(&mut self, now: Instant) {
        let seed = self.next_seed();
        for (index, contender) in &mut self.contenders {
            if contender.client.state() != State::Rebooting {
                contender.scouted = false;
            }
            if !contender.needs_scout() {
                contender.scout = None;
                continue;
            }
            let (rules, hostname) = (&self.rules, &self.hostname);
            let scout = contender.scout.get_or_insert_with(|| {
                let config = config(rules, hostname, contender.candidate.mac);
                let mut scout = Client::new(config, seed);
                scout.handle(now, Input::Start);
                scout
            });
            while let Some(output) = scout.poll_output() {
                match output {
                    Output::Transmit(transmit) => {
                        self.effects.push_back(Effect::Transmit(*index, transmit));
                    }
                    Output::Event(event @ Event::Refused { .. }) => {
                        self.effects.push_back(Effect::Event(*index, event));
                    }
                    Output::Event(_) => {}
                }
            }
            let Some(offer) = scout.offer().cloned() else {
                continue;
            };
            let notice = contender.evaluate(now, &offer);
            self.effects
                .extend(notice.map(|notice| Effect::Notice(*index, notice)));
        }
    }
}

impl Contender {
    /// Confirms the lease if carrier was lost and returned since the last observation.
    pub(super) fn confirm_after_flap(&mut self, now: Instant, observed: &Candidate) {
        let losses = observed.carrier_losses != self.candidate.carrier_losses;
        if losses && observed.carrier && self.candidate.carrier && self.running {
            self.confirm(now);
        }
    }

    /// Asks the server to confirm the lease, as after carrier returned.
    fn confirm(&mut self, now: Instant) {
        if self.client.state() == State::Bound {
            self.client.handle(now, Input::Suspend);
            self.client.handle(now, Input::Start);
        }
    }

    /// Returns the address and the gateway of the lease while they can be checked.
    fn leased_gateway(&self) -> Option<(std::net::Ipv4Addr, std::net::Ipv4Addr)> {
        let lease = self.lease().filter(|_| self.running)?;
        Some((lease.address, lease.gateway()?))
    }

    /// Returns the gateway of the offer that the client holds, which is checked from 0.0.0.0.
    fn offered_gateway(&self) -> Option<(std::net::Ipv4Addr, std::net::Ipv4Addr)> {
        let offer = self.client.offer().filter(|_| self.holds_offer())?;
        Some((std::net::Ipv4Addr::UNSPECIFIED, offer.gateway()?))
    }

    /// Returns true if neither server nor gateway confirmed the lease.
    fn needs_scout(&self) -> bool {
        let confirmed = self.monitor.as_ref().is_some_and(Monitor::confirms_network);
        let is_doubtful = match self.client.state() {
            State::Bound | State::Renewing | State::Rebinding => self.unconfirmed,
            State::Rebooting => {
                !self.scouted && self.client.counters().requests >= SEARCH_AFTER_REQUESTS
            }
            State::Init | State::Selecting | State::Requesting | State::InitReboot => false,
        };
        is_doubtful && !confirmed
    }

    /// Keeps the lease if the offer is of its network. Otherwise ends the lease, and continues
    /// with the offer.
    fn evaluate(&mut self, now: Instant, offer: &Lease) -> Option<Notice> {
        let lease = self.client.lease().cloned()?;
        self.unconfirmed = false;
        let scout = self.scout.take()?;
        if is_same_network(&lease, offer) {
            self.scouted = true;
            return None;
        }
        self.stop();
        self.client = scout;
        self.running = true;
        self.offered_at = Some(now);
        Some(Notice::Moved {
            lease: Box::new(lease),
            server: offer.server,
            network: offer.network(),
        })
    }
}

fn is_same_network(lease: &Lease, offer: &Lease) -> bool {
    (lease.network(), lease.gateway()) == (offer.network(), offer.gateway())
}
