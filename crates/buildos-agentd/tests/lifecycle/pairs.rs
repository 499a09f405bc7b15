//! Tests every pair of state and event through `Instance`, and random sequences of events.

use buildos_agentd::lifecycle::instance::{Drain, Event};
use buildos_agentd::lifecycle::table::Command;
use buildos_agentd::unit::phase::Phase;
use buildos_dbus_api::agent1::{InstanceState as S, Need};
use proptest::prelude::*;

use crate::life::*;

type Row = (&'static str, fn() -> Life, S, [(S, Option<Command>); 16]);
type Pair = (&'static str, fn(&mut Life) -> Option<Command>);

const EVENTS: [Pair; 16] = [
    ("seen down", |l| l.see(Phase::Down)),
    ("seen starting", |l| l.see(Phase::Starting)),
    ("seen running", |l| l.see(Phase::Running)),
    ("seen stopping", |l| l.see(Phase::Stopping)),
    ("seen ended", |l| l.see(Phase::Ended)),
    ("failed", |l| l.handle(Event::Failed("no".into()))),
    ("stopped by hand", |l| l.handle(Event::StoppedByHand)),
    ("started by hand", |l| l.handle(Event::StartedByHand)),
    ("needs met", |l| l.handle(met())),
    ("needs unmet", |l| l.handle(unmet(Need::Network))),
    ("due too early", |l| l.handle(Event::Due)),
    ("due", |l| {
        l.pass(BUDGET);
        l.handle(Event::Due)
    }),
    ("restart", |l| l.handle(Event::Restart)),
    ("drain", |l| l.handle(Event::Drain(BUDGET))),
    ("resume", |l| l.handle(Event::Resume)),
    ("idle", |l| l.handle(Event::Idle)),
];

#[test]
fn every_pair_of_state_and_event_has_expected_result() {
    const START: Option<Command> = Some(Command::Start);
    const RESTART: Option<Command> = Some(Command::Restart);
    const STOP: Option<Command> = Some(Command::Stop);
    const DRAIN: Option<Command> = Some(Command::Drain);
    const UNWATCH: Option<Command> = Some(Command::Unwatch);
    const NONE: Option<Command> = None;
    // One row per state, one column per event, in the order of EVENTS.
    #[rustfmt::skip]
    let table: [Row; 11] = [
        ("unknown", unknown, S::Waiting, [
            (S::Starting, START), (S::Starting, NONE), (S::Running, NONE), (S::Waiting, NONE), (S::Delayed, NONE),
            (S::Waiting, NONE), (S::Stopped, NONE), (S::Waiting, NONE),
            (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE),
            (S::Waiting, NONE), (S::Draining, NONE), (S::Waiting, NONE), (S::Waiting, NONE),
        ]),
        ("waiting", waiting, S::Waiting, [
            (S::Waiting, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Waiting, NONE), (S::Delayed, NONE),
            (S::Waiting, NONE), (S::Stopped, NONE), (S::Waiting, NONE),
            (S::Starting, START), (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE),
            (S::Waiting, NONE), (S::Drained, NONE), (S::Waiting, NONE), (S::Waiting, NONE),
        ]),
        ("starting", starting, S::Starting, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Starting, NONE), (S::Delayed, NONE),
            (S::Delayed, NONE), (S::Stopped, NONE), (S::Starting, NONE),
            (S::Starting, NONE), (S::Starting, NONE), (S::Starting, NONE), (S::Starting, NONE),
            (S::Starting, NONE), (S::Drained, STOP), (S::Starting, NONE), (S::Starting, NONE),
        ]),
        ("running", running, S::Running, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Running, NONE), (S::Delayed, NONE),
            (S::Running, NONE), (S::Stopped, NONE), (S::Running, NONE),
            (S::Running, NONE), (S::Running, NONE), (S::Running, NONE), (S::Running, NONE),
            (S::Starting, RESTART), (S::Draining, DRAIN), (S::Running, NONE), (S::Running, NONE),
        ]),
        ("delayed", delayed, S::Delayed, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Delayed, NONE), (S::Delayed, NONE),
            (S::Delayed, NONE), (S::Stopped, NONE), (S::Delayed, NONE),
            (S::Delayed, NONE), (S::Delayed, NONE), (S::Delayed, NONE), (S::Starting, START),
            (S::Starting, START), (S::Drained, STOP), (S::Delayed, NONE), (S::Delayed, NONE),
        ]),
        ("refused", refused, S::Delayed, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Delayed, NONE), (S::Delayed, NONE),
            (S::Delayed, NONE), (S::Stopped, NONE), (S::Delayed, NONE),
            (S::Delayed, NONE), (S::Delayed, NONE), (S::Delayed, NONE), (S::Starting, START),
            (S::Starting, START), (S::Drained, NONE), (S::Delayed, NONE), (S::Delayed, NONE),
        ]),
        ("ended and waiting", ended_and_waiting, S::Waiting, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Waiting, NONE), (S::Delayed, NONE),
            (S::Waiting, NONE), (S::Stopped, NONE), (S::Waiting, NONE),
            (S::Starting, START), (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE),
            (S::Waiting, NONE), (S::Drained, STOP), (S::Waiting, NONE), (S::Waiting, NONE),
        ]),
        ("stopped", stopped, S::Stopped, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Stopped, NONE), (S::Delayed, NONE),
            (S::Stopped, NONE), (S::Stopped, NONE), (S::Stopped, NONE),
            (S::Stopped, NONE), (S::Stopped, NONE), (S::Stopped, NONE), (S::Stopped, NONE),
            (S::Starting, START), (S::Stopped, NONE), (S::Stopped, NONE), (S::Stopped, NONE),
        ]),
        ("draining", draining, S::Draining, [
            (S::Drained, NONE), (S::Draining, NONE), (S::Draining, NONE), (S::Draining, NONE), (S::Drained, STOP),
            (S::Draining, NONE), (S::Drained, NONE), (S::Running, UNWATCH),
            (S::Draining, NONE), (S::Draining, NONE), (S::Draining, NONE), (S::Drained, STOP),
            (S::Starting, RESTART), (S::Draining, NONE), (S::Running, UNWATCH), (S::Drained, STOP),
        ]),
        ("stopping after drain", stopping_after_drain, S::Drained, [
            (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, STOP),
            (S::Draining, NONE), (S::Drained, NONE), (S::Running, UNWATCH),
            (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE),
            (S::Starting, RESTART), (S::Drained, NONE), (S::Starting, RESTART), (S::Drained, NONE),
        ]),
        ("drained", drained, S::Drained, [
            (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, STOP),
            (S::Drained, NONE), (S::Drained, NONE), (S::Starting, UNWATCH),
            (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE),
            (S::Starting, START), (S::Drained, NONE), (S::Starting, START), (S::Drained, NONE),
        ]),
    ];
    for (state, make, public, row) in table {
        assert_eq!(make().instance.state(), public, "{state}");
        for ((event, send), (after, command)) in EVENTS.into_iter().zip(row) {
            let mut life = make();
            let returned = send(&mut life);
            assert_eq!(
                (life.instance.state(), returned),
                (after, command),
                "{state}, {event}"
            );
        }
    }
}

/// Returns true if the command starts the unit.
fn starts(command: Option<Command>) -> bool {
    matches!(command, Some(Command::Start | Command::Restart))
}

proptest! {
    /// Applies random events, with restarts of agentd between them.
    #[test]
    fn unwanted_agent_is_never_started(events in proptest::collection::vec((0..EVENTS.len(), any::<bool>()), 0..40)) {
        let mut life = unknown();
        for (event, restarts) in events {
            if restarts {
                let mut remembered = life.instance.remember();
                life = life.restarted();
                // A deadline in the past becomes the current time.
                if let Some(Drain::Until(end)) = &mut remembered.drain {
                    *end = (*end).max(life.now.uptime);
                }
                prop_assert_eq!(life.instance.remember(), remembered);
            }
            let wanted = life.instance.wanted();
            let (name, send) = EVENTS[event];
            let command = send(&mut life);
            if starts(command) {
                prop_assert!(life.instance.wanted(), "{name}");
                let by_operator = ["restart", "resume"].contains(&name);
                prop_assert!(wanted || by_operator, "{name} starts an unwanted agent");
            }
            if command == Some(Command::Start) {
                prop_assert_eq!(life.instance.unmet(), []);
            }
            if !life.instance.wanted() {
                prop_assert_eq!(life.instance.next_start_usec(), 0);
            }
            let draining = life.instance.state() == S::Draining;
            prop_assert_eq!(life.instance.drain_deadline_usec() != 0, draining);
        }
    }
}
