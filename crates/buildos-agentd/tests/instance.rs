//! Every pair of state and event of the machine in `instance.rs`.

#![allow(clippy::unwrap_used)] // A test says what it expects by panicking.

use std::time::{Duration, Instant};

use buildos_agentd::delay::{self, HEALTHY};
use buildos_agentd::exit::Exit;
use buildos_agentd::instance::{Command, Event, Instance, Now};
use buildos_agentd::needs::{Need, Unmet};
use buildos_agentd::unit::{Phase, Unit};
use buildos_dbus_api::agent1::InstanceState as S;

/// An instance with a clock that the test turns.
struct Life {
    instance: Instance,
    now: Now,
    stamp: u64,
}

impl Life {
    fn new(launched: bool) -> Self {
        let now = Now {
            instant: Instant::now(),
            realtime_usec: 1_000_000,
        };
        Self {
            instance: Instance::new(launched, Vec::new(), now),
            now,
            stamp: 0,
        }
    }

    fn tell(&mut self, event: Event) -> Option<Command> {
        self.instance.handle(event, self.now, u32::MAX)
    }

    /// The unit has come into another phase.
    fn see(&mut self, phase: Phase) -> Option<Command> {
        self.stamp += 1;
        self.look(phase)
    }

    /// The unit is looked at and has not changed.
    fn look(&mut self, phase: Phase) -> Option<Command> {
        let unit = Unit {
            phase,
            changed_usec: self.stamp,
            changed_realtime_usec: self.now.realtime_usec,
            main_pid: 7,
            exit: Exit::new(1, 1, "exit-code").filter(|_| phase == Phase::Ended),
            restarts: 0,
        };
        self.tell(Event::Seen(unit))
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.realtime_usec += u64::try_from(time.as_micros()).unwrap();
    }

    fn passed(mut self, time: Duration) -> Self {
        self.pass(time);
        self
    }
}

fn unmet(need: Need) -> Event {
    let what = "something is missing".to_owned();
    Event::Needs(vec![Unmet { need, what }])
}

fn met() -> Event {
    Event::Needs(Vec::new())
}

/// Nothing is known yet, and nothing is missing.
fn unknown() -> Life {
    Life::new(false)
}

fn waiting() -> Life {
    let mut life = Life::new(false);
    life.tell(unmet(Need::Network));
    life.look(Phase::Down);
    life
}

fn starting() -> Life {
    let mut life = unknown();
    assert_eq!(life.look(Phase::Down), Some(Command::Start));
    life
}

fn running() -> Life {
    let mut life = starting();
    life.see(Phase::Starting);
    life.see(Phase::Running);
    life
}

/// It ended by itself.
fn delayed() -> Life {
    let mut life = running();
    life.see(Phase::Ended);
    life
}

/// It could not be started at all.
fn refused() -> Life {
    let mut life = starting();
    life.tell(Event::Failed("bad unit file".into()));
    life
}

/// It ended by itself, the time is up, and something is missing.
fn ended_and_waiting() -> Life {
    let mut life = delayed();
    life.tell(unmet(Need::Network));
    life.pass(delay::FIRST);
    life.tell(Event::Due);
    life
}

fn stopped() -> Life {
    let mut life = running();
    life.see(Phase::Down);
    life
}

type Row = (&'static str, fn() -> Life, S, [(S, Option<Command>); 12]);
type Pair = (&'static str, fn(&mut Life) -> Option<Command>);

const EVENTS: [Pair; 12] = [
    ("seen down", |l| l.see(Phase::Down)),
    ("seen starting", |l| l.see(Phase::Starting)),
    ("seen running", |l| l.see(Phase::Running)),
    ("seen stopping", |l| l.see(Phase::Stopping)),
    ("seen ended", |l| l.see(Phase::Ended)),
    ("failed", |l| l.tell(Event::Failed("no".into()))),
    ("stopped by hand", |l| l.tell(Event::StoppedByHand)),
    ("needs met", |l| l.tell(met())),
    ("needs unmet", |l| l.tell(unmet(Need::Network))),
    ("due too early", |l| l.tell(Event::Due)),
    ("due", |l| {
        l.pass(delay::LONGEST);
        l.tell(Event::Due)
    }),
    ("restart", |l| l.tell(Event::Restart)),
];

#[test]
fn every_pair_of_state_and_event() {
    const START: Option<Command> = Some(Command::Start);
    const RESTART: Option<Command> = Some(Command::Restart);
    const NONE: Option<Command> = None;
    // One row per state, one column per event, in the order of EVENTS.
    #[rustfmt::skip]
    let table: [Row; 8] = [
        ("unknown", unknown, S::Waiting, [
            (S::Starting, START), (S::Starting, NONE), (S::Running, NONE), (S::Waiting, NONE), (S::Delayed, NONE),
            (S::Waiting, NONE), (S::Stopped, NONE),
            (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE),
        ]),
        ("waiting", waiting, S::Waiting, [
            (S::Waiting, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Waiting, NONE), (S::Delayed, NONE),
            (S::Waiting, NONE), (S::Stopped, NONE),
            (S::Starting, START), (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE),
        ]),
        ("starting", starting, S::Starting, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Starting, NONE), (S::Delayed, NONE),
            (S::Delayed, NONE), (S::Stopped, NONE),
            (S::Starting, NONE), (S::Starting, NONE), (S::Starting, NONE), (S::Starting, NONE), (S::Starting, NONE),
        ]),
        ("running", running, S::Running, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Running, NONE), (S::Delayed, NONE),
            (S::Running, NONE), (S::Stopped, NONE),
            (S::Running, NONE), (S::Running, NONE), (S::Running, NONE), (S::Running, NONE), (S::Starting, RESTART),
        ]),
        ("delayed", delayed, S::Delayed, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Delayed, NONE), (S::Delayed, NONE),
            (S::Delayed, NONE), (S::Stopped, NONE),
            (S::Delayed, NONE), (S::Delayed, NONE), (S::Delayed, NONE), (S::Starting, START), (S::Starting, START),
        ]),
        ("refused", refused, S::Delayed, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Delayed, NONE), (S::Delayed, NONE),
            (S::Delayed, NONE), (S::Stopped, NONE),
            (S::Delayed, NONE), (S::Delayed, NONE), (S::Delayed, NONE), (S::Starting, START), (S::Starting, START),
        ]),
        ("ended and waiting", ended_and_waiting, S::Waiting, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Waiting, NONE), (S::Delayed, NONE),
            (S::Waiting, NONE), (S::Stopped, NONE),
            (S::Starting, START), (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE), (S::Waiting, NONE),
        ]),
        ("stopped", stopped, S::Stopped, [
            (S::Stopped, NONE), (S::Starting, NONE), (S::Running, NONE), (S::Stopped, NONE), (S::Delayed, NONE),
            (S::Stopped, NONE), (S::Stopped, NONE),
            (S::Stopped, NONE), (S::Stopped, NONE), (S::Stopped, NONE), (S::Stopped, NONE), (S::Starting, START),
        ]),
    ];
    for (state, make, word, row) in table {
        assert_eq!(make().instance.state(), word, "{state}");
        for ((event, tell), (after, command)) in EVENTS.into_iter().zip(row) {
            let mut life = make();
            let told = tell(&mut life);
            assert_eq!(
                (life.instance.state(), told),
                (after, command),
                "{state}, {event}"
            );
        }
    }
}

#[test]
fn a_unit_that_was_up_and_is_down_was_stopped_while_agentd_was_away() {
    let mut life = Life::new(true);
    assert_eq!(life.look(Phase::Down), None);
    assert_eq!(life.instance.state(), S::Stopped);
    assert!(life.instance.launched());
    assert_eq!(life.tell(Event::Restart), Some(Command::Start));
}

#[test]
fn an_agent_that_is_put_back_while_it_is_stopped_starts_again() {
    let mut life = unknown();
    life.see(Phase::Stopping);
    assert_eq!(life.instance.reason(), "waits: its unit is being stopped");
    assert_eq!(life.see(Phase::Down), Some(Command::Start));
}

#[test]
fn what_is_remembered() {
    // It was stopped, somebody wants it again, and something is missing.
    let mut wanted = stopped();
    wanted.tell(unmet(Need::Network));
    wanted.tell(Event::Restart);
    let mut kept_down = waiting();
    kept_down.tell(Event::StoppedByHand);
    for (life, launched) in [
        (unknown(), false),
        // agentd may be restarted twice before systemd answers.
        (Life::new(true), true),
        (waiting(), false),
        (starting(), false),
        (running(), true),
        (delayed(), true),
        (refused(), false),
        (ended_and_waiting(), true),
        (stopped(), true),
        (kept_down, true),
        (wanted, false),
    ] {
        assert_eq!(life.instance.launched(), launched, "{:?}", life.instance);
    }
}

#[test]
fn a_running_agent_is_taken_over_untouched() {
    for launched in [false, true] {
        let mut life = Life::new(launched);
        life.tell(unmet(Need::Network));
        assert_eq!(life.see(Phase::Running), None);
        assert_eq!(life.instance.state(), S::Running);
        assert_eq!(life.instance.reason(), "runs as process 7");
    }
}

#[test]
fn an_unchanged_unit_says_nothing_new() {
    let mut life = starting();
    // The job has not begun yet.
    life.look(Phase::Down);
    assert_eq!(life.instance.state(), S::Starting);
    let mut life = delayed().passed(delay::FIRST);
    assert_eq!(life.tell(Event::Due), Some(Command::Start));
    life.look(Phase::Ended);
    assert_eq!(life.instance.state(), S::Starting);
}

#[test]
fn delays_grow_and_are_forgotten_after_health() {
    let mut life = running();
    let mut waits = Vec::new();
    for _ in 0..3 {
        life.see(Phase::Ended);
        let wait = life.instance.deadline().unwrap() - life.now.instant;
        waits.push(wait.as_secs());
        life.pass(wait);
        assert_eq!(life.tell(Event::Due), Some(Command::Start));
        life.see(Phase::Running);
    }
    assert_eq!(waits, [1, 2, 4]);
    life.see(Phase::Ended);
    assert_eq!(
        life.instance.reason(),
        "ended: exit code 1, 4 times in a row; starts again after 8.0 s"
    );
    assert_eq!(
        life.instance.next_start_usec(),
        life.now.realtime_usec + 8_000_000
    );
    life.pass(delay::LONGEST);
    life.tell(Event::Due);
    life.see(Phase::Running);
    life.pass(HEALTHY);
    life.see(Phase::Ended);
    assert_eq!(
        life.instance.reason(),
        "ended: exit code 1; starts again after 1.0 s"
    );
}

#[test]
fn a_failed_start_counts_once() {
    let mut life = starting();
    life.tell(Event::Failed("its start job ended with \"failed\"".into()));
    life.see(Phase::Ended);
    let reason = "ended: exit code 1; starts again after 1.0 s";
    assert_eq!(life.instance.reason(), reason);
    // The other order.
    let mut life = starting();
    life.see(Phase::Ended);
    life.tell(Event::Failed("its start job ended with \"failed\"".into()));
    assert_eq!(life.instance.reason(), reason);
}

#[test]
fn a_refused_restart_leaves_the_agent_running() {
    let mut life = running();
    life.tell(Event::Restart);
    life.tell(Event::Failed("no".into()));
    assert_eq!(life.instance.state(), S::Running);
}

#[test]
fn an_invalid_configuration_is_shown_and_does_not_end_what_runs() {
    let mut life = waiting();
    life.tell(unmet(Need::Configuration));
    assert_eq!(life.instance.state(), S::Invalid);
    assert_eq!(life.instance.reason(), "waits: something is missing");
    let mut life = running();
    assert_eq!(life.tell(unmet(Need::Configuration)), None);
    assert_eq!(life.instance.state(), S::Running);
}

#[test]
fn since_is_the_time_of_the_state() {
    let mut life = running();
    let since = life.instance.since_usec();
    life.pass(Duration::from_secs(5));
    life.tell(unmet(Need::Network));
    assert_eq!(life.instance.since_usec(), since);
    life.see(Phase::Ended);
    assert_eq!(life.instance.since_usec(), since + 5_000_000);
}
