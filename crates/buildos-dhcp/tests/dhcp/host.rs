//! Drives a client with a simulated clock and records its outputs.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{
    Client, Config, Event, Input, Lease, MessageKind, Options, Output, State, Transmit,
};
use buildos_types::MacAddress;

use crate::server_reply::{ADDRESS, Reply, SERVER};

pub(crate) const MAC: MacAddress = MacAddress([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
/// Start of the simulated clock: not zero, like CLOCK_BOOTTIME.
pub(crate) const EPOCH: Duration = Duration::from_secs(1000);

pub(crate) struct Host {
    pub(crate) client: Client,
    pub(crate) now: Duration,
    /// Transaction id of the last DISCOVER or REQUEST.
    pub(crate) xid: u32,
    /// Messages sent, with their time since [`EPOCH`].
    pub(crate) sent: Vec<(Duration, Transmit)>,
    /// Events since the last [`Host::events`].
    events: Vec<Event>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(Config::new(MAC), 42)
    }

    pub(crate) fn with(config: Config, seed: u64) -> Self {
        let client = Client::new(config, seed);
        Self {
            client,
            now: EPOCH,
            xid: 0,
            sent: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Returns a host in a state: with an OFFER in SELECTING, and with a lease of 3600 s in
    /// states that hold one.
    pub(crate) fn in_state(state: State) -> Self {
        let mut host = Self::new();
        match state {
            State::Init => {}
            State::Selecting => {
                host.handle(Input::Start);
                host.reply(Reply::offer());
            }
            State::Requesting => {
                host = Self::in_state(State::Selecting);
                host.handle(Input::Select);
            }
            State::Bound => {
                host = Self::in_state(State::Requesting);
                host.reply(Reply::ack());
            }
            State::Renewing => {
                host = Self::in_state(State::Bound);
                host.run_until(1800.0);
            }
            State::Rebinding => {
                host = Self::in_state(State::Bound);
                host.run_until(3150.0);
            }
            State::InitReboot => {
                host = Self::in_state(State::Bound);
                host.handle(Input::Suspend);
            }
            State::Rebooting => {
                host = Self::in_state(State::InitReboot);
                host.handle(Input::Start);
            }
        }
        assert_eq!(host.state(), state);
        host.sent.clear();
        host.events.clear();
        host
    }

    pub(crate) fn handle(&mut self, input: Input<'_>) {
        self.client.handle(self.now, input);
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Transmit(transmit) => {
                    if matches!(transmit.kind, MessageKind::Discover | MessageKind::Request) {
                        self.xid = Sent::new(&transmit).xid;
                    }
                    self.sent.push((self.now - EPOCH, transmit));
                }
                Output::Event(event) => self.events.push(event),
            }
        }
        let state = self.client.state();
        assert_eq!(self.client.lease().is_some(), state.has_lease(), "{state}");
        assert!(!self.client.status().is_empty());
    }

    pub(crate) fn packet(&mut self, payload: &[u8]) {
        self.handle(Input::Packet(payload));
    }

    /// Delivers a server's answer to the last message.
    pub(crate) fn reply(&mut self, reply: Reply) {
        let payload = reply.xid(self.xid).bytes();
        self.packet(&payload);
    }

    /// Advances the clock to `seconds` after [`EPOCH`], with a timeout at each deadline.
    pub(crate) fn run_until(&mut self, seconds: f64) {
        let end = EPOCH + Duration::from_secs_f64(seconds);
        while let Some(deadline) = self.client.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.handle(Input::Timeout);
        }
        self.now = self.now.max(end);
    }

    /// Advances the clock without a timeout.
    pub(crate) fn sleep_until(&mut self, seconds: f64) {
        self.now = EPOCH + Duration::from_secs_f64(seconds);
    }

    pub(crate) fn state(&self) -> State {
        self.client.state()
    }

    pub(crate) fn lease(&self) -> &Lease {
        self.client.lease().expect("a lease")
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    pub(crate) fn last(&self) -> Sent<'_> {
        Sent::new(&self.sent.last().expect("a message was sent").1)
    }

    /// Returns the times at which messages of a kind were sent, in seconds after [`EPOCH`].
    pub(crate) fn times(&self, kind: MessageKind) -> Vec<f64> {
        let of_kind = self
            .sent
            .iter()
            .filter(|(_, transmit)| transmit.kind == kind);
        of_kind.map(|(at, _)| at.as_secs_f64()).collect()
    }
}

/// A parsed message of the client.
#[derive(Debug)]
pub(crate) struct Sent<'a> {
    pub(crate) transmit: &'a Transmit,
    pub(crate) xid: u32,
    pub(crate) secs: u16,
    pub(crate) broadcast: bool,
    pub(crate) ciaddr: Ipv4Addr,
    pub(crate) options: Options,
}

impl<'a> Sent<'a> {
    pub(crate) fn new(transmit: &'a Transmit) -> Self {
        let payload = &transmit.payload;
        assert!(payload.len() >= 300);
        assert_eq!(payload[..4], [1, 1, 6, 0]);
        assert_eq!(payload[28..34], MAC.0);
        let ciaddr = Ipv4Addr::new(payload[12], payload[13], payload[14], payload[15]);
        assert_eq!(transmit.source, ciaddr);
        Self {
            transmit,
            xid: u32::from_be_bytes(payload[4..8].try_into().unwrap()),
            secs: u16::from_be_bytes([payload[8], payload[9]]),
            broadcast: payload[10] == 0x80,
            ciaddr,
            options: Options::parse(payload).expect("valid options"),
        }
    }

    pub(crate) fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.options.get(code)?.try_into().unwrap();
        Some(bytes.into())
    }
}

/// Returns true if a delay is the expected one within the jitter.
pub(crate) fn near(value: f64, expected: f64) -> bool {
    let most = (expected / 10.0).min(1.0);
    (value - expected).abs() <= most + 1e-6
}

#[test]
fn host_reaches_every_state() {
    for state in State::ALL {
        let host = Host::in_state(state);
        if state.has_lease() {
            assert_eq!(
                (host.lease().address, host.lease().server),
                (ADDRESS, SERVER)
            );
        }
    }
}
