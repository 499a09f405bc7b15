//! Tests conflicts with other hosts over an address (RFC 5227; RFC 2131, section 3.1,
//! step 5).

use std::net::Ipv4Addr;

use buildos_dhcp::{Event, Input, LeaseLoss, MessageKind, Refusal, RequestFailure, State};
use buildos_types::MacAddress;

use crate::host::{EPOCH, Host};
use crate::server_reply::{ADDRESS, Reply, SECOND, SERVER};

/// Asserts that the only event reports the conflict as the state before requires.
fn assert_conflict_event(host: &mut Host, state: State) {
    let [event] = &host.events()[..] else {
        panic!("one event")
    };
    let is_expected = match event {
        Event::Refused { reason, .. } => {
            state == State::Selecting && matches!(reason, Refusal::InUse { .. })
        }
        Event::RequestFailed { reason, .. } => {
            state == State::Requesting && matches!(reason, RequestFailure::Conflict { .. })
        }
        Event::Lost { reason, .. } => {
            let mac = MacAddress([2; 6]);
            state.has_lease() && *reason == LeaseLoss::Conflict { mac }
        }
        Event::Offered { .. } | Event::Bound(_) | Event::Renewed(_) | Event::Unconfirmed(_) => {
            false
        }
    };
    assert!(is_expected, "{state}: {event:?}");
}

#[test]
fn conflict_is_declined_and_delays_the_next_search_by_ten_seconds() {
    for state in [
        State::Selecting,
        State::Requesting,
        State::Bound,
        State::Rebooting,
    ] {
        let mut host = Host::in_state(state);
        host.handle(Input::Conflict {
            address: Ipv4Addr::new(192, 0, 2, 5),
            mac: MacAddress([2; 6]),
        });
        assert_eq!(host.state(), state, "conflict over another address");
        host.handle(Input::Conflict {
            address: ADDRESS,
            mac: MacAddress([2; 6]),
        });
        let began = (host.now - EPOCH).as_secs_f64();
        assert_eq!(host.state(), State::Init);
        let decline = host.last();
        assert_eq!(decline.transmit.kind, MessageKind::Decline);
        assert_eq!(decline.transmit.destination, Ipv4Addr::BROADCAST);
        assert_eq!(
            (decline.address(50), decline.address(54)),
            (Some(ADDRESS), Some(SERVER))
        );
        assert_eq!(decline.ciaddr, Ipv4Addr::UNSPECIFIED);
        assert_conflict_event(&mut host, state);
        // Neither time nor carrier changes shorten the delay.
        host.run_until(began + 5.0);
        host.handle(Input::Start);
        host.handle(Input::Stop);
        host.handle(Input::Suspend);
        host.handle(Input::Start);
        assert_eq!(host.state(), State::Init);
        host.run_until(began + 9.999);
        assert_eq!(host.state(), State::Init);
        host.run_until(began + 10.0);
        assert_eq!(host.state(), State::Selecting);
        assert_eq!(
            host.last().address(50),
            None,
            "does not request the address again"
        );
    }
}

#[test]
fn conflict_over_one_offer_keeps_other_offers() {
    let other = Ipv4Addr::new(192, 0, 2, 99);
    let mut host = Host::in_state(State::Selecting);
    host.reply(Reply::offer_of(SECOND).address(other));
    host.handle(Input::Conflict {
        address: ADDRESS,
        mac: MacAddress([2; 6]),
    });
    assert_eq!(host.state(), State::Selecting);
    assert_eq!(host.client.offer().map(|offer| offer.address), Some(other));
}

#[test]
fn conflict_is_declined_to_every_server_offering_the_address() {
    for state in [State::Selecting, State::Requesting] {
        let mut host = Host::in_state(state);
        host.reply(Reply::offer_of(SECOND));
        host.handle(Input::Conflict {
            address: ADDRESS,
            mac: MacAddress([2; 6]),
        });
        assert_eq!(host.state(), State::Init, "both offered the same address");
        assert_eq!(host.times(MessageKind::Decline).len(), 2);
        assert!(host.client.offer().is_none());
    }
}

#[test]
fn dropped_offer_is_not_declined() {
    let other = Ipv4Addr::new(192, 0, 2, 99);
    let mut host = Host::in_state(State::Selecting);
    host.reply(Reply::offer_of(SECOND).address(other));
    host.handle(Input::Select);
    host.reply(Reply::ack());
    host.sent.clear();
    host.handle(Input::Conflict {
        address: other,
        mac: MacAddress([2; 6]),
    });
    assert_eq!(host.state(), State::Bound);
    assert!(host.sent.is_empty());
}

#[test]
fn conflict_does_not_count_as_a_server_failure() {
    let mut host = Host::in_state(State::Requesting);
    host.handle(Input::Conflict {
        address: ADDRESS,
        mac: MacAddress([2; 6]),
    });
    host.run_until(10.0);
    host.reply(Reply::offer_of(SECOND));
    host.events();
    let address = Ipv4Addr::new(192, 0, 2, 78);
    host.reply(Reply::offer().address(address));
    assert_eq!(
        host.events(),
        [Event::Offered {
            server: SERVER,
            address
        }]
    );
}

#[test]
fn stopped_client_declines_nothing() {
    let inputs: [fn() -> Input<'static>; 3] =
        [|| Input::Stop, || Input::Suspend, || Input::Release];
    for input in inputs {
        let mut host = Host::in_state(State::Selecting);
        host.handle(input());
        host.handle(Input::Conflict {
            address: ADDRESS,
            mac: MacAddress([2; 6]),
        });
        assert!(host.sent.is_empty());
    }
}

/// Takes the next lease, and reports a conflict over its address.
fn bind_in_conflict(host: &mut Host) {
    host.run_until((host.now - EPOCH).as_secs_f64() + 90.0);
    host.reply(Reply::offer());
    host.handle(Input::Select);
    host.reply(Reply::ack());
    host.sent.clear();
    host.handle(Input::Conflict {
        address: ADDRESS,
        mac: MacAddress([2; 6]),
    });
}

#[test]
fn third_address_in_a_row_is_used_despite_a_conflict() {
    let mut host = Host::new();
    host.handle(Input::Start);
    for delay in [10, 20] {
        bind_in_conflict(&mut host);
        assert_eq!(host.state(), State::Init);
        let until = host.client.deadline().expect("a delay");
        assert_eq!((until - host.now).as_secs(), delay);
    }
    bind_in_conflict(&mut host);
    assert_eq!(host.state(), State::Bound);
    assert!(host.sent.is_empty(), "no DECLINE");
    assert!(!host.client.may_decline(host.now));
    // A conflict long after the last one counts as the first.
    host.sleep_until((host.now - EPOCH).as_secs_f64() + 600.0);
    assert!(host.client.may_decline(host.now));
    host.handle(Input::Conflict {
        address: ADDRESS,
        mac: MacAddress([2; 6]),
    });
    let until = host.client.deadline().expect("a delay");
    assert_eq!((until - host.now).as_secs(), 10);
}
