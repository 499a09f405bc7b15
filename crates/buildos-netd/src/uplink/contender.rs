//! Defines a contender: a candidate with its DHCP client and its address conflict detector.

use std::net::Ipv4Addr;

use buildos_dhcp::address_conflict::Detector;
use buildos_dhcp::{Client, Config, Input, Instant, State};
use buildos_types::MacAddress;

use super::candidate::Candidate;

/// A NIC in the election.
#[derive(Debug)]
pub struct Contender {
    /// The NIC, as last observed.
    pub candidate: Candidate,
    /// Its DHCP client.
    pub client: Client,
    /// Detects conflicts over the address that the client requests or has.
    pub(super) detector: Option<Detector>,
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
            running: false,
            offered_at: None,
            no_carrier_since: None,
        }
    }

    /// Returns the address that the client requests or has, which no other host may use.
    pub(super) fn claimed_address(&self) -> Option<Ipv4Addr> {
        let lease = match self.client.state() {
            State::Init | State::Selecting | State::InitReboot => None,
            State::Requesting => self.client.offer(),
            State::Bound | State::Renewing | State::Rebinding | State::Rebooting => {
                self.client.lease()
            }
        };
        lease.map(|lease| lease.address)
    }

    /// Returns the address for which conflicts are detected.
    #[must_use]
    pub fn watched_address(&self) -> Option<Ipv4Addr> {
        self.detector.as_ref().map(Detector::address)
    }

    /// Returns the hardware address of the host that claims the address of the client, too.
    #[must_use]
    pub fn contested_by(&self) -> Option<MacAddress> {
        self.detector.as_ref()?.contested_by()
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
