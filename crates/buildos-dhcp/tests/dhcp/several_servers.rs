//! Tests the choice among several servers: alternatives, servers that failed before, and
//! servers that the configuration denies.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{Config, Event, Input, MessageKind, Refusal, RequestFailure, State};

use crate::host::{EPOCH, Host, MAC, near};
use crate::server_reply::{ADDRESS, Reply, SECOND, SERVER};

#[test]
fn next_offer_is_announced_after_the_first_server_does_not_answer() {
    let mut host = Host::in_state(State::Selecting);
    host.reply(Reply::offer_of(SECOND));
    assert_eq!(
        host.events(),
        [Event::Offered {
            server: SECOND,
            address: ADDRESS
        }]
    );
    host.handle(Input::Select);
    host.run_until(3.4);
    let requests = host.times(MessageKind::Request);
    assert_eq!(requests.len(), 2);
    assert!(near(requests[1], 1.0));
    assert_eq!(
        host.events(),
        [
            Event::RequestFailed {
                server: SERVER,
                reason: RequestFailure::Unanswered { requests: 2 }
            },
            Event::Offered {
                server: SECOND,
                address: ADDRESS
            },
        ]
    );
    host.handle(Input::Select);
    assert_eq!(host.last().address(54), Some(SECOND));
    host.reply(Reply::ack_of(SECOND));
    assert_eq!(host.state(), State::Bound);
    assert!(host.now - EPOCH < Duration::from_secs(5));
}

#[test]
fn failed_server_is_refused_until_no_other_server_answers() {
    let mut host = Host::in_state(State::Requesting);
    host.run_until(4.0);
    let failed_at = *host
        .times(MessageKind::Discover)
        .first()
        .expect("a new search");
    host.reply(Reply::offer());
    host.reply(Reply::offer());
    let events = host.events();
    let reason = Refusal::RecentFailure(SERVER);
    let refused = Event::Refused {
        kind: MessageKind::Offer,
        server: Some(SERVER),
        reason,
    };
    assert_eq!(
        events.iter().filter(|event| **event == refused).count(),
        1,
        "one event"
    );
    assert_eq!(host.client.counters().refused, 2);

    host.run_until(failed_at + 5.1);
    host.reply(Reply::offer());
    assert_eq!(
        host.events(),
        [Event::Offered {
            server: SERVER,
            address: ADDRESS
        }]
    );
    host.sent.clear();
    host.handle(Input::Select);
    host.run_until(60.0);
    assert_eq!(
        host.times(MessageKind::Request).len(),
        4,
        "twice as many REQUESTs the second time"
    );
}

#[test]
fn failed_server_is_refused_beside_others_for_a_minute() {
    let mut host = Host::in_state(State::Requesting);
    host.run_until(4.0);
    host.run_until(20.0);
    host.reply(Reply::offer_of(SECOND));
    host.events();
    host.reply(Reply::offer());
    let reason = Refusal::RecentFailure(SERVER);
    assert_eq!(
        host.events(),
        [Event::Refused {
            kind: MessageKind::Offer,
            server: Some(SERVER),
            reason
        }]
    );
    host.sleep_until(64.0);
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
fn several_failed_servers_are_refused() {
    let mut host = Host::in_state(State::Selecting);
    host.reply(Reply::offer_of(SECOND));
    host.handle(Input::Select);
    host.run_until(4.0);
    host.handle(Input::Select);
    host.run_until(7.4);
    host.events();
    host.reply(Reply::offer());
    host.reply(Reply::offer_of(SECOND));
    assert!(host.client.offer().is_none());
    assert_eq!(host.events().len(), 2);
}

#[test]
fn lease_clears_failure_of_server() {
    let mut host = Host::in_state(State::Requesting);
    host.run_until(15.0);
    host.reply(Reply::offer());
    host.handle(Input::Select);
    host.reply(Reply::ack());
    host.handle(Input::Stop);
    host.handle(Input::Start);
    host.sent.clear();
    host.reply(Reply::offer());
    host.handle(Input::Select);
    host.run_until(30.0);
    assert_eq!(
        host.times(MessageKind::Request).len(),
        2,
        "as many REQUESTs as to other servers"
    );
}

#[test]
fn configuration_denies_servers_and_networks() {
    let mut config = Config::new(MAC);
    config.allowed_servers = vec![SECOND];
    config.denied_networks = vec!["192.0.2.128/25".parse().unwrap()];
    let mut host = Host::with(config, 42);
    host.handle(Input::Start);
    host.reply(Reply::offer());
    let rogue = Ipv4Addr::new(192, 0, 2, 200);
    host.reply(Reply::offer_of(SECOND).address(rogue));
    let refused = |server, reason| Event::Refused {
        kind: MessageKind::Offer,
        server: Some(server),
        reason,
    };
    assert_eq!(
        host.events(),
        [
            refused(SERVER, Refusal::ServerNotAllowed(SERVER)),
            refused(SECOND, Refusal::NetworkDenied(rogue)),
        ]
    );
    host.reply(Reply::offer_of(SECOND));
    host.handle(Input::Select);
    host.reply(Reply::ack_of(SECOND));
    host.run_until(1800.0);
    assert_eq!(host.state(), State::Renewing);
    host.reply(Reply::nak());
    assert_eq!(
        host.state(),
        State::Renewing,
        "ignores the NAK of a denied server"
    );
    host.reply(Reply::nak_of(SECOND));
    assert_eq!(host.state(), State::Selecting);
}

#[test]
fn flood_of_servers_fills_eight_offers() {
    let mut host = Host::new();
    host.handle(Input::Start);
    for last in 1..=50 {
        host.reply(Reply::offer_of(Ipv4Addr::new(192, 0, 2, 100 + last)));
    }
    let offered = |event: &&Event| matches!(event, Event::Offered { .. });
    assert_eq!(host.events().iter().filter(offered).count(), 8);
}

#[test]
fn offer_with_default_route_and_name_server_is_requested_before_earlier_offers() {
    const THIRD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 4);
    let mut host = Host::new();
    host.handle(Input::Start);
    host.reply(Reply::offer_of(SERVER).without(3));
    host.reply(Reply::offer_of(SECOND).with(6, [192, 0, 2, 1]));
    host.reply(Reply::offer_of(THIRD));
    assert_eq!(host.client.offer().map(|offer| offer.server), Some(SECOND));
}

#[test]
fn offers_are_collected_while_requesting() {
    let mut host = Host::in_state(State::Requesting);
    host.reply(Reply::offer_of(SECOND));
    assert_eq!(host.state(), State::Requesting);
    host.reply(Reply::nak());
    assert_eq!(host.state(), State::Selecting);
    assert_eq!(host.client.offer().map(|offer| offer.server), Some(SECOND));
}

#[test]
fn flood_of_invalid_offers_is_counted_and_reported_up_to_a_limit() {
    let mut host = Host::new();
    host.handle(Input::Start);
    for number in 0..1000u32 {
        // An attacker's invented servers, with a lease time of zero.
        let server = Ipv4Addr::from(0xc633_6401 + number);
        host.reply(Reply::offer_of(server).with(51, [0; 4]));
    }
    assert_eq!(host.client.counters().refused, 1000);
    assert_eq!(host.events().len(), 64);
    host.reply(Reply::offer());
    assert!(matches!(host.events()[..], [Event::Offered { .. }]));
}

#[test]
fn server_is_accepted_at_once_after_its_first_nak() {
    let mut host = Host::in_state(State::Requesting);
    host.reply(Reply::nak());
    host.reply(Reply::offer());
    host.handle(Input::Select);
    host.reply(Reply::ack());
    assert_eq!(host.state(), State::Bound);
    assert_eq!(host.now, EPOCH, "no time has passed");
}

#[test]
fn server_that_sends_naks_is_refused_beside_others_after_the_second() {
    let mut host = Host::in_state(State::Requesting);
    host.reply(Reply::nak());
    host.reply(Reply::offer());
    host.handle(Input::Select);
    host.reply(Reply::nak());
    host.run_until(2.0);
    host.reply(Reply::offer());
    assert!(host.client.offer().is_none());
    host.reply(Reply::offer_of(SECOND));
    assert_eq!(host.client.offer().map(|offer| offer.server), Some(SECOND));
}

#[test]
fn status_names_the_refused_offer_and_its_defect() {
    let mut host = Host::new();
    host.handle(Input::Start);
    assert_eq!(host.client.status(), "1 DISCOVER unanswered");
    host.reply(Reply::offer().without(51));
    assert_eq!(
        host.client.status(),
        "refused the OFFER from 192.0.2.1: no lease time (option 51)"
    );
    host.reply(Reply::offer());
    assert_eq!(
        host.client.status(),
        "holds an OFFER of 192.0.2.77 from 192.0.2.1"
    );
}
