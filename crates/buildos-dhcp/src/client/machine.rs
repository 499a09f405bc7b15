//! Defines the client, its accessors and its outputs.

use core::time::Duration;
use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::exchange::{Counters, Exchange};
use super::phase::Phase;
use crate::config::Config;
use crate::event::{Event, LeaseLoss, Output, Transmit};
use crate::failed_servers::FailedServers;
use crate::lease::Lease;
use crate::message::ClientMessage;
use crate::offers::Offers;
use crate::random::Random;
use crate::refusal::Refusal;
use crate::state::State;
use crate::time::Instant;
use buildos_types::MacAddress;

/// A DHCP client for one link.
#[derive(Debug)]
pub struct Client {
    pub(super) config: Config,
    pub(super) random: Random,
    pub(super) phase: Phase,
    pub(super) exchange: Exchange,
    pub(super) counters: Counters,
    pub(super) offers: Offers,
    pub(super) failed_servers: FailedServers,
    /// NAKs since the last lease.
    pub(super) naks: u32,
    /// Consecutive conflicts.
    pub(super) conflicts: u32,
    pub(super) last_conflict: Instant,
    /// Earliest time of the next search, even on [`Input::Start`](crate::Input::Start).
    pub(super) not_before: Instant,
    /// Address of an expired lease, which the next DISCOVER requests again.
    pub(super) expired_address: Option<Ipv4Addr>,
    pub(super) last_refusal: Option<(Option<Ipv4Addr>, Refusal)>,
    /// The last failure, for [`Client::status`].
    pub(super) last_failure: Option<String>,
    outputs: VecDeque<Output>,
}

impl Client {
    /// Returns a client in INIT. `seed` must be random: transaction ids and jitter
    /// depend on it.
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            config,
            random: Random::new(seed),
            phase: Phase::Init { search_at: None },
            exchange: Exchange::default(),
            counters: Counters::default(),
            offers: Offers::default(),
            failed_servers: FailedServers::default(),
            naks: 0,
            conflicts: 0,
            last_conflict: Instant::ZERO,
            not_before: Instant::ZERO,
            expired_address: None,
            last_refusal: None,
            last_failure: None,
            outputs: VecDeque::new(),
        }
    }

    /// Replaces the configuration, from the next message on, except for `mac` and
    /// `broadcast`. The client keeps a lease.
    pub fn configure(&mut self, config: Config) {
        let (mac, broadcast) = (self.config.mac, self.config.broadcast);
        self.config = Config {
            mac,
            broadcast,
            ..config
        };
    }

    /// Returns the hardware address in messages.
    pub fn mac(&self) -> MacAddress {
        self.config.mac
    }

    /// Returns the next output, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns the state of the client.
    pub fn state(&self) -> State {
        self.phase.state()
    }

    /// Returns the lease held.
    pub fn lease(&self) -> Option<&Lease> {
        self.phase.lease()
    }

    /// Returns the OFFER that [`Input::Select`](crate::Input::Select) would request, or
    /// the OFFER being requested.
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

    /// Returns the message counts of the current search, renewal or confirmation.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes the phase and leaves INIT in its place.
    pub(super) fn take_phase(&mut self) -> Phase {
        std::mem::replace(&mut self.phase, Phase::Init { search_at: None })
    }

    /// Enters INIT and starts no search before `delay` has passed.
    pub(super) fn wait_in_init(&mut self, now: Instant, delay: Duration) {
        self.not_before = now.saturating_add(delay);
        self.phase = Phase::Init {
            search_at: Some(self.not_before),
        };
    }

    /// Reports the loss of a lease and records its cause for [`Client::status`].
    pub(super) fn lose(&mut self, lease: Box<Lease>, reason: LeaseLoss) {
        self.last_failure = Some(reason.to_string());
        self.emit(Event::Lost { lease, reason });
    }

    pub(super) fn emit(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    #[expect(clippy::expect_used, reason = "the message says why it cannot fail")]
    pub(super) fn transmit(&mut self, destination: Ipv4Addr, message: ClientMessage) {
        let payload = message
            .encode(
                self.config.mac,
                &self.config.identity,
                self.config.name.as_ref(),
            )
            .expect("numbers, addresses and byte strings always have an encoding");
        self.outputs.push_back(Output::Transmit(Transmit {
            kind: message.kind,
            source: message.ciaddr,
            destination,
            payload,
        }));
    }
}
