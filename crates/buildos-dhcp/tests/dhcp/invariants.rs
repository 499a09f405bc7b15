//! Checks invariants after random sequences of inputs, including mutated messages.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{Event, Input, MessageKind, State};
use proptest::prelude::*;

use crate::host::{Host, MAC, Sent};
use crate::server_reply::{ADDRESS, Reply, SECOND, SERVER};

#[derive(Debug, Clone)]
enum Step {
    Start,
    Stop,
    Suspend,
    Resume,
    Select,
    Renew,
    Conflict,
    Release,
    /// Time passes, with a timeout at each deadline.
    Run(u32),
    /// Time passes without a timeout.
    Sleep(u32),
    Reply {
        kind: u8,
        second: bool,
        lease: u32,
        /// Bytes to overwrite, with their offset in the message.
        damage: Vec<(u16, u8)>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let damage = prop_oneof![
        3 => Just(Vec::new()),
        1 => proptest::collection::vec((any::<u16>(), any::<u8>()), 1..4),
    ];
    let lease = prop_oneof![1u32..100, 100u32..100_000, Just(u32::MAX), Just(0)];
    let reply = (0u8..3, any::<bool>(), lease, damage).prop_map(|(kind, second, lease, damage)| {
        Step::Reply {
            kind,
            second,
            lease,
            damage,
        }
    });
    let step = prop_oneof![
        2 => Just(Step::Start),
        1 => Just(Step::Stop),
        1 => Just(Step::Suspend),
        1 => Just(Step::Resume),
        4 => Just(Step::Select),
        1 => Just(Step::Renew),
        1 => Just(Step::Conflict),
        1 => Just(Step::Release),
        4 => (0u32..100_000).prop_map(Step::Run),
        1 => (0u32..1_000_000).prop_map(Step::Run),
        1 => (0u32..10_000_000).prop_map(Step::Sleep),
        12 => reply,
    ];
    proptest::collection::vec(step, 1..60)
}

/// The state that inputs and outputs imply.
#[derive(Default)]
struct Model {
    /// [`Input::Select`] permits a REQUEST for an OFFER.
    permitted: bool,
    /// Address of the lease.
    address: Option<Ipv4Addr>,
}

impl Model {
    fn apply(&mut self, host: &mut Host, step: &Step, saved: &buildos_dhcp::Lease) {
        host.sent.clear();
        let before = self.address;
        match step {
            Step::Start => host.handle(Input::Start),
            Step::Stop => host.handle(Input::Stop),
            Step::Suspend => host.handle(Input::Suspend),
            Step::Resume => host.handle(Input::Resume(Box::new(saved.clone()))),
            Step::Select => {
                self.permitted |= host.state() == State::Selecting;
                host.handle(Input::Select);
            }
            Step::Renew => host.handle(Input::Renew),
            Step::Conflict => host.handle(Input::Conflict {
                address: ADDRESS,
                mac: MAC,
            }),
            Step::Release => host.handle(Input::Release),
            Step::Run(milliseconds) => {
                let end = host.now + Duration::from_millis((*milliseconds).into());
                while let Some(deadline) = host.client.deadline().filter(|time| *time <= end) {
                    host.now = host.now.max(deadline);
                    host.handle(Input::Timeout);
                    assert!(host.sent.len() < 10_000, "busy loop in {}", host.state());
                }
                host.now = end;
            }
            Step::Sleep(milliseconds) => {
                host.now += Duration::from_millis((*milliseconds).into());
            }
            Step::Reply {
                kind,
                second,
                lease,
                damage,
            } => {
                let server = if *second { SECOND } else { SERVER };
                let reply = match kind {
                    0 => Reply::offer_of(server).lasting(*lease),
                    1 => Reply::ack_of(server).lasting(*lease),
                    _ => Reply::nak_of(server),
                };
                let mut bytes = reply.xid(host.xid).bytes();
                for (place, value) in damage {
                    let place = usize::from(*place) % bytes.len();
                    bytes[place] = *value;
                }
                host.packet(&bytes);
            }
        }
        self.check_sent(host, before);
        self.check_events(host);
        // An expired lease is lost before the saved lease takes its place.
        if matches!(step, Step::Resume) && host.state() == State::Rebooting {
            self.address = self.address.or(Some(saved.address));
        }
        self.check_lease(host);
    }

    fn check_sent(&self, host: &Host, before: Option<Ipv4Addr>) {
        for (_, transmit) in &host.sent {
            let sent = Sent::new(transmit);
            let is_for_offer = transmit.kind == MessageKind::Request && sent.address(54).is_some();
            assert!(
                !is_for_offer || self.permitted,
                "REQUEST without permission"
            );
            if !sent.ciaddr.is_unspecified() {
                let known = [before, self.address, host.client.lease().map(|l| l.address)];
                assert!(
                    known.contains(&Some(sent.ciaddr)),
                    "source address without a lease"
                );
            }
        }
    }

    fn check_events(&mut self, host: &mut Host) {
        for event in host.events() {
            match event {
                Event::Bound(lease) => {
                    assert_eq!(self.address, None, "bound twice");
                    assert!(self.permitted);
                    self.address = Some(lease.address);
                    self.permitted = false;
                }
                Event::Renewed(lease) | Event::Unconfirmed(lease) => {
                    assert_eq!(self.address, Some(lease.address));
                }
                Event::Lost { lease, reason } => {
                    let unusable = self.address.is_none();
                    assert!(unusable || self.address == Some(lease.address), "{reason}");
                    self.address = None;
                }
                Event::RequestFailed { .. } => {
                    assert!(self.permitted);
                    self.permitted = false;
                }
                Event::Offered { .. } | Event::Refused { .. } => {}
            }
        }
    }

    fn check_lease(&mut self, host: &Host) {
        assert_eq!(self.address, host.client.lease().map(|lease| lease.address));
        self.permitted &= host.state() == State::Requesting;
    }
}

/// Returns the settings of proptest, with `PROPTEST_CASES` cases; 2000 by default.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 2000;
    }
    config.failure_persistence = None;
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_sequence_keeps_the_invariants(steps in steps()) {
        let saved = Host::in_state(State::Bound).lease().clone();
        let mut host = Host::new();
        let mut model = Model::default();
        for step in &steps {
            model.apply(&mut host, step, &saved);
        }
        // After a few timeouts the deadline is in the future, and no lease has expired.
        for _ in 0..4 {
            host.handle(Input::Timeout);
            model.check_events(&mut host);
            model.check_lease(&host);
        }
        prop_assert!(host.client.deadline().is_none_or(|deadline| deadline > host.now));
        prop_assert!(host.client.lease().is_none_or(|lease| !lease.is_expired(host.now)));
    }

    #[test]
    fn any_sequence_is_followed_by_a_lease_of_a_valid_server(steps in steps()) {
        let saved = Host::in_state(State::Bound).lease().clone();
        let mut host = Host::new();
        let mut model = Model::default();
        for step in &steps {
            model.apply(&mut host, step, &saved);
        }
        host.handle(Input::Stop);
        // Longer than any delay before a search.
        host.now += Duration::from_secs(65);
        host.handle(Input::Start);
        prop_assert_eq!(host.state(), State::Selecting);
        host.reply(Reply::offer());
        host.handle(Input::Select);
        host.reply(Reply::ack());
        prop_assert_eq!(host.state(), State::Bound);
    }
}
