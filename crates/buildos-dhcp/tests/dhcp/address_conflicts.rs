//! Addresses that somebody else uses (RFC 5227, RFC 2131 section 3.1, step 5).

use std::net::Ipv4Addr;

use buildos_dhcp::{Event, Failure, Input, Loss, MessageKind, Refusal, State};

use crate::host::{EPOCH, Host};
use crate::server_reply::{ADDRESS, Reply, SECOND, SERVER};

#[test]
fn a_conflict_is_declined_and_followed_by_ten_seconds_of_rest() {
    for state in [
        State::Selecting,
        State::Requesting,
        State::Bound,
        State::Rebooting,
    ] {
        let mut host = Host::in_state(state);
        host.handle(Input::Conflict {
            address: Ipv4Addr::new(192, 0, 2, 5),
            mac: [2; 6],
        });
        assert_eq!(host.state(), state, "somebody else's address");
        host.handle(Input::Conflict {
            address: ADDRESS,
            mac: [2; 6],
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
        let [event] = &host.events()[..] else {
            panic!("one event")
        };
        match (state, event) {
            (
                State::Selecting,
                Event::Refused {
                    why: Refusal::InUse { .. },
                    ..
                },
            )
            | (
                State::Requesting,
                Event::RequestFailed {
                    why: Failure::Conflict { .. },
                    ..
                },
            )
            | (
                _,
                Event::Lost {
                    why:
                        Loss::Conflict {
                            mac: [2, 2, 2, 2, 2, 2],
                        },
                    ..
                },
            ) => {}
            _ => panic!("{state}: {event:?}"),
        }
        // Neither patience nor a carrier that flaps shortens the rest.
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
        assert_eq!(host.last().address(50), None, "not that address again");
    }
}

#[test]
fn a_conflict_over_one_offer_leaves_the_others() {
    let other = Ipv4Addr::new(192, 0, 2, 99);
    let mut host = Host::in_state(State::Selecting);
    host.reply(Reply::offer_of(SECOND).address(other));
    host.handle(Input::Conflict {
        address: ADDRESS,
        mac: [2; 6],
    });
    assert_eq!(host.state(), State::Selecting);
    assert_eq!(host.client.offer().map(|offer| offer.address), Some(other));
}

#[test]
fn servers_that_share_their_leases_are_all_told() {
    for state in [State::Selecting, State::Requesting] {
        let mut host = Host::in_state(state);
        host.reply(Reply::offer_of(SECOND));
        host.handle(Input::Conflict {
            address: ADDRESS,
            mac: [2; 6],
        });
        assert_eq!(host.state(), State::Init, "both offered the same address");
        assert_eq!(host.times(MessageKind::Decline).len(), 2);
        assert!(host.client.offer().is_none());
    }
}

#[test]
fn an_offer_forgotten_is_not_declined() {
    let other = Ipv4Addr::new(192, 0, 2, 99);
    let mut host = Host::in_state(State::Selecting);
    host.reply(Reply::offer_of(SECOND).address(other));
    host.handle(Input::Select);
    host.reply(Reply::ack());
    host.sent.clear();
    host.handle(Input::Conflict {
        address: other,
        mac: [2; 6],
    });
    assert_eq!(host.state(), State::Bound);
    assert!(host.sent.is_empty());
}

#[test]
fn a_server_is_not_to_blame_for_a_conflict() {
    let mut host = Host::in_state(State::Requesting);
    host.handle(Input::Conflict {
        address: ADDRESS,
        mac: [2; 6],
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
fn a_client_that_left_the_race_declines_nothing() {
    let inputs: [fn() -> Input<'static>; 3] =
        [|| Input::Stop, || Input::Suspend, || Input::Release];
    for input in inputs {
        let mut host = Host::in_state(State::Selecting);
        host.handle(input());
        host.handle(Input::Conflict {
            address: ADDRESS,
            mac: [2; 6],
        });
        assert!(host.sent.is_empty());
    }
}

#[test]
fn conflicts_in_a_row_are_limited_to_one_a_minute() {
    let mut host = Host::new();
    host.handle(Input::Start);
    let mut declined = Vec::new();
    for _ in 0..8 {
        host.run_until((host.now - EPOCH).as_secs_f64() + 90.0);
        host.reply(Reply::offer());
        host.handle(Input::Select);
        host.reply(Reply::ack());
        host.sent.clear();
        host.handle(Input::Conflict {
            address: ADDRESS,
            mac: [2; 6],
        });
        let rest = host.client.deadline().expect("a wait") - host.now;
        declined.push(rest.as_secs());
    }
    assert_eq!(declined, [10, 20, 40, 60, 60, 60, 60, 60]);
    // A conflict long after the last one is the first again.
    host.run_until((host.now - EPOCH).as_secs_f64() + 1000.0);
    host.reply(Reply::offer());
    host.handle(Input::Select);
    host.handle(Input::Conflict {
        address: ADDRESS,
        mac: [2; 6],
    });
    assert_eq!(
        host.client.deadline().expect("a wait") - host.now,
        std::time::Duration::from_secs(10)
    );
}
