//! Defines a contender: a candidate with its DHCP client and its address conflict detector.

use std::net::Ipv4Addr;

use buildos_dhcp::address_conflict::Detector;
use buildos_dhcp::{Client, Config, Input, Instant, Lease, State};
use buildos_types::MacAddress;
use ipnet::Ipv4Net;

use super::candidate::Candidate;
use super::gateway::Monitor;
use super::takeover::Takeover;

/// What br0 has while no server grants a lease.
#[derive(Debug)]
pub(super) struct Fallback {
    /// The expired lease, or the static address.
    pub(super) lease: Box<Lease>,
    /// br0 has the address: no other host answered for it.
    pub(super) in_use: bool,
}

/// Another host has the address of the fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: Ipv4Addr,
    /// Hardware address of the other host.
    pub by: MacAddress,
    /// Time of the next attempt.
    pub(super) retry_at: Instant,
}

/// A NIC in the election.
#[derive(Debug)]
pub struct Contender {
    /// The NIC, as last observed.
    pub candidate: Candidate,
    /// Its DHCP client.
    pub client: Client,
    /// Detects conflicts over the address that the client requests or has.
    pub(super) detector: Option<Detector>,
    /// Checks the gateway of the lease; on other NICs, of the offer while br0's is silent.
    pub(super) monitor: Option<Monitor>,
    /// The last gateway that answered, and its hardware address.
    pub(super) known_gateway: Option<(Ipv4Addr, MacAddress)>,
    /// No server confirmed the lease since carrier returned or the gateway fell silent.
    pub(super) unconfirmed: bool,
    /// Configuration of br0 while the client has no lease.
    pub(super) fallback: Option<Fallback>,
    /// The search beside the lease found its network, while the lease is being confirmed.
    pub(super) scouted: bool,
    /// Searches beside the unconfirmed lease.
    pub(super) scout: Option<Client>,
    /// Asks for the lease of the boot before, beside the search.
    pub(super) former_boot: Option<Client>,
    /// Asks whether the NIC is on the LAN of br0's lease.
    pub(super) takeover: Option<Takeover>,
    /// The client has been started and not stopped or suspended since.
    pub(super) running: bool,
    /// Arrival of the first offer of this search; meaningful only while the client holds one.
    pub(super) offered_at: Option<Instant>,
    /// Loss of carrier; [`None`] while there is carrier.
    pub(super) no_carrier_since: Option<Instant>,
}

impl Contender {
    pub(super) fn new(candidate: Candidate, config: Config, seed: u64) -> Self {
        Self {
            client: Client::new(config, seed),
            candidate,
            detector: None,
            monitor: None,
            known_gateway: None,
            unconfirmed: false,
            fallback: None,
            scouted: false,
            scout: None,
            former_boot: None,
            takeover: None,
            running: false,
            offered_at: None,
            no_carrier_since: None,
        }
    }

    /// Returns the lease of the client, else the fallback that br0 has.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        let fallback = self.fallback.as_ref().filter(|fallback| fallback.in_use);
        let fallback = fallback.map(|fallback| &*fallback.lease);
        self.client.lease().or(fallback)
    }

    /// Returns the address that no other host may use, with its prefix: that of the client, else
    /// that of the fallback.
    pub(super) fn claimed_address(&self) -> Option<Ipv4Net> {
        let fallback = self.fallback.as_ref().map(|fallback| &*fallback.lease);
        let fallback = fallback.map(|lease| Ipv4Net::new_assert(lease.address, lease.prefix));
        self.address_of_client().or(fallback)
    }

    /// Returns the address that the client requests or has, with its prefix.
    pub(super) fn address_of_client(&self) -> Option<Ipv4Net> {
        let lease = match self.client.state() {
            State::Init | State::Selecting | State::InitReboot => None,
            State::Requesting => self.client.offer(),
            State::Bound | State::Renewing | State::Rebinding | State::Rebooting => {
                self.client.lease()
            }
        };
        lease.map(|lease| Ipv4Net::new_assert(lease.address, lease.prefix))
    }

    /// Returns the detector of conflicts over the address that the client requests or has.
    #[must_use]
    pub fn detector(&self) -> Option<&Detector> {
        self.detector.as_ref()
    }

    /// Returns the monitor of the gateway, if it is checked.
    #[must_use]
    pub fn monitor(&self) -> Option<&Monitor> {
        self.monitor.as_ref()
    }

    /// Returns true while a second client searches beside the lease.
    #[must_use]
    pub fn has_scout(&self) -> bool {
        self.scout.is_some()
    }

    /// Returns the hardware addresses of the clients that run beside the one of the contender.
    pub(super) fn other_clients(&self) -> impl Iterator<Item = MacAddress> {
        let scout = self.scout.as_ref().map(Client::mac);
        let takeover = self.takeover.as_ref().filter(|t| t.is_asking());
        scout.into_iter().chain(takeover.map(Takeover::mac))
    }

    /// Ends the client's lease or search, without an event.
    pub(super) fn stop(&mut self) {
        self.client.handle(Instant::ZERO, Input::Stop);
        while self.client.poll_output().is_some() {}
        self.running = false;
        self.offered_at = None;
    }

    pub(super) fn holds_offer(&self) -> bool {
        self.client.state() == State::Selecting && self.client.offer().is_some()
    }
}
