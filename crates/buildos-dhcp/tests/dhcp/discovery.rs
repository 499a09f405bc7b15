//! Tests the way from INIT to a lease: DISCOVER, OFFER, REQUEST, ACK, and failures.

use std::net::Ipv4Addr;

use buildos_dhcp::{Config, Event, Input, MessageKind, Refusal, RequestFailure, State};
use buildos_types::MacAddress;

use crate::host::{EPOCH, Host, MAC, Sent, near};
use crate::server_reply::{ADDRESS, Reply, SECOND, SERVER};

fn gaps(times: &[f64]) -> Vec<f64> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn exchange_with_one_server_ends_in_bound() {
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
fn discovers_are_frequent_for_two_minutes_then_back_off() {
    for seed in 0..50 {
        let mut host = Host::with(Config::new(MAC), seed);
        host.handle(Input::Start);
        host.run_until(900.0);
        let times = host.times(MessageKind::Discover);
        assert_eq!(times[0], 0.0);
        let fast = times.iter().filter(|time| **time < 120.0).count();
        let gaps = gaps(&times);
        for (index, gap) in gaps[..fast].iter().enumerate() {
            // The last of these delays began within the two minutes.
            let expected = [0.1, 0.4, 1.0, 2.0][index.min(3)];
            assert!(near(*gap, expected), "gap {index} of {gaps:?}");
        }
        for pair in gaps[fast..].windows(2) {
            assert!(pair[1] > pair[0] * 1.5 || pair[1] >= 63.0, "{gaps:?}");
            assert!(pair[1] <= 65.0, "{gaps:?}");
        }
    }
}

#[test]
fn hosts_with_different_seeds_do_not_send_in_step() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let mut host = Host::with(Config::new(MAC), seed);
        host.handle(Input::Start);
        seen.insert((host.xid, host.client.deadline()));
    }
    // A weak generator confuses the seeds 0 and 1.
    assert!(seen.len() >= 99, "{}", seen.len());
}

#[test]
fn discovers_of_a_search_share_the_xid_and_count_secs() {
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
fn secs_field_saturates() {
    let mut host = Host::new();
    host.handle(Input::Start);
    host.sleep_until(100_000.0);
    host.handle(Input::Timeout);
    assert_eq!(host.last().secs, u16::MAX);
}

#[test]
fn every_second_discover_after_four_has_the_broadcast_flag() {
    let mut host = Host::new();
    host.handle(Input::Start);
    host.run_until(14.0);
    let flags: Vec<bool> = host
        .sent
        .iter()
        .map(|(_, sent)| Sent::new(sent).broadcast)
        .collect();
    assert_eq!(
        flags[..8],
        [false, false, false, false, true, false, true, false]
    );
}

#[test]
fn held_offer_is_not_requested_without_select() {
    let mut host = Host::in_state(State::Selecting);
    host.run_until(29.0);
    assert!(host.sent.is_empty(), "an OFFER is held");
    assert_eq!(host.state(), State::Selecting);
}

#[test]
fn offer_not_selected_expires() {
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
fn offer_expired_during_a_request_is_not_requested_next() {
    let mut host = Host::in_state(State::Selecting);
    host.reply(Reply::offer_of(SECOND));
    host.run_until(29.0);
    host.handle(Input::Select);
    host.events();
    host.run_until(33.0);
    let reason = RequestFailure::Unanswered { requests: 2 };
    assert_eq!(
        host.events(),
        [Event::RequestFailed {
            server: SERVER,
            reason
        }]
    );
    assert_eq!(host.last().transmit.kind, MessageKind::Discover);
}

#[test]
fn select_after_suspend_does_not_request_an_expired_offer() {
    let mut host = Host::in_state(State::Selecting);
    host.sleep_until(3600.0);
    host.handle(Input::Select);
    assert_eq!(host.state(), State::Selecting);
    assert!(host.times(MessageKind::Request).is_empty());
}

#[test]
fn stop_during_a_search_sends_nothing() {
    for state in [State::Selecting, State::Requesting] {
        let mut host = Host::in_state(state);
        host.handle(Input::Stop);
        assert!(host.sent.is_empty() && host.events().is_empty());
        assert_eq!(host.client.deadline(), None);
    }
}

#[test]
fn request_accepts_answers_of_the_selected_server_only() {
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
fn answers_to_other_clients_and_exchanges_are_ignored() {
    let mut host = Host::in_state(State::Requesting);
    host.reply(Reply::ack().xid(1));
    host.reply(Reply::ack().chaddr(MacAddress([2; 6])));
    host.reply(Reply::ack().with(61, [1, 2, 2, 2, 2, 2, 2]));
    assert_eq!(host.state(), State::Requesting);
    host.reply(Reply::ack().with(61, [1, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56]));
    assert_eq!(host.state(), State::Bound);
}

#[test]
fn unusable_ack_fails_the_request_at_once() {
    let other = Ipv4Addr::new(192, 0, 2, 99);
    for (ack, reason) in [
        (Reply::ack().without(51), Refusal::NoLeaseTime),
        (
            Reply::ack().address(other),
            Refusal::OtherAddress {
                requested: ADDRESS,
                granted: other,
            },
        ),
        (
            Reply::ack().with(3, ADDRESS.octets()),
            Refusal::BadGateway(ADDRESS),
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
                    reason: reason.clone()
                },
                Event::RequestFailed {
                    server: SERVER,
                    reason: RequestFailure::BadAck(reason)
                },
            ]
        );
        assert_eq!(host.last().transmit.kind, MessageKind::Discover);
    }
}

#[test]
fn lease_resets_the_nak_count() {
    let mut host = Host::in_state(State::Renewing);
    for _ in 0..3 {
        host.reply(Reply::nak_of(SECOND));
        assert_eq!(host.state(), State::Selecting, "without a delay");
        host.reply(Reply::offer());
        host.handle(Input::Select);
        host.reply(Reply::ack());
        host.handle(Input::Renew);
    }
}

#[test]
fn search_after_a_failed_request_has_a_new_xid() {
    let mut host = Host::in_state(State::Requesting);
    let first = host.xid;
    host.run_until(4.0);
    assert_eq!(host.last().transmit.kind, MessageKind::Discover);
    assert_ne!(host.xid, first, "ignores a late OFFER of the first search");
}

#[test]
fn new_search_resets_counters_and_refusals() {
    let mut host = Host::new();
    for _ in 0..2 {
        host.handle(Input::Start);
        host.reply(Reply::offer().without(1));
        host.reply(Reply::offer().without(1));
        assert_eq!(host.events().len(), 1);
        assert_eq!(host.client.counters().refused, 2);
        assert_eq!(host.client.counters().discovers, 1);
        assert_eq!(
            host.client.status(),
            "refused the OFFER from 192.0.2.1: no subnet mask (option 1)"
        );
        host.handle(Input::Stop);
    }
}

#[test]
fn consecutive_naks_delay_the_next_search() {
    let mut host = Host::new();
    host.handle(Input::Start);
    let mut starts = Vec::new();
    for server in 1..=6 {
        // The client avoids the server of the last NAK.
        let server = Ipv4Addr::new(192, 0, 2, server);
        starts.push((host.now - EPOCH).as_secs_f64());
        host.reply(Reply::offer_of(server));
        host.handle(Input::Select);
        host.reply(Reply::nak_of(server).with(56, *b"go\naway"));
        let reason = RequestFailure::Nak {
            message: Some("go\\x0aaway".to_owned().into()),
        };
        assert!(
            host.events()
                .contains(&Event::RequestFailed { server, reason })
        );
        let discovers = host.times(MessageKind::Discover).len();
        while host.times(MessageKind::Discover).len() == discovers && host.state() == State::Init {
            let deadline = host.client.deadline().expect("waits");
            host.run_until((deadline - EPOCH).as_secs_f64());
        }
    }
    assert_eq!(gaps(&starts), [0.0, 1.0, 2.0, 4.0, 8.0]);
}
