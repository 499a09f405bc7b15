//! Elects the uplink, the NIC that becomes the port of br0.
//!
//! One DHCP client runs on every candidate with carrier, all at once, so that a NIC without
//! a server delays nothing:
//!
//! ```text
//!   eth0  DISCOVER ... (no server)
//!   eth1  DISCOVER  OFFER  REQUEST  ACK   -> port of br0
//!   eth2  DISCOVER  OFFER  (waits)        -> withdraws, without having taken a lease
//! ```
//!
//! - At most one client at a time sends a REQUEST. The first one that is bound wins.
//! - An offer waits for a better one during the head start ([`Rank`]). The best possible offer
//!   waits for nothing.
//! - A lease that is not the best possible is provisional: the clients of other NICs run, and
//!   a better offer takes br0 over.
//! - The NIC that the machine booted from may take br0 over for a while.
//! - A [`Detector`] watches the address that a client requests or has. If another host uses
//!   it, the client declines it.
//! - The winner remains the port of br0 until another NIC wins. The election is open again
//!   when the lease is lost, or when carrier has been missing for longer than the grace time.
//! - The lease of the boot before is asked for beside the search ([`former_boot`]).
//! - While no server grants a lease, br0 can have an expired one or a static address
//!   ([`fallback`]).
//!
//! The module is pure: its inputs are links, packets and the time, its outputs are
//! packets and events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::address_conflict::{self, Detector, Report};
use buildos_dhcp::arp;
use buildos_dhcp::{
    Client, ClientName, Config, Event, Identity, Input, Instant, Lease, LeaseLoss, Output, State,
    Transmit,
};
use buildos_types::{LinkIndex, MacAddress};
use ipnet::Ipv4Net;

use super::candidate::Candidate;
use super::contender::{Claim, Contender, Fallback};
use super::gateway::{Monitor, Request};
use super::ipv6_port::Ipv6Port;
use super::notice::Notice;
use super::takeover::Takeover;
use crate::settings::{OnlineRequires, Settings};
use crate::static_address::StaticAddress;

mod confirm;
mod fallback;
mod former_boot;
mod ipv6_port;
mod order;
mod takeover;

/// Delay before a changed hostname is sent to the DHCP server. At boot the name is set
/// when agents start. They need the CPU more urgently, and the name might change again.
const HOSTNAME_DELAY: Duration = Duration::from_secs(5);

/// The rules of an election, from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// NIC that the machine booted from.
    pub bootif: Option<MacAddress>,
    /// Duration for which an offer waits for a better one on another NIC.
    pub head_start: Duration,
    /// Duration for which `bootif` may take br0 over after the election opened.
    pub bootif_wait: Duration,
    /// Condition for being online.
    pub online_requires: OnlineRequires,
    /// Duration for which the port of br0 may be without carrier before others may win.
    pub carrier_grace: Duration,
    /// Address conflicts are detected (RFC 5227).
    pub detect_conflicts: bool,
    /// Accepted server identifiers (option 54); empty for all.
    pub allowed_servers: Vec<Ipv4Addr>,
    /// Networks in which no address is accepted.
    pub denied_networks: Vec<Ipv4Net>,
    /// Address of br0 while no server grants a lease.
    pub static_address: Option<StaticAddress>,
    /// Name servers used with it.
    pub static_dns: Vec<Ipv4Addr>,
    /// Duration without a lease after which it is used.
    pub static_wait: Duration,
    /// br0 keeps the address of an expired lease.
    pub keep_expired: bool,
    /// Identification of the host to servers.
    pub identity: Identity,
    /// br0 keeps its hardware address when its port changes within one LAN.
    pub keep_identity: bool,
}

impl Rules {
    /// Returns the static address as a lease since `now`.
    fn static_lease(&self, now: Instant) -> Option<Lease> {
        self.static_address.as_ref()?.lease(&self.static_dns, now)
    }
}

impl From<&Settings> for Rules {
    fn from(settings: &Settings) -> Self {
        Self {
            bootif: settings.bootif,
            head_start: settings.head_start,
            bootif_wait: settings.bootif_wait,
            online_requires: settings.online_requires,
            carrier_grace: settings.carrier_grace,
            detect_conflicts: settings.detect_conflicts,
            allowed_servers: settings.allow_servers.clone(),
            denied_networks: settings.deny_networks.clone(),
            static_address: settings.fallback_address().cloned(),
            static_dns: settings.static_dns.clone(),
            static_wait: settings.static_wait,
            keep_expired: settings.keep_expired,
            identity: settings.identity.clone(),
            keep_identity: settings.keep_identity,
        }
    }
}

/// An action or an event of the contender with this index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a DHCP message.
    Transmit(LinkIndex, Transmit),
    /// Broadcast an ARP packet.
    Arp(LinkIndex, arp::Packet),
    /// Send an ARP request to a gateway.
    AskGateway(LinkIndex, Request),
    /// Log and record an event of the DHCP client.
    Event(LinkIndex, Event),
    /// Log and record a finding about another host and the address of the client.
    Report(LinkIndex, Ipv4Addr, Report),
    /// Log and record a decision.
    Notice(LinkIndex, Notice),
    /// Log and record that a NIC went, and its lease with it.
    Gone(Candidate, Box<Lease>),
}

/// The state of the election.
#[derive(Debug)]
pub struct Election {
    rules: Rules,
    hostname: Option<ClientName>,
    /// Time at which a changed hostname is sent to the server of the lease, without
    /// waiting for T1.
    send_hostname_at: Option<Instant>,
    /// Boxed: a node of the map has room for eleven, which would take 24 kB.
    contenders: BTreeMap<LinkIndex, Box<Contender>>,
    port: Option<LinkIndex>,
    /// Hardware addresses of all links of the host.
    own_macs: BTreeSet<MacAddress>,
    /// Start of the open election; [`None`] while it is decided.
    open_since: Option<Instant>,
    /// Time until which the NIC that the machine booted from may take br0 over.
    bootif_until: Option<Instant>,
    /// Time since which NICs with carrier have had no lease.
    no_lease_since: Option<Instant>,
    /// The lease of the boot before, and the hardware address of its NIC, until it is granted or
    /// given up.
    former_boot: Option<(MacAddress, Lease)>,
    /// The host that has the address of the fallback.
    fallback_claim: Option<Claim>,
    /// br0 moved to another NIC, and its address has not been announced since.
    announcement_due: bool,
    ipv6_port: Ipv6Port,
    effects: VecDeque<Effect>,
    seed: u64,
}

impl Election {
    /// Returns an election without contenders. All randomness derives from `seed`.
    #[must_use]
    pub fn new(rules: Rules, seed: u64) -> Self {
        Self {
            rules,
            hostname: None,
            send_hostname_at: None,
            contenders: BTreeMap::new(),
            port: None,
            own_macs: BTreeSet::new(),
            open_since: None,
            bootif_until: None,
            no_lease_since: None,
            former_boot: None,
            fallback_claim: None,
            announcement_due: false,
            ipv6_port: Ipv6Port::default(),
            effects: VecDeque::new(),
            seed,
        }
    }

    /// Replaces the rules.
    pub fn set_rules(&mut self, now: Instant, rules: Rules) {
        self.rules = rules;
        self.forget_former_lease();
        self.configure_clients();
        self.advance(now);
    }

    /// Replaces the hostname that messages carry. If the server of the lease does not know
    /// the name, a renewal sends it in a few seconds, so that the server can enter it into
    /// the DNS.
    pub fn set_hostname(&mut self, now: Instant, hostname: Option<ClientName>) {
        if hostname == self.hostname {
            return;
        }
        self.hostname = hostname;
        self.configure_clients();
        // A REQUEST in flight carries the old name.
        let asks = self.contenders().any(|c| c.former_boot.is_some());
        let requested = self.lease().is_some() || self.is_requesting() || asks;
        self.send_hostname_at = requested.then(|| now.saturating_add(HOSTNAME_DELAY));
    }

    /// Returns true if the hostname is set and differs from the names in the lease.
    fn is_hostname_unknown_to_server(&self, lease: &Lease) -> bool {
        let Some(ClientName::Host(name) | ClientName::Fqdn(name)) = &self.hostname else {
            return false;
        };
        let is_name_or_starts_with_it =
            |fqdn: &str| fqdn == name || fqdn.split('.').next() == Some(name);
        lease.hostname.as_deref() != Some(name)
            && !lease.fqdn.as_deref().is_some_and(is_name_or_starts_with_it)
    }

    fn configure_clients(&mut self) {
        for contender in self.contenders.values_mut() {
            let config = config(&self.rules, &self.hostname, contender.candidate.mac);
            if let Some(client) = &mut contender.former_boot {
                client.configure(config.clone());
            }
            contender.client.configure(config);
        }
    }

    /// Replaces the hardware addresses of the host. An ARP packet from one of them is not a
    /// conflict: a second NIC on the same network sends such packets.
    pub fn set_own_macs(&mut self, own: BTreeSet<MacAddress>) {
        self.own_macs = own;
    }

    /// Replaces the candidates. A contender keeps its client while its index and hardware
    /// address stay the same.
    pub fn set_candidates(&mut self, now: Instant, candidates: Vec<Candidate>) {
        let remains = |index: &LinkIndex, contender: &Contender| {
            let mut candidates = candidates.iter();
            candidates.any(|c| c.index == *index && c.mac == contender.candidate.mac)
        };
        let gone = self.contenders.iter().filter(|(i, c)| !remains(i, c));
        let gone = gone.filter_map(|(_, contender)| {
            let lease = contender.lease()?.clone();
            Some(Effect::Gone(contender.candidate.clone(), Box::new(lease)))
        });
        self.effects.extend(gone.collect::<Vec<_>>());
        self.contenders
            .retain(|index, contender| remains(index, contender));
        self.port = self.port.filter(|i| self.contenders.contains_key(i));
        for candidate in candidates {
            let seed = self.next_seed();
            let contender = self.contenders.entry(candidate.index).or_insert_with(|| {
                let config = config(&self.rules, &self.hostname, candidate.mac);
                Box::new(Contender::new(candidate.clone(), config, seed))
            });
            if contender.no_carrier_since.is_some() && contender.fallback.is_some() {
                // Another host may have the address now.
                contender.detector.take_if(|_| candidate.carrier);
            }
            contender.no_carrier_since = match candidate.carrier {
                true => None,
                false => contender.no_carrier_since.or(Some(now)),
            };
            contender.confirm_after_flap(now, &candidate);
            contender.candidate = candidate;
        }
        self.advance(now);
    }

    /// Makes a candidate the port of br0, with the lease of an earlier netd of this boot and
    /// the hardware address of its gateway. `identity` is the hardware address of br0, unless it
    /// is the candidate's. Call it before the first [`Election::set_candidates`], so that no
    /// client starts from INIT.
    pub fn resume(
        &mut self,
        now: Instant,
        candidate: Candidate,
        lease: Lease,
        gateway_mac: Option<MacAddress>,
        identity: Option<MacAddress>,
    ) {
        let index = candidate.index;
        let known_gateway = lease.gateway().zip(gateway_mac);
        let mac = identity.unwrap_or(candidate.mac);
        let config = Config {
            broadcast: mac != candidate.mac,
            ..config(&self.rules, &self.hostname, mac)
        };
        let mut contender = Contender::new(candidate, config, self.next_seed());
        if lease.is_configured() {
            contender.client.handle(now, Input::Start);
            contender.fallback = lease.revalidate_configured(now).ok().map(|lease| Fallback {
                lease: Box::new(lease),
                in_use: true,
            });
        } else {
            contender.client.handle(now, Input::Resume(Box::new(lease)));
        }
        contender.running = true;
        contender.known_gateway = known_gateway;
        contender.no_carrier_since = (!contender.candidate.carrier).then_some(now);
        // The address is in use: it is defended, not probed for.
        contender.detector = contender
            .claimed_address()
            .filter(|_| self.rules.detect_conflicts)
            .map(|interface| Detector::in_use(mac, interface));
        self.contenders.insert(index, Box::new(contender));
        self.port = Some(index);
        self.advance(now);
    }

    /// Processes a DHCP message for the client of that link.
    pub fn packet(&mut self, now: Instant, index: LinkIndex, payload: &[u8]) {
        let contender = self.contenders.get_mut(&index);
        if let Some(contender) = contender {
            if let Some(scout) = &mut contender.scout {
                scout.handle(now, Input::Packet(payload));
            }
            if let Some(takeover) = &mut contender.takeover {
                takeover.packet(now, payload);
            }
            if let Some(client) = &mut contender.former_boot {
                client.handle(now, Input::Packet(payload));
            }
        }
        self.input(now, index, Input::Packet(payload));
    }

    /// Processes an ARP packet from the network of that link.
    pub fn arp(&mut self, now: Instant, index: LinkIndex, packet: &arp::Packet) {
        if self.own_macs.contains(&packet.sender_mac) {
            return;
        }
        self.gateway_arp(now, index, packet);
        let contender = self.contenders.get_mut(&index);
        if let Some(detector) = contender.and_then(|c| c.detector.as_mut()) {
            detector.received(now, packet);
        }
        self.advance(now);
    }

    /// Requests an extension of the lease now.
    pub fn renew(&mut self, now: Instant) {
        if let Some(port) = self.port {
            self.input(now, port, Input::Renew);
        }
    }

    /// Processes the timers that are due. Call it at [`Election::deadline`].
    pub fn timeout(&mut self, now: Instant) {
        let send_hostname = self.send_hostname_at.take_if(|at| *at <= now).is_some();
        let lease = self.lease().filter(|_| send_hostname);
        if lease.is_some_and(|lease| self.is_hostname_unknown_to_server(lease)) {
            self.renew(now);
        }
        self.confirmation_timeout(now);
        self.former_boot_timeout(now);
        let _ = self.bootif_until.take_if(|until| *until <= now);
        for contender in self.contenders.values_mut() {
            if contender.client.deadline().is_some_and(|at| at <= now) {
                contender.client.handle(now, Input::Timeout);
            }
            if let Some(detector) = &mut contender.detector {
                detector.timeout(now);
            }
            if let Some(takeover) = &mut contender.takeover {
                takeover.timeout(now);
            }
        }
        self.advance(now);
    }

    /// Returns the latest time for the next call of [`Election::timeout`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let timers = self.contenders.values().flat_map(|contender| {
            let detector = contender.detector.as_ref();
            let detector = detector.and_then(Detector::deadline);
            let monitor = contender.monitor.as_ref().map(Monitor::deadline);
            let scout = contender.scout.as_ref().and_then(Client::deadline);
            let takeover = contender.takeover.as_ref().and_then(Takeover::deadline);
            let former_boot = contender.former_boot.as_ref().and_then(Client::deadline);
            [
                contender.client.deadline(),
                detector,
                monitor,
                scout,
                takeover,
                former_boot,
            ]
        });
        let head_start = self
            .open_since
            .filter(|_| self.contenders.values().any(|c| self.may_request(c)))
            .filter(|_| !self.is_requesting() && !self.do_offers_wait_for_takeover())
            .map(|since| since.saturating_add(self.rules.head_start));
        let grace = self
            .port()
            .filter(|_| self.open_since.is_none())
            .and_then(|port| port.no_carrier_since)
            .map(|since| since.saturating_add(self.rules.carrier_grace));
        let others = [
            head_start,
            grace,
            self.bootif_until,
            self.send_hostname_at,
            self.fallback_deadline(),
            self.takeover_at(),
            self.next_ipv6_port_at(),
        ];
        timers.chain(others).flatten().min()
    }

    /// Removes and returns the oldest effect.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Returns all contenders in the order of their indices.
    pub fn contenders(&self) -> impl Iterator<Item = &Contender> {
        self.contenders.values().map(Box::as_ref)
    }

    /// Returns the contender with that index.
    #[must_use]
    pub fn contender(&self, index: LinkIndex) -> Option<&Contender> {
        self.contenders.get(&index).map(Box::as_ref)
    }

    /// Returns the port of br0.
    #[must_use]
    pub fn port(&self) -> Option<&Contender> {
        self.contenders.get(&self.port?).map(Box::as_ref)
    }

    /// Returns the lease of the port of br0, or what br0 has without one ([`fallback`]).
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.port()?.lease()
    }

    fn input(&mut self, now: Instant, index: LinkIndex, input: Input<'_>) {
        if let Some(contender) = self.contenders.get_mut(&index) {
            contender.client.handle(now, input);
            self.advance(now);
        }
    }

    /// Processes the consequences of an input.
    fn advance(&mut self, now: Instant) {
        self.collect_findings(now);
        self.collect_outputs(now);
        self.update_scouts(now);
        self.update_takeovers(now);
        self.update_ipv6_port(now);
        self.start_and_stop_clients(now);
        self.collect_outputs(now);
        if self.update_former_boot(now) {
            self.start_and_stop_clients(now);
            self.collect_outputs(now);
        }
        if let Some(index) = self.next_to_request(now) {
            if let Some(contender) = self.contenders.get_mut(&index) {
                contender.client.handle(now, Input::Select);
            }
            self.collect_outputs(now);
        }
        self.update_fallback(now);
        self.update_detectors(now);
        self.update_monitors(now);
    }

    /// Collects the packets and reports of the detectors, and passes conflicts to the clients.
    fn collect_findings(&mut self, now: Instant) {
        let mut claims = Vec::new();
        for (index, contender) in &mut self.contenders {
            let Some(detector) = &mut contender.detector else {
                continue;
            };
            let address = detector.address();
            let fallback = contender.fallback.as_ref();
            let fallback = fallback.filter(|fallback| fallback.lease.address == address);
            let is_expired = fallback.is_some_and(|fallback| !fallback.lease.is_configured());
            while let Some(output) = detector.poll() {
                match output {
                    address_conflict::Output::Send(packet) => {
                        self.effects.push_back(Effect::Arp(*index, packet));
                    }
                    address_conflict::Output::Conflict(mac) => {
                        claims.extend(fallback.map(|_| (*index, mac)));
                        let conflict = Input::Conflict { address, mac };
                        contender.client.handle(now, conflict);
                    }
                    address_conflict::Output::Report(report) => {
                        if let (Report::Contested(mac), true) = (report, is_expired) {
                            claims.push((*index, mac));
                        }
                        let effect = Effect::Report(*index, address, report);
                        self.effects.push_back(effect);
                    }
                }
            }
        }
        for (index, mac) in claims {
            self.claim_fallback(now, index, mac);
        }
    }

    /// Starts and ends conflict detection.
    fn update_detectors(&mut self, now: Instant) {
        for contender in self.contenders.values_mut() {
            let claimed = contender.claimed_address();
            let claimed = claimed.filter(|_| self.rules.detect_conflicts);
            let watched = contender.detector().map(Detector::address);
            let address_of_client = contender.address_of_client().map(|net| net.addr());
            let in_use = contender.lease().map(|lease| lease.address);
            if watched != claimed.map(|interface| interface.addr()) {
                let mac = contender.client.mac();
                contender.detector = claimed.map(|interface| Detector::new(now, mac, interface));
            }
            let Some(detector) = &mut contender.detector else {
                continue;
            };
            let of_client = address_of_client == Some(detector.address());
            if of_client && !contender.client.may_decline(now) {
                detector.keep();
            }
            if in_use == Some(detector.address()) {
                detector.grant(now);
            }
        }
        self.collect_findings(now);
    }

    fn collect_outputs(&mut self, now: Instant) {
        let seed = self.next_seed();
        for (index, contender) in &mut self.contenders {
            while let Some(output) = contender.client.poll_output() {
                let event = match output {
                    Output::Transmit(transmit) => {
                        self.effects.push_back(Effect::Transmit(*index, transmit));
                        continue;
                    }
                    Output::Event(event) => event,
                };
                match &event {
                    Event::Offered { .. } => {
                        contender.offered_at = contender.offered_at.or(Some(now));
                    }
                    Event::Bound(_) => {
                        self.port = Some(*index);
                        contender.offered_at = None;
                    }
                    Event::Unconfirmed(_) => contender.unconfirmed = !contender.scouted,
                    Event::Lost {
                        lease,
                        reason: LeaseLoss::Expired,
                    } if self.rules.keep_expired && self.port == Some(*index) => {
                        contender.unconfirmed = false;
                        contender.fallback = Some(Fallback {
                            lease: lease.clone(),
                            in_use: true,
                        });
                        let notice = Notice::Kept(lease.clone());
                        self.effects.push_back(Effect::Notice(*index, notice));
                        continue;
                    }
                    Event::Renewed(_) | Event::Lost { .. } => contender.unconfirmed = false,
                    Event::RequestFailed { .. } | Event::Refused { .. } => {}
                }
                let is_lost = matches!(event, Event::Lost { .. });
                self.effects.push_back(Effect::Event(*index, event));
                if is_lost && contender.has_taken_identity() {
                    // The identity of br0 lasts as long as the lease.
                    let own = config(&self.rules, &self.hostname, contender.candidate.mac);
                    contender.client = Client::new(own, seed);
                    if contender.running {
                        contender.client.handle(now, Input::Start);
                    }
                }
            }
        }
    }

    fn is_requesting(&self) -> bool {
        self.contenders()
            .any(|contender| contender.client.state() == State::Requesting)
    }

    /// Returns a different seed for each client: a Weyl sequence, which the clients mix.
    fn next_seed(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.seed
    }
}

fn config(rules: &Rules, hostname: &Option<ClientName>, mac: MacAddress) -> Config {
    Config {
        mac,
        name: hostname.clone(),
        allowed_servers: rules.allowed_servers.clone(),
        denied_networks: rules.denied_networks.clone(),
        jitter: true,
        broadcast: false,
        identity: rules.identity.clone(),
    }
}
