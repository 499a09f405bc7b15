//! Tests renewal, rebinding, expiry, confirmation, resumption and release of a lease.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{Config, Event, Input, Lease, LeaseLoss, MessageKind, Refusal, State};

use crate::host::{EPOCH, Host, MAC, Sent, near};
use crate::server_reply::{ADDRESS, Reply, SECOND, SERVER};

fn bound(ack: Reply) -> Host {
    let mut host = Host::in_state(State::Requesting);
    host.reply(ack);
    assert_eq!(host.state(), State::Bound);
    host.sent.clear();
    host.events();
    host
}

/// Returns the causes of the losses since the last call.
fn losses(host: &mut Host) -> Vec<LeaseLoss> {
    let events = host.events().into_iter();
    events
        .filter_map(|event| match event {
            Event::Lost { reason, .. } => Some(reason),
            Event::Offered { .. }
            | Event::Refused { .. }
            | Event::RequestFailed { .. }
            | Event::Bound(_)
            | Event::Renewed(_)
            | Event::Unconfirmed(_) => None,
        })
        .collect()
}

#[test]
fn lease_is_renewed_at_half_and_rebound_at_seven_eighths() {
    let mut host = bound(Reply::ack());
    host.run_until(3599.9);
    let (renewals, rebindings): (Vec<_>, Vec<_>) = host
        .sent
        .iter()
        .partition(|(_, transmit)| transmit.destination == SERVER);
    let times = |sent: &[&(Duration, _)]| -> Vec<f64> {
        sent.iter().map(|(at, _)| at.as_secs_f64()).collect()
    };
    // Each delay is half of the remaining time, but at least a minute.
    assert_eq!(
        times(&renewals),
        [1800.0, 2475.0, 2812.5, 2981.25, 3065.625, 3125.625],
        "until T2 at 3150"
    );
    assert_eq!(times(&rebindings), [3150.0, 3375.0, 3487.5, 3547.5]);
    for (at, transmit) in &host.sent {
        let sent = Sent::new(transmit);
        assert_eq!(transmit.source, ADDRESS);
        assert_eq!((sent.address(50), sent.address(54)), (None, None));
        assert!(!sent.broadcast);
        let began = if *at < Duration::from_secs(3150) {
            1800
        } else {
            3150
        };
        assert_eq!(u64::from(sent.secs), at.as_secs() - began);
    }
    assert!(
        rebindings
            .iter()
            .all(|(_, sent)| sent.destination == Ipv4Addr::BROADCAST)
    );
    assert_eq!(host.state(), State::Rebinding);

    host.run_until(3600.0);
    assert_eq!(losses(&mut host), [LeaseLoss::Expired]);
    assert_eq!(host.state(), State::Selecting);
    assert_eq!(host.last().transmit.kind, MessageKind::Discover);
    assert_eq!(
        host.last().address(50),
        Some(ADDRESS),
        "requests the same address"
    );
}

#[test]
fn expired_address_is_requested_until_a_lease_or_a_nak() {
    let expired = || {
        let mut host = Host::in_state(State::Bound);
        host.sleep_until(3600.0);
        host.handle(Input::Timeout);
        assert_eq!(host.last().address(50), Some(ADDRESS));
        host.reply(Reply::offer());
        host.handle(Input::Select);
        host
    };
    let mut host = expired();
    host.reply(Reply::ack());
    host.handle(Input::Stop);
    host.handle(Input::Start);
    assert_eq!(host.last().address(50), None);

    let mut host = expired();
    host.reply(Reply::nak());
    assert_eq!(host.last().transmit.kind, MessageKind::Discover);
    assert_eq!(host.last().address(50), None);
}

#[test]
fn renewal_times_of_the_server_are_used_if_in_order() {
    for (t1, t2, expected) in [
        (600, 900, (600, 900)),
        (3599, 3600, (1800, 3150)),
        (900, 600, (1800, 3150)),
        (0, 900, (1800, 3150)),
        (900, 900, (1800, 3150)),
        (u32::MAX, u32::MAX, (1800, 3150)),
        (1, 2, (1, 2)),
    ] {
        let host = bound(
            Reply::ack()
                .with(58, u32::to_be_bytes(t1))
                .with(59, u32::to_be_bytes(t2)),
        );
        let term = host.lease().term.unwrap();
        assert_eq!(
            (term.renew.as_secs(), term.rebind.as_secs()),
            expected,
            "{t1} {t2}"
        );
    }
    let host = bound(Reply::ack().with(58, 600u32.to_be_bytes()));
    assert_eq!(
        host.client.deadline(),
        Some(EPOCH + Duration::from_secs(600))
    );
}

#[test]
fn short_lease_is_renewed_often_and_expires_on_time() {
    for seconds in 1..=120 {
        let mut host = bound(Reply::ack().lasting(seconds));
        let end = f64::from(seconds);
        host.run_until(end - 0.001);
        assert!(host.state().has_lease(), "{seconds}");
        let requests = host.times(MessageKind::Request);
        assert!(requests.len() >= 2, "{seconds}: {requests:?}");
        assert!(requests.len() <= 40, "{seconds}: {requests:?}");
        assert!(requests.iter().all(|at| *at >= end / 2.0 && *at < end));
        host.run_until(end);
        assert_eq!(losses(&mut host), [LeaseLoss::Expired], "{seconds}");
    }
}

#[test]
fn lease_time_counts_from_the_request() {
    let mut host = Host::in_state(State::Requesting);
    host.run_until(1.5);
    assert_eq!(host.times(MessageKind::Request).len(), 1, "sent again");
    host.reply(Reply::ack().lasting(10));
    assert_eq!(
        host.lease().expires_at(),
        Some(EPOCH + Duration::from_secs(10))
    );

    let mut host = Host::in_state(State::Selecting);
    host.run_until(7.0);
    host.handle(Input::Select);
    host.reply(Reply::ack());
    assert_eq!(
        host.lease().acquired,
        EPOCH + Duration::from_secs(7),
        "not from the DISCOVER"
    );

    let mut host = Host::in_state(State::Renewing);
    host.run_until(2475.0);
    host.sleep_until(2476.0);
    host.reply(Reply::ack());
    assert_eq!(host.lease().acquired, EPOCH + Duration::from_secs(2475));
}

#[test]
fn infinite_lease_is_renewed_only_on_command() {
    let mut host = bound(Reply::ack().lasting(u32::MAX).with(58, 60u32.to_be_bytes()));
    assert_eq!(host.client.deadline(), None);
    assert_eq!(host.lease().remaining(host.now), None);
    host.sleep_until(1e9);
    host.handle(Input::Timeout);
    assert_eq!(host.state(), State::Bound);
    host.handle(Input::Renew);
    assert_eq!(host.state(), State::Renewing);
    host.run_until(1e9 + 60.0);
    assert_eq!(host.times(MessageKind::Request).len(), 2);
    host.reply(Reply::ack());
    assert_eq!(host.state(), State::Bound);
}

#[test]
fn renewal_may_change_options_but_not_the_address() {
    let mut host = Host::in_state(State::Renewing);
    host.reply(Reply::ack().with(6, [192, 0, 2, 53]).lasting(7200));
    let lease = Box::new(host.lease().clone());
    assert_eq!(lease.dns, [Ipv4Addr::new(192, 0, 2, 53)]);
    assert_eq!(
        lease.expires_at(),
        Some(EPOCH + Duration::from_secs(1800 + 7200))
    );
    assert_eq!(host.events(), [Event::Renewed(lease)]);

    let mut host = Host::in_state(State::Renewing);
    let granted = Ipv4Addr::new(192, 0, 2, 99);
    host.reply(Reply::ack().address(granted));
    assert_eq!(host.state(), State::Renewing);
    let reason = Refusal::OtherAddress {
        requested: ADDRESS,
        granted,
    };
    assert_eq!(
        host.events(),
        [Event::Refused {
            kind: MessageKind::Ack,
            server: Some(SERVER),
            reason
        }]
    );
}

#[test]
fn rebinding_accepts_another_server() {
    let mut host = Host::in_state(State::Rebinding);
    host.reply(Reply::ack_of(SECOND));
    assert_eq!(host.lease().server, SECOND);
}

#[test]
fn answer_to_an_earlier_renewal_is_ignored() {
    let mut host = Host::in_state(State::Renewing);
    let first = host.xid;
    host.run_until(2475.0);
    let late = Reply::ack().xid(first).bytes();
    host.packet(&late);
    assert_eq!(host.state(), State::Renewing);
}

#[test]
fn nak_of_any_server_ends_the_lease_at_once() {
    for state in [State::Renewing, State::Rebinding, State::Rebooting] {
        for (nak, server) in [
            (Reply::nak(), Some(SERVER)),
            (Reply::nak_of(SECOND), Some(SECOND)),
            (Reply::nak().without(54), None),
        ] {
            let mut host = Host::in_state(state);
            host.reply(nak);
            assert_eq!(
                losses(&mut host),
                [LeaseLoss::Nak {
                    server,
                    message: None
                }],
                "{state}"
            );
            assert_eq!(host.last().transmit.kind, MessageKind::Discover);
            assert_eq!(host.last().address(50), None);
            assert_eq!(
                host.sent.last().unwrap().0,
                host.now - EPOCH,
                "without delay"
            );
        }
    }
}

#[test]
fn nak_without_a_request_is_ignored() {
    let mut host = Host::in_state(State::Bound);
    host.reply(Reply::nak());
    assert_eq!(host.state(), State::Bound);
}

#[test]
fn timeout_after_suspend_enters_state_for_elapsed_time() {
    for (at, state) in [
        (1799.0, State::Bound),
        (1801.0, State::Renewing),
        (3151.0, State::Rebinding),
        (3601.0, State::Selecting),
    ] {
        let mut host = Host::in_state(State::Bound);
        host.sleep_until(at);
        host.handle(Input::Timeout);
        assert_eq!(host.state(), state, "{at}");
    }
    // A message after the expiry does not extend the lease.
    let mut host = Host::in_state(State::Renewing);
    host.sleep_until(3600.0);
    host.reply(Reply::ack());
    assert_eq!(losses(&mut host), [LeaseLoss::Expired]);
    assert_eq!(host.state(), State::Selecting);
}

#[test]
fn clock_stepping_back_does_not_panic() {
    let mut host = Host::in_state(State::Renewing);
    for seconds in [0.0, 5000.0, 0.0] {
        host.sleep_until(seconds);
        host.handle(Input::Timeout);
        host.handle(Input::Start);
    }
    host.now = Duration::ZERO;
    host.handle(Input::Timeout);
    host.now = Duration::MAX;
    host.handle(Input::Timeout);
    assert!(host.client.deadline().is_some());
}

#[test]
fn renew_command_extends_the_lease_before_t1() {
    let mut host = Host::in_state(State::Bound);
    host.sleep_until(10.0);
    host.handle(Input::Renew);
    assert_eq!(host.state(), State::Renewing);
    assert_eq!(host.last().transmit.destination, SERVER);
    host.handle(Input::Renew);
    assert_eq!(host.sent.len(), 2);
    host.reply(Reply::ack());
    assert_eq!(host.lease().acquired, EPOCH + Duration::from_secs(10));
}

#[test]
fn lease_is_kept_without_carrier_and_confirmed_when_carrier_returns() {
    let mut host = Host::in_state(State::Bound);
    host.handle(Input::Suspend);
    host.run_until(100.0);
    assert!(host.sent.is_empty() && host.events().is_empty());
    assert_eq!(host.lease().address, ADDRESS);
    host.handle(Input::Start);
    assert_eq!(host.state(), State::Rebooting);
    let request = host.last();
    assert_eq!(request.transmit.kind, MessageKind::Request);
    assert_eq!(
        (request.address(50), request.address(54)),
        (Some(ADDRESS), None)
    );
    assert_eq!(request.ciaddr, Ipv4Addr::UNSPECIFIED);
    assert_eq!(request.transmit.destination, Ipv4Addr::BROADCAST);
    host.reply(Reply::ack_of(SECOND));
    assert_eq!(host.state(), State::Bound);
    assert_eq!(host.lease().acquired, EPOCH + Duration::from_secs(100));
    let lease = Box::new(host.lease().clone());
    assert_eq!(host.events(), [Event::Renewed(lease)]);
}

#[test]
fn confirmation_is_repeated_after_twenty_milliseconds() {
    let mut host = Host::in_state(State::Rebooting);
    host.run_until(5.0);
    let mut before = 0.0;
    let times = host.times(MessageKind::Request);
    for (time, expected) in times.into_iter().zip([0.02, 0.1, 0.4, 1.0, 2.0]) {
        assert!(near(time - before, expected), "{time} after {before}");
        before = time;
    }
    host.reply(Reply::ack());
    assert_eq!(host.state(), State::Bound);
}

#[test]
fn unconfirmed_lease_is_used_until_expiry() {
    let mut host = Host::in_state(State::Rebooting);
    host.run_until(13.0);
    assert_eq!(
        host.times(MessageKind::Request).len(),
        7,
        "in addition to the first"
    );
    let flags: Vec<_> = host
        .sent
        .iter()
        .map(|(_, sent)| Sent::new(sent).broadcast)
        .collect();
    assert_eq!(flags, [false, false, false, true, false, true, false]);
    let lease = Box::new(host.lease().clone());
    assert_eq!(host.events(), [Event::Unconfirmed(lease)]);
    assert_eq!(host.state(), State::Bound);
    assert!(host.client.status().contains("not confirmed"));
    host.run_until(1800.0);
    assert_eq!(host.state(), State::Renewing);
}

#[test]
fn lease_expires_while_unconfirmed() {
    let mut host = Host::in_state(State::InitReboot);
    host.run_until(3600.0);
    assert_eq!(losses(&mut host), [LeaseLoss::Expired]);
    assert_eq!(host.state(), State::Init);
    assert!(host.sent.is_empty(), "no carrier");

    let mut host = bound(Reply::ack().lasting(5));
    host.handle(Input::Suspend);
    host.handle(Input::Start);
    host.run_until(5.0);
    assert_eq!(losses(&mut host), [LeaseLoss::Expired]);
    assert_eq!(host.state(), State::Selecting);
}

#[test]
fn lease_expired_at_carrier_loss_is_lost_without_a_message() {
    let mut host = Host::in_state(State::Bound);
    host.sleep_until(3600.0);
    host.handle(Input::Suspend);
    host.handle(Input::Timeout);
    assert_eq!(losses(&mut host), [LeaseLoss::Expired]);
    assert!(host.sent.is_empty());
}

#[test]
fn saved_lease_is_confirmed_on_resume() {
    let saved = serde_json::to_string(Host::in_state(State::Bound).lease()).unwrap();
    let saved: Lease = serde_json::from_str(&saved).unwrap();
    let mut host = Host::new();
    host.sleep_until(60.0);
    host.handle(Input::Resume(Box::new(saved.clone())));
    assert_eq!(host.state(), State::Rebooting);
    assert_eq!(host.lease(), &saved, "unchanged times");
    assert_eq!(host.last().address(50), Some(ADDRESS));
    host.reply(Reply::ack());
    assert_eq!(host.state(), State::Bound);
}

#[test]
fn expired_saved_lease_is_requested_again() {
    let saved = Host::in_state(State::Bound).lease().clone();
    let mut host = Host::new();
    host.sleep_until(3600.0);
    host.handle(Input::Resume(Box::new(saved)));
    assert_eq!(losses(&mut host), [LeaseLoss::Expired]);
    assert_eq!(host.last().transmit.kind, MessageKind::Discover);
    assert_eq!(host.last().address(50), Some(ADDRESS));
}

#[test]
fn saved_lease_is_validated_again() {
    let good = Host::in_state(State::Bound).lease().clone();
    let future = Lease {
        acquired: EPOCH + Duration::from_secs(1),
        ..good.clone()
    };
    let loopback = Lease {
        address: Ipv4Addr::LOCALHOST,
        ..good.clone()
    };
    for (saved, reason) in [
        (future, Refusal::AcquiredInFuture),
        (loopback, Refusal::BadAddress(Ipv4Addr::LOCALHOST)),
    ] {
        let mut host = Host::new();
        host.handle(Input::Resume(Box::new(saved)));
        assert_eq!(losses(&mut host), [LeaseLoss::Unusable(reason)]);
        assert_eq!(host.state(), State::Selecting);
    }
    // Other fields are derived again from address, options and time.
    let mut host = Host::new();
    let altered = Lease {
        prefix: 0,
        server: Ipv4Addr::BROADCAST,
        term: None,
        ..good.clone()
    };
    host.handle(Input::Resume(Box::new(altered)));
    assert_eq!(host.lease(), &good);
}

#[test]
fn release_is_sent_to_the_server_unless_without_carrier() {
    for state in State::ALL.into_iter().filter(|state| state.has_lease()) {
        let mut host = Host::in_state(state);
        host.handle(Input::Release);
        assert_eq!(losses(&mut host), [LeaseLoss::Released]);
        assert_eq!(host.state(), State::Init);
        assert_eq!(host.client.deadline(), None);
        if state == State::InitReboot {
            assert!(host.sent.is_empty());
        } else {
            let release = host.last();
            assert_eq!(release.transmit.kind, MessageKind::Release);
            assert_eq!(release.transmit.destination, SERVER);
            assert_eq!(
                (release.ciaddr, release.address(54)),
                (ADDRESS, Some(SERVER))
            );
        }
    }
}

#[test]
fn jitter_moves_renewal_and_rebinding_to_earlier_times_by_up_to_a_tenth() {
    let times = |seed| {
        let config = Config {
            jitter: true,
            ..Config::new(MAC)
        };
        let mut host = Host::with(config, seed);
        host.handle(Input::Start);
        host.reply(Reply::offer());
        host.handle(Input::Select);
        host.reply(Reply::ack());
        let term = host.lease().term.unwrap();
        assert_eq!(term.lease.as_secs(), 3600);
        host.sent.clear();
        host.run_until(1800.0);
        assert_eq!(host.times(MessageKind::Request).len(), 1);
        (term.renew, term.rebind)
    };
    let times: Vec<_> = (1..200).map(times).collect();
    let seconds = Duration::from_secs;
    let (renew, rebind): (Vec<_>, Vec<_>) = times.into_iter().unzip();
    for (times, last, spread) in [(renew, 1800, 180), (rebind, 3150, 135)] {
        let (first, last) = (seconds(last - spread), seconds(last));
        let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        assert!(*least >= first && *most <= last, "{least:?} {most:?}");
        let seen = *most - *least;
        assert!(seen > seconds(spread) * 9 / 10, "{seen:?}");
    }
}
