//! The machine: RFC 2131, figure 5, with the RFC's names.
//!
//! [`Phase`] is the state with all that only that state has, so a lease exists
//! exactly in the states that have one. `packets` holds what messages do,
//! `timers` what time does, this file what the owner of the link asks for.

mod receive;
mod status;
mod timers;

use core::time::Duration;
use std::collections::VecDeque;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::message::ClientMessage;
use crate::offers::{Offer, Offers, Shunned};
use crate::retransmission::{CONFLICTS_FORGOTTEN, Random, conflict_gap, nak_gap};
use crate::{
    Event, Failure, Input, Instant, Lease, Loss, Mac, MessageKind, Output, Refusal, State, Transmit,
};

/// What a client has to know from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Hardware address of the link; with type 1 before it the client identifier.
    pub mac: Mac,
    /// Name to tell the server, so that it can enter it into the DNS.
    pub name: Option<Name>,
    /// Server identifiers (option 54) to accept; empty for all.
    pub allowed_servers: Vec<Ipv4Addr>,
    /// Networks in which no address is accepted.
    pub denied_networks: Vec<Ipv4Net>,
}

impl Config {
    /// A client that tells no name and accepts every server.
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            name: None,
            allowed_servers: Vec::new(),
            denied_networks: Vec::new(),
        }
    }

    fn allows(&self, server: Ipv4Addr) -> bool {
        self.allowed_servers.is_empty() || self.allowed_servers.contains(&server)
    }

    fn check(&self, lease: &Lease) -> Result<(), Refusal> {
        if !self.allows(lease.server) {
            return Err(Refusal::ServerNotAllowed(lease.server));
        }
        if self
            .denied_networks
            .iter()
            .any(|network| network.contains(&lease.address))
        {
            return Err(Refusal::NetworkDenied(lease.address));
        }
        Ok(())
    }
}

/// The name that a client tells its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// As host name (option 12).
    Host(String),
    /// As client FQDN (option 81, RFC 4702); a name without a dot is a partial one,
    /// which the server completes.
    Fqdn(String),
}

/// What happened since the present search, renewal or confirmation began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// DISCOVERs sent.
    pub discovers: u32,
    /// REQUESTs sent.
    pub requests: u32,
    /// Usable OFFERs received.
    pub offers: u32,
    /// OFFERs and ACKs refused for their content.
    pub refused: u32,
    /// Payloads that were no message to this client, or not in this state.
    pub ignored: u32,
}

#[derive(Debug)]
enum Phase {
    Init {
        wake: Option<Instant>,
    },
    Selecting {
        retry_at: Instant,
    },
    Requesting {
        offer: Offer,
        retry_at: Instant,
    },
    InitReboot {
        lease: Box<Lease>,
    },
    Rebooting {
        lease: Box<Lease>,
        retry_at: Instant,
    },
    Bound {
        lease: Box<Lease>,
    },
    Renewing {
        lease: Box<Lease>,
        retry_at: Instant,
    },
    Rebinding {
        lease: Box<Lease>,
        retry_at: Instant,
    },
}

/// One run of messages that belong together.
#[derive(Debug, Default)]
struct Exchange {
    /// Transaction id; answers with another one are not ours.
    xid: u32,
    /// Start of the search, renewal or confirmation, from which `secs` counts.
    began: Instant,
    /// As in the last DISCOVER: its REQUEST repeats it (RFC 2131, section 4.4.1).
    secs: u16,
    /// Whether servers are asked to answer by broadcast.
    broadcast: bool,
    /// How often the present message was sent.
    sent: u32,
    /// When the REQUEST was sent first: a lease counts from there.
    requested_at: Instant,
}

/// A DHCP client for one link.
#[derive(Debug)]
pub struct Client {
    config: Config,
    random: Random,
    phase: Phase,
    exchange: Exchange,
    offers: Offers,
    shunned: Shunned,
    /// NAKs since the last lease.
    naks: u32,
    /// Conflicts in a row, and when the last one was.
    conflicts: (u32, Instant),
    /// No search begins earlier, whatever is asked for.
    not_before: Instant,
    /// The address to ask for again after its lease expired.
    hint: Option<Ipv4Addr>,
    counters: Counters,
    last_refusal: Option<(Option<Ipv4Addr>, Refusal)>,
    /// The last failure, in words.
    setback: Option<String>,
    outputs: VecDeque<Output>,
}

impl Client {
    /// A client in INIT. `seed` must be random: transaction ids and jitter follow
    /// from it.
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            config,
            random: Random::new(seed),
            phase: Phase::Init { wake: None },
            exchange: Exchange::default(),
            offers: Offers::default(),
            shunned: Shunned::default(),
            naks: 0,
            conflicts: (0, Instant::ZERO),
            not_before: Instant::ZERO,
            hint: None,
            counters: Counters::default(),
            last_refusal: None,
            setback: None,
            outputs: VecDeque::new(),
        }
    }

    /// Changes what the client tells and accepts, from the next message on. A lease
    /// that is held stays; `mac` stays what it was.
    pub fn configure(&mut self, config: Config) {
        let mac = self.config.mac;
        self.config = Config { mac, ..config };
    }

    /// Tells what happened at `now`. Drain [`Client::poll_output`] afterwards.
    ///
    /// An input that makes no sense in the present state changes nothing.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Stop => return self.stop(Loss::Stopped),
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
            Input::Packet(payload) => self.packet(now, payload),
            Input::Timeout => self.timeout(now),
            Input::Resume(lease) => self.resume(now, lease),
            Input::Select => self.select(now),
            Input::Renew => self.renew_now(now),
            Input::Conflict { address, mac } => self.conflict(now, address, mac),
            Input::Stop | Input::Release | Input::Suspend => {}
        }
    }

    /// The next thing to do, in order; none when all is done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The present state.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Init { .. } => State::Init,
            Phase::Selecting { .. } => State::Selecting,
            Phase::Requesting { .. } => State::Requesting,
            Phase::InitReboot { .. } => State::InitReboot,
            Phase::Rebooting { .. } => State::Rebooting,
            Phase::Bound { .. } => State::Bound,
            Phase::Renewing { .. } => State::Renewing,
            Phase::Rebinding { .. } => State::Rebinding,
        }
    }

    /// The lease held.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.phase {
            Phase::Init { .. } | Phase::Selecting { .. } | Phase::Requesting { .. } => None,
            Phase::InitReboot { lease }
            | Phase::Rebooting { lease, .. }
            | Phase::Bound { lease }
            | Phase::Renewing { lease, .. }
            | Phase::Rebinding { lease, .. } => Some(lease),
        }
    }

    /// What [`Input::Select`] would request, or what is being requested.
    pub fn offer(&self) -> Option<&Lease> {
        match &self.phase {
            Phase::Requesting { offer, .. } => Some(&offer.lease),
            Phase::Selecting { .. } => self.offers.first().map(|offer| &*offer.lease),
            Phase::Init { .. }
            | Phase::InitReboot { .. }
            | Phase::Rebooting { .. }
            | Phase::Bound { .. }
            | Phase::Renewing { .. }
            | Phase::Rebinding { .. } => None,
        }
    }

    /// What happened in this state's exchange so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn start(&mut self, now: Instant) {
        match self.leave() {
            Phase::Init { .. } if now < self.not_before => {
                self.phase = Phase::Init {
                    wake: Some(self.not_before),
                };
            }
            Phase::Init { .. } => self.search(now),
            Phase::InitReboot { lease } => self.reboot(now, lease),
            other @ (Phase::Selecting { .. }
            | Phase::Requesting { .. }
            | Phase::Rebooting { .. }
            | Phase::Bound { .. }
            | Phase::Renewing { .. }
            | Phase::Rebinding { .. }) => self.phase = other,
        }
    }

    fn stop(&mut self, why: Loss) {
        let phase = self.leave();
        self.offers = Offers::default();
        self.setback = None;
        if let Some(lease) = phase.into_lease() {
            self.emit(Event::Lost { lease, why });
        }
    }

    fn release(&mut self) {
        let online = self.state() != State::InitReboot;
        if let Some(lease) = self.lease().filter(|_| online) {
            let (address, server) = (lease.address, lease.server);
            let message = ClientMessage {
                ciaddr: address,
                server: Some(server),
                ..ClientMessage::new(MessageKind::Release, self.random.next())
            };
            self.transmit(server, message);
        }
        self.stop(Loss::Released);
    }

    fn suspend(&mut self) {
        self.offers = Offers::default();
        if let Some(lease) = self.leave().into_lease() {
            self.phase = Phase::InitReboot { lease };
        }
    }

    fn resume(&mut self, now: Instant, saved: Box<Lease>) {
        if self.state() != State::Init {
            return;
        }
        let lease = saved.clone().reread(now).and_then(|lease| {
            self.config.check(&lease)?;
            Ok(lease)
        });
        match lease {
            Ok(lease) if !lease.is_expired(now) => self.reboot(now, Box::new(lease)),
            Ok(lease) => {
                self.hint = Some(lease.address);
                self.lose(Box::new(lease), Loss::Expired);
                self.start(now);
            }
            Err(why) => {
                self.lose(saved, Loss::Unusable(why));
                self.start(now);
            }
        }
    }

    fn select(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Selecting { .. }) {
            return;
        }
        self.offers.drop_stale(now);
        if let Some(offer) = self.offers.take() {
            self.request(now, offer);
        }
    }

    fn renew_now(&mut self, now: Instant) {
        match self.leave() {
            Phase::Bound { lease } | Phase::Renewing { lease, .. } => self.renew(now, lease),
            Phase::Rebinding { lease, .. } => self.rebind(now, lease),
            other @ (Phase::Init { .. }
            | Phase::Selecting { .. }
            | Phase::Requesting { .. }
            | Phase::InitReboot { .. }
            | Phase::Rebooting { .. }) => self.phase = other,
        }
    }

    fn conflict(&mut self, now: Instant, address: Ipv4Addr, mac: Mac) {
        match self.leave() {
            Phase::Requesting { offer, .. } if offer.lease.address == address => {
                self.decline(offer.lease.server, address);
                self.drop_offers(address, mac);
                self.fail(now, offer.lease.server, Failure::Conflict { mac });
            }
            Phase::Bound { lease }
            | Phase::Renewing { lease, .. }
            | Phase::Rebinding { lease, .. }
            | Phase::Rebooting { lease, .. }
                if lease.address == address =>
            {
                self.decline(lease.server, address);
                self.lose(lease, Loss::Conflict { mac });
                let wait = self.count_conflict(now);
                self.hold_off(now, wait);
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
                let dropped = self.drop_offers(address, mac);
                if dropped && self.state() == State::Selecting {
                    let wait = self.count_conflict(now);
                    self.next_offer(now, wait);
                }
            }
        }
    }

    /// Remembers a conflict; how long to rest before the next search. The address
    /// is not asked for again.
    fn count_conflict(&mut self, now: Instant) -> Duration {
        let (count, last) = self.conflicts;
        let recent = now.saturating_sub(last) < CONFLICTS_FORGOTTEN;
        let count = if recent { count.saturating_add(1) } else { 1 };
        self.conflicts = (count, now);
        self.hint = None;
        conflict_gap(count)
    }

    /// Declines the OFFERs held of this address; true when there were any.
    fn drop_offers(&mut self, address: Ipv4Addr, mac: Mac) -> bool {
        let servers = self.offers.drop_address(address);
        for server in &servers {
            self.decline(*server, address);
            let why = Refusal::InUse { address, mac };
            self.refuse(MessageKind::Offer, Some(*server), why);
        }
        !servers.is_empty()
    }

    /// Gives the OFFER being requested up.
    fn fail(&mut self, now: Instant, server: Ipv4Addr, why: Failure) {
        let wait = match why {
            Failure::Unanswered { .. } | Failure::BadAck(_) => Duration::ZERO,
            Failure::Nak { .. } => nak_gap(self.naks),
            Failure::Conflict { .. } => self.count_conflict(now),
        };
        if !matches!(why, Failure::Conflict { .. }) {
            self.shunned.add(server, now);
        }
        self.setback = Some(format!("{server}: {why}"));
        self.emit(Event::RequestFailed { server, why });
        self.next_offer(now, wait);
    }

    /// Announces the next OFFER held, or looks for others after a wait.
    fn next_offer(&mut self, now: Instant, wait: Duration) {
        self.offers.drop_stale(now);
        match self.offers.first() {
            Some(Offer { lease, .. }) => {
                let (server, address) = (lease.server, lease.address);
                self.phase = Phase::Selecting { retry_at: now };
                self.emit(Event::Offered { server, address });
            }
            None if wait.is_zero() => self.discover(now),
            None => self.hold_off(now, wait),
        }
    }

    fn decline(&mut self, server: Ipv4Addr, address: Ipv4Addr) {
        let message = ClientMessage {
            requested: Some(address),
            server: Some(server),
            ..ClientMessage::new(MessageKind::Decline, self.random.next())
        };
        self.transmit(Ipv4Addr::BROADCAST, message);
    }

    fn hold_off(&mut self, now: Instant, wait: Duration) {
        self.not_before = now.saturating_add(wait);
        self.phase = Phase::Init {
            wake: Some(self.not_before),
        };
    }

    fn lose(&mut self, lease: Box<Lease>, why: Loss) {
        self.setback = Some(why.to_string());
        self.emit(Event::Lost { lease, why });
    }

    fn leave(&mut self) -> Phase {
        std::mem::replace(&mut self.phase, Phase::Init { wake: None })
    }

    fn emit(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    #[expect(clippy::expect_used, reason = "the message says why it cannot fail")]
    fn transmit(&mut self, destination: Ipv4Addr, message: ClientMessage) {
        let payload = message
            .encode(self.config.mac, self.config.name.as_ref())
            .expect("numbers, addresses and byte strings always have an encoding");
        self.outputs.push_back(Output::Transmit(Transmit {
            kind: message.kind,
            source: message.ciaddr,
            destination,
            payload,
        }));
    }
}

impl Phase {
    fn into_lease(self) -> Option<Box<Lease>> {
        match self {
            Self::Init { .. } | Self::Selecting { .. } | Self::Requesting { .. } => None,
            Self::InitReboot { lease }
            | Self::Rebooting { lease, .. }
            | Self::Bound { lease }
            | Self::Renewing { lease, .. }
            | Self::Rebinding { lease, .. } => Some(lease),
        }
    }
}
