//! The uplink race: which NIC becomes the port of br0.
//!
//! One DHCP client runs on every candidate with carrier, all at once, so that a
//! NIC without a server costs nothing. Only one of them at a time may send a
//! REQUEST; the first that is bound wins, and the others withdraw without
//! having taken a lease. Offers on the NIC that the machine booted from are
//! preferred while its head start lasts. The address that a client requests or has
//! is watched over by a [`Detector`]; when somebody else has it, it is declined.
//!
//! The winner keeps its place as the port of br0 until another NIC wins. The
//! race is on again when its lease is gone, or when it has been without carrier
//! for longer than the grace time. Pure: links, packets and time come in,
//! packets and events go out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::address_conflict::Detector;
use buildos_dhcp::arp;
use buildos_dhcp::{
    Client, ClientName, Config, Event, Input, Instant, Lease, Output, State, Transmit,
};
use ipnet::Ipv4Net;

use crate::config::Settings;
use buildos_types::MacAddress;

/// What decides a race besides packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// NIC that the machine booted from.
    pub bootif: Option<MacAddress>,
    /// How long the offers of others wait for one on `bootif`.
    pub head_start: Duration,
    /// How long the port of br0 may be without carrier before others may win.
    pub carrier_grace: Duration,
    /// Whether addresses are watched over (RFC 5227).
    pub detect_conflicts: bool,
    /// Server identifiers to accept; empty for all.
    pub allowed_servers: Vec<Ipv4Addr>,
    /// Networks in which no address is accepted.
    pub denied_networks: Vec<Ipv4Net>,
}

impl From<&Settings> for Rules {
    fn from(settings: &Settings) -> Self {
        Self {
            bootif: settings.bootif,
            head_start: settings.head_start,
            carrier_grace: settings.carrier_grace,
            detect_conflicts: settings.detect_conflicts,
            allowed_servers: settings.allow_servers.clone(),
            denied_networks: settings.deny_networks.clone(),
        }
    }
}

/// How long a new name stands before the server of the lease is told. At boot it is
/// chosen when agents start, which are more urgent; and it may change once more.
const NAME_STANDS: Duration = Duration::from_secs(5);

/// A candidate as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the link.
    pub index: u32,
    /// Its name, for messages.
    pub name: String,
    /// Its hardware address.
    pub mac: MacAddress,
    /// Whether it has carrier.
    pub carrier: bool,
}

/// What the race wants done or known, about the link of that index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a message.
    Transmit(u32, Transmit),
    /// Broadcast an ARP packet.
    Arp(u32, arp::Packet),
    /// Something happened to a client.
    Event(u32, Event),
}

/// One NIC in the race.
#[derive(Debug)]
pub struct Runner {
    /// The NIC.
    pub candidate: Candidate,
    /// Its DHCP client.
    pub client: Client,
    /// Watches over the address that the client requests or has.
    detector: Option<Detector>,
    /// Whether the client has been started and not stopped since.
    running: bool,
    /// When the first offer of this search came; only of meaning while one is held.
    offered: Option<Instant>,
    /// Since when there is no carrier.
    dark: Option<Instant>,
}

impl Runner {
    fn new(candidate: Candidate, config: Config, seed: u64) -> Self {
        Self {
            client: Client::new(config, seed),
            candidate,
            detector: None,
            running: false,
            offered: None,
            dark: None,
        }
    }

    /// The address that must not be anybody else's.
    fn claimed(&self) -> Option<Ipv4Addr> {
        let lease = match self.client.state() {
            State::Init | State::Selecting | State::InitReboot => None,
            State::Requesting => self.client.offer(),
            State::Bound | State::Renewing | State::Rebinding | State::Rebooting => {
                self.client.lease()
            }
        };
        lease.map(|lease| lease.address)
    }

    /// The address that is watched over.
    #[must_use]
    pub fn watched(&self) -> Option<Ipv4Addr> {
        self.detector.as_ref().map(Detector::address)
    }

    fn holds_offer(&self) -> bool {
        self.client.state() == State::Selecting && self.client.offer().is_some()
    }
}

/// The state of the race. See the module's description.
#[derive(Debug)]
pub struct Race {
    rules: Rules,
    name: Option<ClientName>,
    /// When the server of the lease is to be told the name, out of turn.
    tell_name: Option<Instant>,
    runners: BTreeMap<u32, Runner>,
    port: Option<u32>,
    /// Hardware addresses of all links of the host.
    own: BTreeSet<MacAddress>,
    racing_since: Option<Instant>,
    effects: VecDeque<Effect>,
    seed: u64,
}

impl Race {
    /// A race without candidates. `seed` is the source of all randomness.
    #[must_use]
    pub fn new(rules: Rules, seed: u64) -> Self {
        Self {
            rules,
            name: None,
            tell_name: None,
            runners: BTreeMap::new(),
            port: None,
            own: BTreeSet::new(),
            racing_since: None,
            effects: VecDeque::new(),
            seed,
        }
    }

    /// Other rules, from now on.
    pub fn set_rules(&mut self, now: Instant, rules: Rules) {
        self.rules = rules;
        self.configure();
        self.settle(now);
    }

    /// The name to tell servers from now on. The server of a lease is told in a few
    /// seconds, so that it can enter the name into the DNS, unless it gave that name
    /// itself.
    pub fn set_name(&mut self, now: Instant, name: Option<ClientName>) {
        if name == self.name {
            return;
        }
        self.name = name;
        self.configure();
        // The REQUEST that is on its way still has the old one.
        let asked = self.lease().is_some() || self.is_requesting();
        self.tell_name = asked.then(|| now.saturating_add(NAME_STANDS));
    }

    /// Whether there is a name, and another one than the server gave.
    fn is_news_to(&self, lease: &Lease) -> bool {
        let Some(ClientName::Host(name) | ClientName::Fqdn(name)) = &self.name else {
            return false;
        };
        let is_whole_or_first =
            |fqdn: &String| fqdn == name || fqdn.split('.').next() == Some(name);
        let given = lease.hostname.as_ref() == Some(name);
        !given && !lease.fqdn.as_ref().is_some_and(is_whole_or_first)
    }

    fn configure(&mut self) {
        for runner in self.runners.values_mut() {
            let config = config(&self.rules, &self.name, runner.candidate.mac);
            runner.client.configure(config);
        }
    }

    /// The hardware addresses of all links of the host: what answers from there is
    /// nobody else, be it another NIC on the same network.
    pub fn set_own(&mut self, own: BTreeSet<MacAddress>) {
        self.own = own;
    }

    /// The candidates as they are now.
    pub fn set_candidates(&mut self, now: Instant, candidates: Vec<Candidate>) {
        self.runners.retain(|index, runner| {
            candidates
                .iter()
                .any(|c| c.index == *index && c.mac == runner.candidate.mac)
        });
        if self
            .port
            .is_some_and(|port| !self.runners.contains_key(&port))
        {
            self.port = None;
        }
        for candidate in candidates {
            let seed = self.next_seed();
            let runner = self.runners.entry(candidate.index).or_insert_with(|| {
                let config = config(&self.rules, &self.name, candidate.mac);
                Runner::new(candidate.clone(), config, seed)
            });
            runner.dark = match candidate.carrier {
                true => None,
                false => runner.dark.or(Some(now)),
            };
            runner.candidate = candidate;
        }
        self.settle(now);
    }

    /// Puts a candidate into its place as the port of br0 with the lease that it
    /// had in an earlier life of this process. Before the first
    /// [`Race::set_candidates`], so that nobody starts from the beginning.
    pub fn resume(&mut self, now: Instant, candidate: Candidate, lease: Lease) {
        let index = candidate.index;
        let config = config(&self.rules, &self.name, candidate.mac);
        let mut runner = Runner::new(candidate, config, self.next_seed());
        runner.client.handle(now, Input::Resume(Box::new(lease)));
        runner.running = true;
        runner.dark = (!runner.candidate.carrier).then_some(now);
        // The address has been in use all the time.
        let mac = runner.candidate.mac;
        runner.detector = runner
            .claimed()
            .filter(|_| self.rules.detect_conflicts)
            .map(|address| Detector::in_use(mac, address));
        self.runners.insert(index, runner);
        self.port = Some(index);
        self.settle(now);
    }

    /// A DHCP message that came in for the client of that link.
    pub fn packet(&mut self, now: Instant, index: u32, payload: &[u8]) {
        self.input(now, index, Input::Packet(payload));
    }

    /// An ARP packet that came in where the client of that link has its address.
    pub fn arp(&mut self, now: Instant, index: u32, packet: &arp::Packet) {
        if self.own.contains(&packet.sender_mac) {
            return;
        }
        let detector = self
            .runners
            .get_mut(&index)
            .and_then(|r| r.detector.as_mut());
        let Some(detector) = detector else { return };
        let address = detector.address();
        if let Some(mac) = detector.received(now, packet) {
            self.input(now, index, Input::Conflict { address, mac });
        } else {
            self.settle(now);
        }
    }

    /// Asks the server of the lease to extend it now.
    pub fn renew(&mut self, now: Instant) {
        if let Some(port) = self.port {
            self.input(now, port, Input::Renew);
        }
    }

    /// [`Race::deadline`] has come.
    pub fn timeout(&mut self, now: Instant) {
        if self.tell_name.take_if(|at| *at <= now).is_some()
            && self.lease().is_some_and(|lease| self.is_news_to(lease))
        {
            self.renew(now);
        }
        for runner in self.runners.values_mut() {
            if runner
                .client
                .deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                runner.client.handle(now, Input::Timeout);
            }
            if let Some(detector) = &mut runner.detector {
                detector.timeout(now);
            }
        }
        self.settle(now);
    }

    /// When [`Race::timeout`] is to be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let clients = self
            .runners
            .values()
            .flat_map(|runner| {
                let detector = runner.detector.as_ref();
                [
                    runner.client.deadline(),
                    detector.and_then(Detector::deadline),
                ]
            })
            .flatten();
        let head_start = self
            .racing_since
            .map(|since| since.saturating_add(self.rules.head_start));
        let head_start = head_start
            .filter(|_| !self.is_requesting() && self.runners.values().any(Runner::holds_offer));
        let grace = self.port().and_then(|port| port.dark);
        let grace = grace.map(|dark| dark.saturating_add(self.rules.carrier_grace));
        let grace = grace.filter(|_| self.racing_since.is_none());
        let others = [head_start, grace, self.tell_name];
        clients.chain(others.into_iter().flatten()).min()
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// All candidates.
    pub fn runners(&self) -> impl Iterator<Item = &Runner> {
        self.runners.values()
    }

    /// The port of br0.
    #[must_use]
    pub fn port(&self) -> Option<&Runner> {
        self.runners.get(&self.port?)
    }

    /// The lease in force.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.port()?.client.lease()
    }

    fn input(&mut self, now: Instant, index: u32, input: Input<'_>) {
        if let Some(runner) = self.runners.get_mut(&index) {
            runner.client.handle(now, input);
            self.settle(now);
        }
    }

    /// Draws the consequences until there are none left.
    fn settle(&mut self, now: Instant) {
        self.drain(now);
        self.start_and_stop(now);
        self.drain(now);
        if let Some(index) = self.next_to_request(now) {
            if let Some(runner) = self.runners.get_mut(&index) {
                runner.client.handle(now, Input::Select);
            }
            self.drain(now);
        }
        self.detect(now);
    }

    /// Has exactly the addresses watched over that have to be.
    fn detect(&mut self, now: Instant) {
        for (index, runner) in &mut self.runners {
            let address = runner.claimed().filter(|_| self.rules.detect_conflicts);
            if runner.detector.as_ref().map(Detector::address) != address {
                let mac = runner.candidate.mac;
                runner.detector = address.map(|address| Detector::new(now, mac, address));
            }
            let Some(detector) = &mut runner.detector else {
                continue;
            };
            if runner.client.lease().is_some() {
                detector.grant(now);
            }
            while let Some(packet) = detector.poll() {
                self.effects.push_back(Effect::Arp(*index, packet));
            }
        }
    }

    fn drain(&mut self, now: Instant) {
        for (index, runner) in &mut self.runners {
            while let Some(output) = runner.client.poll_output() {
                match output {
                    Output::Transmit(transmit) => {
                        self.effects.push_back(Effect::Transmit(*index, transmit));
                    }
                    Output::Event(event) => {
                        match &event {
                            Event::Offered { .. } => runner.offered = runner.offered.or(Some(now)),
                            Event::Bound(_) => {
                                self.port = Some(*index);
                                runner.offered = None;
                            }
                            Event::RequestFailed { .. }
                            | Event::Lost { .. }
                            | Event::Refused { .. }
                            | Event::Renewed(_)
                            | Event::Unconfirmed(_) => {}
                        }
                        self.effects.push_back(Effect::Event(*index, event));
                    }
                }
            }
        }
    }

    fn start_and_stop(&mut self, now: Instant) {
        let racing = self.is_open(now);
        self.racing_since = racing.then(|| self.racing_since.unwrap_or(now));
        for (index, runner) in &mut self.runners {
            let is_port = self.port == Some(*index);
            let runs = runner.candidate.carrier && (racing || is_port);
            let holds_lease = runner.client.lease().is_some();
            let input = match (runs, runner.running) {
                (true, false) => Input::Start,
                (false, true) if is_port && holds_lease => Input::Suspend,
                (false, true) => Input::Stop,
                // It was suspended as the port; another NIC has won since.
                (false, false) if !is_port && holds_lease => Input::Stop,
                (true, true) | (false, false) => continue,
            };
            runner.client.handle(now, input);
            runner.running = runs;
            runner.offered = None;
        }
    }

    /// Whether a NIC other than the port may win.
    fn is_open(&self, now: Instant) -> bool {
        let Some(port) = self.port() else { return true };
        let dark = port.dark.map(|since| now.saturating_sub(since));
        port.client.lease().is_none() || dark.is_some_and(|dark| dark >= self.rules.carrier_grace)
    }

    /// Whose turn it is to send a REQUEST.
    fn next_to_request(&self, now: Instant) -> Option<u32> {
        let since = self.racing_since?;
        if self.is_requesting() {
            return None;
        }
        let booted_from = |runner: &Runner| self.rules.bootif == Some(runner.candidate.mac);
        let head_start = now < since.saturating_add(self.rules.head_start);
        let waited_for = self
            .runners
            .values()
            .any(|r| booted_from(r) && r.running && !r.holds_offer());
        self.runners
            .iter()
            .filter(|(_, runner)| !(head_start && waited_for) || booted_from(runner))
            .filter(|(_, runner)| runner.holds_offer())
            .map(|(index, runner)| (!booted_from(runner), runner.offered, *index))
            .min()
            .map(|(.., index)| index)
    }

    fn is_requesting(&self) -> bool {
        self.runners
            .values()
            .any(|runner| runner.client.state() == State::Requesting)
    }

    /// A different seed for every client (Weyl sequence; the clients mix it).
    fn next_seed(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.seed
    }
}

fn config(rules: &Rules, name: &Option<ClientName>, mac: MacAddress) -> Config {
    Config {
        mac,
        name: name.clone(),
        allowed_servers: rules.allowed_servers.clone(),
        denied_networks: rules.denied_networks.clone(),
    }
}
