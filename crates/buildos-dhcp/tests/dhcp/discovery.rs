//! From INIT to a lease: DISCOVER, OFFER, REQUEST, and what goes wrong there.

use std::net::Ipv4Addr;

use buildos_dhcp::{Config, Event, Failure, Input, MessageKind, Refusal, State};

use crate::host::{EPOCH, Host, MAC, Sent, near};
use crate::server_reply::{ADDRESS, Reply, SECOND, SERVER};

fn gaps(times: &[f64]) -> Vec<f64> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn the_whole_exchange() {
    let mut host = Host::new();
    host.handle(Input::Start);
    assert_eq!(host.state(), State::Selecting);
    let discover = host.last();
    assert_eq!(discover.transmit.destination, Ipv4Addr::BROADCAST);
    assert_eq!(discover.transmit.source, Ipv4Addr::UNSPECIFIED);
    assert_eq!((discover.address(50), discover.address(54)), (None, None));

    host.reply(Reply::offer());
    assert_eq!(host.state(), State::Selecting);
    assert_eq!(
        host.events(),
        [Event::Offered {
            server: SERVER,
            address: ADDRESS
        }]
    );
    assert_eq!(
        host.client.offer().map(|offer| offer.address),
        Some(ADDRESS)
    );

    host.handle(Input::Select);
    assert_eq!(host.state(), State::Requesting);
    let request = host.last();
    assert_eq!(request.transmit.destination, Ipv4Addr::BROADCAST);
    assert_eq!(
        (request.address(50), request.address(54)),
        (Some(ADDRESS), Some(SERVER))
    );

    host.reply(Reply::ack());
    assert_eq!(host.state(), State::Bound);
    let lease = Box::new(host.lease().clone());
    assert_eq!(host.events(), [Event::Bound(lease)]);
}

#[test]
fn discovers_come_fast_for_two_minutes_and_then_back_off() {
    for seed in 0..50 {
        let mut host = Host::with(Config::new(MAC), seed);
        host.handle(Input::Start);
        host.run_until(900.0);
        let times = host.times(MessageKind::Discover);
        assert_eq!(times[0], 0.0);
        let fast = times.iter().filter(|time| **time < 120.0).count();
        let gaps = gaps(&times);
        for (index, gap) in gaps[..fast].iter().enumerate() {
            // The last of these gaps was chosen before the two minutes were over.
            let expected = [0.1, 0.4, 1.0, 2.0, 3.0][index.min(4)];
            assert!(near(*gap, expected), "gap {index} of {gaps:?}");
        }
        for pair in gaps[fast..].windows(2) {
            assert!(pair[1] > pair[0] * 1.5 || pair[1] >= 63.0, "{gaps:?}");
            assert!(pair[1] <= 65.0, "{gaps:?}");
        }
    }
}

#[test]
fn hosts_do_not_stay_in_step() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let mut host = Host::with(Config::new(MAC), seed);
        host.handle(Input::Start);
        seen.insert((host.xid, host.client.deadline()));
    }
    // Seeds 0 and 1 included, which a weak generator would confuse.
    assert!(seen.len() >= 99, "{}", seen.len());
}

#[test]
fn one_transaction_id_and_growing_secs_per_exchange() {
    let mut host = Host::new();
    host.handle(Input::Start);
    host.run_until(100.0);
    let xid = host.xid;
    for (at, transmit) in &host.sent {
        let sent = Sent::new(transmit);
        assert_eq!(sent.xid, xid);
        assert_eq!(u64::from(sent.secs), at.as_secs());
    }
    host.handle(Input::Stop);
    host.handle(Input::Start);
    assert_ne!(host.xid, xid);
    assert_eq!(host.last().secs, 0);
}

#[test]
fn secs_does_not_wrap() {
    let mut host = Host::new();
    host.handle(Input::Start);
    host.sleep_until(100_000.0);
    host.handle(Input::Timeout);
    assert_eq!(host.last().secs, u16::MAX);
}

#[test]
fn every_other_discover_asks_for_broadcast_after_four_silent_ones() {
    let mut host = Host::new();
    host.handle(Input::Start);
    host.run_until(14.0);
    let flags: Vec<bool> = host
        .sent
        .iter()
        .map(|(_, sent)| Sent::new(sent).broadcast)
        .collect();
    assert_eq!(
        flags,
        [false, false, false, false, true, false, true, false]
    );
}

#[test]
fn no_request_without_permission() {
    let mut host = Host::in_state(State::Selecting);
    host.run_until(29.0);
    assert!(host.sent.is_empty(), "an OFFER is held: nothing to ask for");
    assert_eq!(host.state(), State::Selecting);
}

#[test]
fn an_offer_not_selected_grows_stale() {
    let mut host = Host::in_state(State::Selecting);
    host.run_until(30.0);
    assert_eq!(host.times(MessageKind::Discover), [30.0]);
    assert!(host.client.offer().is_none());
    host.reply(Reply::offer());
    assert_eq!(
        host.events(),
        [Event::Offered {
            server: SERVER,
            address: ADDRESS
        }]
    );
}

#[test]
fn an_offer_that_grew_stale_during_a_request_is_not_the_next() {
    let mut host = Host::in_state(State::Selecting);
    host.reply(Reply::offer_of(SECOND));
    host.run_until(29.0);
    host.handle(Input::Select);
    host.events();
    host.run_until(33.0);
    let why = Failure::Unanswered { requests: 2 };
    assert_eq!(
        host.events(),
        [Event::RequestFailed {
            server: SERVER,
            why
        }]
    );
    assert_eq!(host.last().transmit.kind, MessageKind::Discover);
}

#[test]
fn select_after_a_sleep_does_not_request_a_stale_offer() {
    let mut host = Host::in_state(State::Selecting);
    host.sleep_until(3600.0);
    host.handle(Input::Select);
    assert_eq!(host.state(), State::Selecting);
    assert!(host.times(MessageKind::Request).is_empty());
}

#[test]
fn stop_leaves_the_race_without_a_word() {
    for state in [State::Selecting, State::Requesting] {
        let mut host = Host::in_state(state);
        host.handle(Input::Stop);
        assert!(host.sent.is_empty() && host.events().is_empty());
        assert_eq!(host.client.deadline(), None);
    }
}

#[test]
fn only_the_selected_server_may_answer_a_request() {
    let mut host = Host::in_state(State::Requesting);
    host.reply(Reply::ack_of(SECOND));
    host.reply(Reply::nak_of(SECOND));
    host.reply(Reply::ack().without(54));
    host.reply(Reply::nak().without(54));
    assert_eq!(host.state(), State::Requesting);
    assert_eq!(host.client.counters().ignored, 4);
    host.reply(Reply::ack());
    assert_eq!(host.state(), State::Bound);
}

#[test]
fn answers_to_others_and_to_the_past_are_ignored() {
    let mut host = Host::in_state(State::Requesting);
    host.reply(Reply::ack().xid(1));
    host.reply(Reply::ack().chaddr([2; 6]));
    host.reply(Reply::ack().with(61, [1, 2, 2, 2, 2, 2, 2]));
    assert_eq!(host.state(), State::Requesting);
    host.reply(Reply::ack().with(61, [1, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56]));
    assert_eq!(host.state(), State::Bound);
}

#[test]
fn an_ack_unlike_its_offer_fails_at_once() {
    let other = Ipv4Addr::new(192, 0, 2, 99);
    for (ack, why) in [
        (Reply::ack().without(51), Refusal::NoLeaseTime),
        (
            Reply::ack().address(other),
            Refusal::OtherAddress {
                asked: ADDRESS,
                got: other,
            },
        ),
        (
            Reply::ack().with(3, [10, 0, 0, 1]),
            Refusal::GatewayOffLink(Ipv4Addr::new(10, 0, 0, 1)),
        ),
    ] {
        let mut host = Host::in_state(State::Requesting);
        host.reply(ack);
        assert_eq!(host.state(), State::Selecting);
        let kind = MessageKind::Ack;
        assert_eq!(
            host.events(),
            [
                Event::Refused {
                    kind,
                    server: Some(SERVER),
                    why: why.clone()
                },
                Event::RequestFailed {
                    server: SERVER,
                    why: Failure::BadAck(why)
                },
            ]
        );
        assert_eq!(host.last().transmit.kind, MessageKind::Discover);
    }
}

#[test]
fn a_lease_ends_the_row_of_naks() {
    let mut host = Host::in_state(State::Renewing);
    for _ in 0..3 {
        host.reply(Reply::nak_of(SECOND));
        assert_eq!(host.state(), State::Selecting, "without a wait");
        host.reply(Reply::offer());
        host.handle(Input::Select);
        host.reply(Reply::ack());
        host.handle(Input::Renew);
    }
}

#[test]
fn every_search_and_every_round_has_its_own_id() {
    let mut host = Host::in_state(State::Requesting);
    let first = host.xid;
    host.run_until(4.0);
    assert_eq!(host.last().transmit.kind, MessageKind::Discover);
    assert_ne!(
        host.xid, first,
        "a late OFFER of the first round is not of this one"
    );
}

#[test]
fn a_new_search_counts_and_tells_anew() {
    let mut host = Host::new();
    for _ in 0..2 {
        host.handle(Input::Start);
        host.reply(Reply::offer().without(1));
        host.reply(Reply::offer().without(1));
        assert_eq!(host.events().len(), 1);
        assert_eq!(host.client.counters().refused, 2);
        assert_eq!(host.client.counters().discovers, 1);
        assert_eq!(host.client.reason(), "1 DISCOVER unanswered");
        host.handle(Input::Stop);
    }
}

#[test]
fn naks_in_a_row_are_answered_slower_and_slower() {
    let mut host = Host::new();
    host.handle(Input::Start);
    let mut starts = Vec::new();
    for server in 1..=6 {
        // A new server each time, for the last one is shunned.
        let server = Ipv4Addr::new(192, 0, 2, server);
        starts.push((host.now - EPOCH).as_secs_f64());
        host.reply(Reply::offer_of(server));
        host.handle(Input::Select);
        host.reply(Reply::nak_of(server).with(56, *b"go\naway"));
        let why = Failure::Nak {
            message: Some("go\\x0aaway".to_owned()),
        };
        assert!(
            host.events()
                .contains(&Event::RequestFailed { server, why })
        );
        let discovers = host.times(MessageKind::Discover).len();
        while host.times(MessageKind::Discover).len() == discovers && host.state() == State::Init {
            let deadline = host.client.deadline().expect("waits");
            host.run_until((deadline - EPOCH).as_secs_f64());
        }
    }
    assert_eq!(gaps(&starts), [0.0, 1.0, 2.0, 4.0, 8.0]);
}
