//! Every pair of state and event of the machine in `instance.rs`.

#![allow(clippy::unwrap_used)] // A test says what it expects by panicking.

use std::time::{Duration, Instant};

use buildos_agentd::lifecycle::backoff::{self as delay, HEALTHY};
use buildos_agentd::lifecycle::instance::{Command, Drain, Event, Instance, Now, Remembered};
use buildos_agentd::requirements::check::Unmet;
use buildos_agentd::unit::exit::Exit;
use buildos_agentd::unit::phase::{Phase, Unit};
use buildos_dbus_api::agent1::{InstanceState as S, Need};
use proptest::prelude::*;

/// Time that tasks have in these tests.
const BUDGET: Duration = Duration::from_secs(3600);

/// An instance with a clock that the test turns.
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

    /// agentd is restarted, and so far systemd has told nothing.
    fn restarted(self) -> Self {
        Self {
            instance: Instance::new(self.instance.remember(), Vec::new(), self.now),
            ..self
        }
    }

    /// agentd is restarted, and finds the unit as it was.
    fn restarted_with(self, phase: Phase) -> (Self, Option<Command>) {
        let mut life = self.restarted();
        let command = life.look(phase);
        (life, command)
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
        self.now.uptime += time;
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

/// Its tasks may end.
fn draining() -> Life {
    let mut life = running();
    assert_eq!(life.tell(Event::Drain(BUDGET)), Some(Command::Drain));
    life
}

/// They have ended, and the unit is told to stop.
fn drained() -> Life {
    let mut life = draining();
    assert_eq!(life.tell(Event::Idle), Some(Command::Stop));
    life
}

/// The unit is down.
fn drained_down() -> Life {
    let mut life = drained();
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
    ("failed", |l| l.tell(Event::Failed("no".into()))),
    ("stopped by hand", |l| l.tell(Event::StoppedByHand)),
    ("started by hand", |l| l.tell(Event::StartedByHand)),
    ("needs met", |l| l.tell(met())),
    ("needs unmet", |l| l.tell(unmet(Need::Network))),
    ("due too early", |l| l.tell(Event::Due)),
    ("due", |l| {
        l.pass(BUDGET);
        l.tell(Event::Due)
    }),
    ("restart", |l| l.tell(Event::Restart)),
    ("drain", |l| l.tell(Event::Drain(BUDGET))),
    ("resume", |l| l.tell(Event::Resume)),
    ("idle", |l| l.tell(Event::Idle)),
];

#[test]
fn every_pair_of_state_and_event() {
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
        ("drained", drained, S::Drained, [
            (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, STOP),
            (S::Draining, NONE), (S::Drained, NONE), (S::Running, UNWATCH),
            (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE),
            (S::Starting, RESTART), (S::Drained, NONE), (S::Starting, RESTART), (S::Drained, NONE),
        ]),
        ("drained down", drained_down, S::Drained, [
            (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, STOP),
            (S::Drained, NONE), (S::Drained, NONE), (S::Starting, UNWATCH),
            (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE), (S::Drained, NONE),
            (S::Starting, START), (S::Drained, NONE), (S::Starting, START), (S::Drained, NONE),
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
fn what_is_wanted() {
    for (life, wanted) in [
        (waiting(), true),
        (running(), true),
        (delayed(), true),
        (stopped(), false),
        (draining(), false),
        (drained(), false),
        (drained_down(), false),
    ] {
        assert_eq!(life.instance.wanted(), wanted, "{:?}", life.instance);
    }
}

#[test]
fn a_drain_has_an_end() {
    let mut life = draining();
    assert_eq!(
        life.instance.drain_deadline_usec(),
        life.now.realtime_usec + 3_600_000_000
    );
    assert_eq!(
        life.instance.reason(),
        "drains: its tasks have up to 3600 s to end, then it is stopped with what still runs"
    );
    // Somebody is in a hurry.
    life.tell(Event::Drain(Duration::from_secs(60)));
    life.pass(Duration::from_secs(60));
    assert_eq!(life.tell(Event::Due), Some(Command::Stop));
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
fn a_drain_outlives_agentd() {
    // Its tasks run, and have the rest of their time.
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
    assert_eq!(life.tell(Event::Due), Some(Command::Stop));

    // It was told to stop, and has not yet.
    let (life, command) = drained().restarted_with(Phase::Running);
    assert_eq!(
        (life.instance.state(), command),
        (S::Draining, Some(Command::Watch))
    );

    // It ended while agentd was away.
    for phase in [Phase::Down, Phase::Ended] {
        let (life, command) = draining().restarted_with(phase);
        assert_eq!(life.instance.state(), S::Drained);
        let stop = (phase == Phase::Ended).then_some(Command::Stop);
        assert_eq!(command, stop);
    }

    // Nothing happens to one that is down, whatever it has.
    let (mut life, command) = drained_down().restarted_with(Phase::Down);
    assert_eq!((life.instance.state(), command), (S::Drained, None));
    assert_eq!(life.tell(met()), None);
    assert_eq!(life.tell(Event::Resume), Some(Command::Start));
    assert_eq!(life.instance.remember().drain, None);

    // Somebody started it meanwhile, which takes the drain back.
    let (life, command) = drained_down().restarted_with(Phase::Running);
    assert_eq!((life.instance.state(), command), (S::Running, None));

    assert_eq!(
        draining().instance.remember().drain,
        Some(Drain::Until(Duration::from_secs(1000) + BUDGET))
    );
    assert_eq!(
        drained_down().restarted().instance.remember().drain,
        Some(Drain::Done)
    );
}

#[test]
fn a_drain_before_systemd_has_answered_is_carried_out() {
    for (phase, command) in [
        (Phase::Down, None),
        (Phase::Running, Some(Command::Watch)),
        (Phase::Ended, Some(Command::Stop)),
    ] {
        let mut life = unknown();
        life.tell(Event::Drain(BUDGET));
        assert_eq!(life.look(phase), command);
        assert!(!life.instance.wanted());
    }
    let mut life = unknown();
    life.tell(Event::Drain(BUDGET));
    life.tell(Event::Resume);
    assert_eq!(life.look(Phase::Down), Some(Command::Start));
}

#[test]
fn a_crash_loop_outlives_agentd_and_is_not_given_up() {
    let mut life = running();
    for _ in 0..3 {
        life.see(Phase::Ended);
        life.pass(delay::LONGEST);
        assert_eq!(life.tell(Event::Due), Some(Command::Start));
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
    // The same end is not counted again.
    let (mut life, _) = life.restarted_with(Phase::Ended);
    assert_eq!(life.instance.reason(), reason);
    assert_eq!(life.instance.last_exit(), "exit code 1");
    // The next is.
    life.pass(delay::LONGEST);
    life.tell(Event::Due);
    life.see(Phase::Running);
    life.see(Phase::Ended);
    assert_eq!(life.instance.failures(), 5);
    // Who runs long enough is in order, and is shown so while it runs.
    life.pass(delay::LONGEST);
    life.tell(Event::Due);
    life.see(Phase::Running);
    life.pass(HEALTHY);
    assert!(life.instance.deadline().unwrap() <= life.now.instant);
    life.tell(Event::Due);
    assert_eq!(life.instance.reason(), "runs as process 7");
    assert_eq!(life.instance.deadline(), None);
}

#[test]
fn a_unit_that_was_up_and_is_down_was_stopped_while_agentd_was_away() {
    let mut life = Life::new(true);
    assert_eq!(life.look(Phase::Down), None);
    assert_eq!(life.instance.state(), S::Stopped);
    assert!(life.instance.remember().launched);
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
        assert_eq!(
            life.instance.remember().launched,
            launched,
            "{:?}",
            life.instance
        );
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
        "is in a crash loop: exit code 1, 4 times in a row; starts again after 8.0 s"
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

/// Whether systemd would be asked to start something.
fn starts(command: Option<Command>) -> bool {
    matches!(command, Some(Command::Start | Command::Restart))
}

proptest! {
    /// Whatever happens, in whatever order, and however often agentd is restarted
    /// in between.
    #[test]
    fn nobody_is_started_who_is_not_wanted(events in proptest::collection::vec((0..EVENTS.len(), any::<bool>()), 0..40)) {
        let mut life = unknown();
        for (event, restarts) in events {
            if restarts {
                let mut remembered = life.instance.remember();
                life = life.restarted();
                // Of a time that is over nothing is left.
                if let Some(Drain::Until(end)) = &mut remembered.drain {
                    *end = (*end).max(life.now.uptime);
                }
                prop_assert_eq!(life.instance.remember(), remembered);
            }
            let wanted = life.instance.wanted();
            let (name, tell) = EVENTS[event];
            let command = tell(&mut life);
            if starts(command) {
                prop_assert!(life.instance.wanted(), "{name}");
                let by_somebody = ["restart", "resume"].contains(&name);
                prop_assert!(wanted || by_somebody, "{name} starts what was not wanted");
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
