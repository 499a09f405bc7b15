//! Several servers: alternatives, those that do not keep their word, those that
//! the configuration rules out.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{Config, Event, Failure, Input, MessageKind, Refusal, State};

use crate::host::{EPOCH, Host, MAC, near};
use crate::server_reply::{ADDRESS, Reply, SECOND, SERVER};

#[test]
fn the_next_offer_is_taken_when_the_first_server_does_not_answer() {
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
                why: Failure::Unanswered { requests: 2 }
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
fn a_server_that_did_not_answer_is_shunned_but_better_than_none() {
    let mut host = Host::in_state(State::Requesting);
    host.run_until(4.0);
    let failed_at = *host
        .times(MessageKind::Discover)
        .first()
        .expect("looks for others");
    host.reply(Reply::offer());
    host.reply(Reply::offer());
    let events = host.events();
    let why = Refusal::Shunned(SERVER);
    let refused = Event::Refused {
        kind: MessageKind::Offer,
        server: Some(SERVER),
        why,
    };
    assert_eq!(
        events.iter().filter(|event| **event == refused).count(),
        1,
        "told once"
    );
    assert_eq!(host.client.counters().refused, 2);

    host.run_until(failed_at + 10.1);
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
        "more patience the second time"
    );
}

#[test]
fn a_shunned_server_comes_last_for_a_minute() {
    let mut host = Host::in_state(State::Requesting);
    host.run_until(4.0);
    host.run_until(20.0);
    host.reply(Reply::offer_of(SECOND));
    host.events();
    host.reply(Reply::offer());
    let why = Refusal::Shunned(SERVER);
    assert_eq!(
        host.events(),
        [Event::Refused {
            kind: MessageKind::Offer,
            server: Some(SERVER),
            why
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
fn several_servers_are_shunned_at_once() {
    let mut host = Host::in_state(State::Selecting);
    host.reply(Reply::offer_of(SECOND));
    host.handle(Input::Select);
    host.run_until(4.0);
    host.handle(Input::Select);
    host.run_until(8.0);
    host.events();
    host.reply(Reply::offer());
    host.reply(Reply::offer_of(SECOND));
    assert!(host.client.offer().is_none());
    assert_eq!(host.events().len(), 2);
}

#[test]
fn a_lease_makes_up_for_the_servers_silence() {
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
        "no more patience than for others"
    );
}

#[test]
fn the_configuration_decides_who_may_serve() {
    let mut config = Config::new(MAC);
    config.allowed_servers = vec![SECOND];
    config.denied_networks = vec!["192.0.2.128/25".parse().unwrap()];
    let mut host = Host::with(config, 42);
    host.handle(Input::Start);
    host.reply(Reply::offer());
    let rogue = Ipv4Addr::new(192, 0, 2, 200);
    host.reply(Reply::offer_of(SECOND).address(rogue));
    let refused = |server, why| Event::Refused {
        kind: MessageKind::Offer,
        server: Some(server),
        why,
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
        "a server not allowed has no say either"
    );
    host.reply(Reply::nak_of(SECOND));
    assert_eq!(host.state(), State::Selecting);
}

#[test]
fn a_flood_of_servers_is_bounded() {
    let mut host = Host::new();
    host.handle(Input::Start);
    for last in 1..=50 {
        host.reply(Reply::offer_of(Ipv4Addr::new(192, 0, 2, 100 + last)));
    }
    let offered = |event: &&Event| matches!(event, Event::Offered { .. });
    assert_eq!(host.events().iter().filter(offered).count(), 8);
}

#[test]
fn alternatives_are_collected_while_requesting() {
    let mut host = Host::in_state(State::Requesting);
    host.reply(Reply::offer_of(SECOND));
    assert_eq!(host.state(), State::Requesting);
    host.reply(Reply::nak());
    assert_eq!(host.state(), State::Selecting);
    assert_eq!(host.client.offer().map(|offer| offer.server), Some(SECOND));
}

#[test]
fn a_flood_of_bad_offers_is_counted_and_its_beginning_told() {
    let mut host = Host::new();
    host.handle(Input::Start);
    for number in 0..1000u32 {
        // Invented servers, as an attacker has them, and no lease time.
        let server = Ipv4Addr::from(0xc633_6401 + number);
        host.reply(Reply::offer_of(server).with(51, [0; 4]));
    }
    assert_eq!(host.client.counters().refused, 1000);
    assert_eq!(host.events().len(), 64);
    host.reply(Reply::offer());
    assert!(matches!(host.events()[..], [Event::Offered { .. }]));
}
