//! Tests the lifecycle of an agent through `Instance`: every pair of state and event, and
//! sequences of events.

#![allow(clippy::unwrap_used)] // Tests panic.

use std::time::{Duration, Instant};

use buildos_agentd::lifecycle::backoff::{self, HEALTHY};
use buildos_agentd::lifecycle::instance::{Drain, Event, Instance, Remembered};
use buildos_agentd::lifecycle::table::{Command, Now};
use buildos_agentd::requirements::check::Unmet;
use buildos_agentd::unit::exit::Exit;
use buildos_agentd::unit::phase::{Phase, Unit};
use buildos_dbus_api::agent1::{InstanceState as S, Need};
use proptest::prelude::*;

/// Time that tasks have to end in these tests.
const BUDGET: Duration = Duration::from_secs(3600);

/// Instance with a clock that the test advances.
struct Life {
    instance: Instance,
    now: Now,
    stamp: u64,
}

impl Life {
    fn new(launched: bool) -> Self {
        Self::remembered(Remembered {
            launched,
            ..Remembered::default()
        })
    }

    fn remembered(remembered: Remembered) -> Self {
        let now = Now {
            instant: Instant::now(),
            realtime_usec: 1_000_000,
            uptime: Duration::from_secs(1000),
        };
        Self {
            instance: Instance::new(remembered, Vec::new(), now),
            now,
            stamp: 0,
        }
    }

    /// Restarts agentd; systemd has not reported the unit yet.
    fn restarted(self) -> Self {
        Self {
            instance: Instance::new(self.instance.remember(), Vec::new(), self.now),
            ..self
        }
    }

    /// Restarts agentd; systemd reports the unit in this phase, unchanged.
    fn restarted_with(self, phase: Phase) -> (Self, Option<Command>) {
        let mut life = self.restarted();
        let command = life.see_unchanged(phase);
        (life, command)
    }

    fn handle(&mut self, event: Event) -> Option<Command> {
        self.instance.handle(event, self.now, u32::MAX)
    }

    /// Reports the unit in a changed phase.
    fn see(&mut self, phase: Phase) -> Option<Command> {
        self.stamp += 1;
        self.see_unchanged(phase)
    }

    /// Reports the unit without a change.
    fn see_unchanged(&mut self, phase: Phase) -> Option<Command> {
        let unit = Unit {
            phase,
            changed_usec: self.stamp,
            changed_realtime_usec: self.now.realtime_usec,
            main_pid: 7,
            exit: Exit::new(1, 1, "exit-code").filter(|_| phase == Phase::Ended),
            restarts: 0,
        };
        self.handle(Event::Seen(unit))
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.realtime_usec += u64::try_from(time.as_micros()).unwrap();
        self.now.uptime += time;
    }

    fn passed(mut self, time: Duration) -> Self {
        self.pass(time);
        self
    }
}

fn unmet(need: Need) -> Event {
    let reason = "something is missing".to_owned();
    Event::Requirements(vec![Unmet { need, reason }])
}

fn met() -> Event {
    Event::Requirements(Vec::new())
}

/// systemd has not reported the unit; all requirements are met.
fn unknown() -> Life {
    Life::new(false)
}

fn waiting() -> Life {
    let mut life = Life::new(false);
    life.handle(unmet(Need::Network));
    life.see_unchanged(Phase::Down);
    life
}

fn starting() -> Life {
    let mut life = unknown();
    assert_eq!(life.see_unchanged(Phase::Down), Some(Command::Start));
    life
}

fn running() -> Life {
    let mut life = starting();
    life.see(Phase::Starting);
    life.see(Phase::Running);
    life
}

/// The agent ended by itself.
fn delayed() -> Life {
    let mut life = running();
    life.see(Phase::Ended);
    life
}

/// systemd refused the start.
fn refused() -> Life {
    let mut life = starting();
    life.handle(Event::Failed("bad unit file".into()));
    life
}

/// The agent ended, the delay is over, and a requirement is not met.
fn ended_and_waiting() -> Life {
    let mut life = delayed();
    life.handle(unmet(Need::Network));
    life.pass(backoff::FIRST);
    life.handle(Event::Due);
    life
}

fn stopped() -> Life {
    let mut life = running();
    life.see(Phase::Down);
    life
}

/// The tasks have time to end.
fn draining() -> Life {
    let mut life = running();
    assert_eq!(life.handle(Event::Drain(BUDGET)), Some(Command::Drain));
    life
}

/// The tasks have ended; systemd stops the unit.
fn stopping_after_drain() -> Life {
    let mut life = draining();
    assert_eq!(life.handle(Event::Idle), Some(Command::Stop));
    life
}

/// The unit is down after the drain.
fn drained() -> Life {
    let mut life = stopping_after_drain();
    life.see(Phase::Down);
    life
}

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

#[test]
fn wanted_excludes_stopped_and_drained() {
    for (life, wanted) in [
        (waiting(), true),
        (running(), true),
        (delayed(), true),
        (stopped(), false),
        (draining(), false),
        (stopping_after_drain(), false),
        (drained(), false),
    ] {
        assert_eq!(life.instance.wanted(), wanted, "{:?}", life.instance);
    }
}

#[test]
fn drain_ends_at_deadline_and_can_be_shortened() {
    let mut life = draining();
    assert_eq!(
        life.instance.drain_deadline_usec(),
        life.now.realtime_usec + 3_600_000_000
    );
    assert_eq!(
        life.instance.reason(),
        "drains: its tasks have up to 3600 s to end; remaining tasks are then stopped"
    );
    // A second drain shortens the time.
    life.handle(Event::Drain(Duration::from_secs(60)));
    life.pass(Duration::from_secs(60));
    assert_eq!(life.handle(Event::Due), Some(Command::Stop));
    assert_eq!(
        life.instance.reason(),
        "did not end its tasks in time; its unit is being stopped"
    );
    life.see(Phase::Stopping);
    life.see(Phase::Down);
    assert_eq!(
        life.instance.reason(),
        "is drained; buildosctl resume starts it again"
    );
}

#[test]
fn drain_survives_restart_of_agentd() {
    // The tasks keep the rest of their time.
    let mut life = draining();
    life.pass(BUDGET / 4);
    let (mut life, command) = life.restarted_with(Phase::Running);
    assert_eq!(command, Some(Command::Watch));
    assert_eq!(life.instance.state(), S::Draining);
    assert_eq!(
        life.instance.deadline().unwrap() - life.now.instant,
        BUDGET * 3 / 4
    );
    life.pass(BUDGET);
    assert_eq!(life.handle(Event::Due), Some(Command::Stop));

    // The unit has not stopped yet.
    let (life, command) = stopping_after_drain().restarted_with(Phase::Running);
    assert_eq!(
        (life.instance.state(), command),
        (S::Draining, Some(Command::Watch))
    );

    // The agent ended while agentd did not run.
    for phase in [Phase::Down, Phase::Ended] {
        let (life, command) = draining().restarted_with(phase);
        assert_eq!(life.instance.state(), S::Drained);
        let stop = (phase == Phase::Ended).then_some(Command::Stop);
        assert_eq!(command, stop);
    }

    // A drained agent stays down although its requirements are met.
    let (mut life, command) = drained().restarted_with(Phase::Down);
    assert_eq!((life.instance.state(), command), (S::Drained, None));
    assert_eq!(life.handle(met()), None);
    assert_eq!(life.handle(Event::Resume), Some(Command::Start));
    assert_eq!(life.instance.remember().drain, None);

    // A start by an operator meanwhile ends the drain.
    let (life, command) = drained().restarted_with(Phase::Running);
    assert_eq!((life.instance.state(), command), (S::Running, None));

    assert_eq!(
        draining().instance.remember().drain,
        Some(Drain::Until(Duration::from_secs(1000) + BUDGET))
    );
    assert_eq!(
        drained().restarted().instance.remember().drain,
        Some(Drain::Done)
    );
}

#[test]
fn drain_before_first_report_is_carried_out() {
    for (phase, command) in [
        (Phase::Down, None),
        (Phase::Running, Some(Command::Watch)),
        (Phase::Ended, Some(Command::Stop)),
    ] {
        let mut life = unknown();
        life.handle(Event::Drain(BUDGET));
        assert_eq!(life.see_unchanged(phase), command);
        assert!(!life.instance.wanted());
    }
    let mut life = unknown();
    life.handle(Event::Drain(BUDGET));
    life.handle(Event::Resume);
    assert_eq!(life.see_unchanged(Phase::Down), Some(Command::Start));
}

#[test]
fn crash_loop_survives_restart_of_agentd_and_ends_after_healthy_run() {
    let mut life = running();
    for _ in 0..3 {
        life.see(Phase::Ended);
        life.pass(backoff::LONGEST);
        assert_eq!(life.handle(Event::Due), Some(Command::Start));
        life.see(Phase::Running);
    }
    assert!(life.instance.crash_loop());
    assert_eq!(
        life.instance.reason(),
        "runs as process 7, in a crash loop: exit code 1, 3 times in a row"
    );
    life.see(Phase::Ended);
    let reason = "is in a crash loop: exit code 1, 4 times in a row; starts again after 8.0 s";
    assert_eq!(life.instance.reason(), reason);
    // agentd does not count the same end again.
    let (mut life, _) = life.restarted_with(Phase::Ended);
    assert_eq!(life.instance.reason(), reason);
    assert_eq!(life.instance.last_exit(), "exit code 1");
    // agentd counts the next end.
    life.pass(backoff::LONGEST);
    life.handle(Event::Due);
    life.see(Phase::Running);
    life.see(Phase::Ended);
    assert_eq!(life.instance.failures(), 5);
    // A healthy run resets the count while the agent still runs.
    life.pass(backoff::LONGEST);
    life.handle(Event::Due);
    life.see(Phase::Running);
    life.pass(HEALTHY);
    assert!(life.instance.deadline().unwrap() <= life.now.instant);
    life.handle(Event::Due);
    assert_eq!(life.instance.reason(), "runs as process 7");
    assert_eq!(life.instance.deadline(), None);
}

#[test]
fn unit_down_after_launch_was_stopped_by_operator() {
    let mut life = Life::new(true);
    assert_eq!(life.see_unchanged(Phase::Down), None);
    assert_eq!(life.instance.state(), S::Stopped);
    assert!(life.instance.remember().launched);
    assert_eq!(life.handle(Event::Restart), Some(Command::Start));
}

#[test]
fn agent_configured_again_during_stop_starts_again() {
    let mut life = unknown();
    life.see(Phase::Stopping);
    assert_eq!(life.instance.reason(), "waits: its unit is being stopped");
    assert_eq!(life.see(Phase::Down), Some(Command::Start));
}

#[test]
fn launched_is_remembered_per_state() {
    // Stopped, then restarted over D-Bus, while a requirement is not met.
    let mut wanted = stopped();
    wanted.handle(unmet(Need::Network));
    wanted.handle(Event::Restart);
    let mut kept_down = waiting();
    kept_down.handle(Event::StoppedByHand);
    for (life, launched) in [
        (unknown(), false),
        // agentd is restarted twice before systemd answers.
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
        assert_eq!(
            life.instance.remember().launched,
            launched,
            "{:?}",
            life.instance
        );
    }
}

#[test]
fn running_agent_is_adopted_without_command() {
    for launched in [false, true] {
        let mut life = Life::new(launched);
        life.handle(unmet(Need::Network));
        assert_eq!(life.see(Phase::Running), None);
        assert_eq!(life.instance.state(), S::Running);
        assert_eq!(life.instance.reason(), "runs as process 7");
    }
}

#[test]
fn unchanged_unit_triggers_nothing() {
    let mut life = starting();
    // The start job has not begun yet.
    life.see_unchanged(Phase::Down);
    assert_eq!(life.instance.state(), S::Starting);
    let mut life = delayed().passed(backoff::FIRST);
    assert_eq!(life.handle(Event::Due), Some(Command::Start));
    life.see_unchanged(Phase::Ended);
    assert_eq!(life.instance.state(), S::Starting);
}

#[test]
fn backoff_grows_and_is_reset_by_healthy_run() {
    let mut life = running();
    let mut waits = Vec::new();
    for _ in 0..3 {
        life.see(Phase::Ended);
        let wait = life.instance.deadline().unwrap() - life.now.instant;
        waits.push(wait.as_secs());
        life.pass(wait);
        assert_eq!(life.handle(Event::Due), Some(Command::Start));
        life.see(Phase::Running);
    }
    assert_eq!(waits, [1, 2, 4]);
    life.see(Phase::Ended);
    assert_eq!(
        life.instance.reason(),
        "is in a crash loop: exit code 1, 4 times in a row; starts again after 8.0 s"
    );
    assert_eq!(
        life.instance.next_start_usec(),
        life.now.realtime_usec + 8_000_000
    );
    life.pass(backoff::LONGEST);
    life.handle(Event::Due);
    life.see(Phase::Running);
    life.pass(HEALTHY);
    life.see(Phase::Ended);
    assert_eq!(
        life.instance.reason(),
        "ended: exit code 1; starts again after 1.0 s"
    );
}

#[test]
fn failed_start_is_counted_once() {
    let mut life = starting();
    life.handle(Event::Failed("its start job ended with \"failed\"".into()));
    life.see(Phase::Ended);
    let reason = "ended: exit code 1; starts again after 1.0 s";
    assert_eq!(life.instance.reason(), reason);
    // Reports in the other order.
    let mut life = starting();
    life.see(Phase::Ended);
    life.handle(Event::Failed("its start job ended with \"failed\"".into()));
    assert_eq!(life.instance.reason(), reason);
}

#[test]
fn refused_restart_leaves_agent_running() {
    let mut life = running();
    life.handle(Event::Restart);
    life.handle(Event::Failed("no".into()));
    assert_eq!(life.instance.state(), S::Running);
}

#[test]
fn invalid_configuration_is_shown_unless_agent_runs() {
    let mut life = waiting();
    life.handle(unmet(Need::Configuration));
    assert_eq!(life.instance.state(), S::Invalid);
    assert_eq!(life.instance.reason(), "waits: something is missing");
    let mut life = running();
    assert_eq!(life.handle(unmet(Need::Configuration)), None);
    assert_eq!(life.instance.state(), S::Running);
}

#[test]
fn since_changes_with_state_only() {
    let mut life = running();
    let since = life.instance.since_usec();
    life.pass(Duration::from_secs(5));
    life.handle(unmet(Need::Network));
    assert_eq!(life.instance.since_usec(), since);
    life.see(Phase::Ended);
    assert_eq!(life.instance.since_usec(), since + 5_000_000);
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
