//! Lists every pair of state and trigger of the lifecycle table, with the phases of the
//! unit where the result depends on them.

use std::time::{Duration, Instant};

use buildos_agentd::lifecycle::table::{
    Action, Command, DrainDeadline, Facts, Now, State, Trigger, transition,
};
use buildos_agentd::unit::phase::Phase;

/// Delay that a failure gets in these tests.
const BACKOFF: Duration = Duration::from_secs(8);

/// Columns of the table.
const TRIGGERS: [&str; 14] = [
    "seen down",
    "seen starting",
    "seen running",
    "seen stopping",
    "seen ended",
    "failed",
    "stopped by hand",
    "started by hand",
    "requirements met",
    "deadline passed",
    "restart",
    "drain",
    "resume",
    "idle",
];

/// Rows of the table. Each cell has the next state and the action, or `-` for the same
/// state without an action. The unit is launched and in the phase that the state implies.
#[rustfmt::skip]
const TABLE: [(&str, [&str; 14]); 8] = [
    ("waiting", [
        "stopped", "starting", "running", "-", "delayed, count",
        "-", "stopped", "-", "starting, start", "-",
        "-", "drained", "-", "-",
    ]),
    ("starting", [
        "stopped", "-", "running", "-", "delayed, count",
        "delayed, count", "stopped", "-", "-", "-",
        "-", "stopping after drain, stop", "-", "-",
    ]),
    ("running", [
        "stopped", "starting", "running", "-", "delayed, count",
        "-", "stopped", "-", "-", "running, reset",
        "starting, restart", "draining, drain", "-", "-",
    ]),
    ("delayed", [
        "stopped", "starting", "running", "-", "delayed, update",
        "-", "stopped", "-", "-", "waiting",
        "waiting, start over", "stopping after drain, stop", "-", "-",
    ]),
    ("stopped", [
        "-", "starting", "running", "-", "delayed, count",
        "-", "-", "-", "-", "-",
        "waiting, start over", "-", "-", "-",
    ]),
    ("draining", [
        "drained", "-", "draining, watch", "-", "stopping after drain, stop",
        "-", "drained", "running, unwatch", "-", "overdue, stop",
        "starting, restart", "draining", "running, unwatch", "stopping after drain, stop",
    ]),
    ("stopping after drain", [
        "drained", "-", "-", "-", "stopping after drain, stop",
        "draining", "drained", "running, unwatch", "-", "-",
        "starting, restart", "-", "starting, restart", "-",
    ]),
    ("drained", [
        "-", "-", "-", "-", "drained, stop",
        "-", "-", "starting, unwatch", "-", "-",
        "waiting, start over", "-", "waiting, start over", "-",
    ]),
];

fn now() -> Now {
    Now {
        instant: Instant::now(),
        realtime_usec: 1_000_000,
        uptime: Duration::from_secs(100),
    }
}

fn deadline(seconds: u64, now: Now) -> DrainDeadline {
    DrainDeadline::new(Duration::from_secs(seconds), now)
}

/// Returns the state of a row, and the phase of the unit in it.
fn state(name: &str, now: Now) -> (State, Phase) {
    let until = deadline(60, now).until;
    match name {
        "waiting" => (State::Waiting, Phase::Down),
        "starting" => (State::Starting, Phase::Starting),
        "running" => (State::Running { since: now.instant }, Phase::Running),
        "delayed" => {
            let wait = Duration::from_secs(1);
            let until = now.after(wait);
            (State::Delayed { until, wait }, Phase::Ended)
        }
        "stopped" => (State::Stopped, Phase::Down),
        "draining" => (State::Draining(deadline(60, now)), Phase::Running),
        "stopping after drain" => {
            let overdue = false;
            (State::StoppingAfterDrain { until, overdue }, Phase::Running)
        }
        "drained" => (State::Drained, Phase::Down),
        other => panic!("{other} is not a state"),
    }
}

fn trigger(name: &str, now: Now) -> Trigger {
    match name {
        "seen down" => Trigger::Seen(Phase::Down),
        "seen starting" => Trigger::Seen(Phase::Starting),
        "seen running" => Trigger::Seen(Phase::Running),
        "seen stopping" => Trigger::Seen(Phase::Stopping),
        "seen ended" => Trigger::Seen(Phase::Ended),
        "failed" => Trigger::Failed,
        "stopped by hand" => Trigger::StoppedByHand,
        "started by hand" => Trigger::StartedByHand,
        "requirements met" => Trigger::RequirementsMet,
        "deadline passed" => Trigger::DeadlinePassed,
        "restart" => Trigger::Restart,
        "drain" => Trigger::Drain(deadline(3600, now)),
        "resume" => Trigger::Resume,
        "idle" => Trigger::Idle,
        other => panic!("{other} is not a trigger"),
    }
}

/// Shows a result as in [`TABLE`].
fn show(before: State, (next, action): (State, Action)) -> String {
    let name = match next {
        State::Waiting => "waiting",
        State::Starting => "starting",
        State::Running { .. } => "running",
        State::Delayed { .. } => "delayed",
        State::Stopped => "stopped",
        State::Draining(_) => "draining",
        State::StoppingAfterDrain { overdue: false, .. } => "stopping after drain",
        State::StoppingAfterDrain { overdue: true, .. } => "overdue",
        State::Drained => "drained",
    };
    let action = match action {
        Action::None if next == before => return "-".to_owned(),
        Action::None => return name.to_owned(),
        Action::Command(Command::Start) => "start",
        Action::Command(Command::Restart) => "restart",
        Action::Command(Command::Stop) => "stop",
        Action::Command(Command::Drain) => "drain",
        Action::Command(Command::Watch) => "watch",
        Action::Command(Command::Unwatch) => "unwatch",
        Action::CountFailure => "count",
        Action::UpdateFailure => "update",
        Action::ResetFailures => "reset",
        Action::StartOver => "start over",
    };
    format!("{name}, {action}")
}

/// Applies a trigger 5 s later. The unit comes from `previous` and is in `phase`; for a
/// report, `phase` is the reported one.
fn result(
    state_name: &str,
    trigger_name: &str,
    change: impl FnOnce(&mut Facts),
) -> (State, (State, Action)) {
    let begin = now();
    let (state, phase) = state(state_name, begin);
    let later = begin.after(Duration::from_secs(5));
    let trigger = trigger(trigger_name, later);
    let mut facts = Facts {
        phase: Some(phase),
        previous: None,
        launched: true,
        now: later,
        backoff: BACKOFF,
    };
    if let Trigger::Seen(seen) = trigger {
        facts.previous = Some(match phase {
            // A report of the same phase follows another phase.
            same if same == seen => Phase::Stopping,
            other => other,
        });
        facts.phase = Some(seen);
    }
    change(&mut facts);
    (state, transition(state, trigger, &facts))
}

#[test]
fn table_has_every_pair_of_state_and_trigger() {
    for (state, row) in TABLE {
        for (trigger, expected) in TRIGGERS.into_iter().zip(row) {
            let (before, after) = result(state, trigger, |_| {});
            assert_eq!(show(before, after), expected, "{state}, {trigger}");
        }
    }
}

#[test]
fn entries_depending_on_unit_have_every_case() {
    type Change = fn(&mut Facts);
    #[rustfmt::skip]
    let cases: [(&str, &str, Change, &str); 24] = [
        // The unit has not been up.
        ("waiting", "seen down", |f| f.launched = false, "-"),
        ("starting", "seen down", |f| f.launched = false, "stopped"),
        // systemd has not reported the unit.
        ("waiting", "drain", |f| f.phase = None, "draining"),
        ("delayed", "drain", |f| f.phase = None, "draining"),
        ("starting", "drain", |f| f.phase = None, "stopping after drain, stop"),
        ("draining", "resume", |f| f.phase = None, "waiting"),
        // A drain of an agent that waits depends on the phase.
        ("waiting", "drain", |f| f.phase = Some(Phase::Starting), "stopping after drain, stop"),
        ("waiting", "drain", |f| f.phase = Some(Phase::Running), "stopping after drain, stop"),
        ("waiting", "drain", |f| f.phase = Some(Phase::Stopping), "stopping after drain, stop"),
        ("waiting", "drain", |f| f.phase = Some(Phase::Ended), "stopping after drain, stop"),
        ("delayed", "drain", |f| f.phase = Some(Phase::Down), "drained"),
        // A refused restart leaves the agent running.
        ("starting", "failed", |f| f.phase = Some(Phase::Running), "running"),
        ("starting", "failed", |f| f.phase = Some(Phase::Down), "delayed, count"),
        ("starting", "failed", |f| f.phase = None, "delayed, count"),
        // A first report, or a repeated one.
        ("delayed", "seen ended", |f| f.previous = None, "delayed, count"),
        ("delayed", "seen ended", |f| f.previous = Some(Phase::Ended), "delayed, count"),
        ("draining", "seen running", |f| f.previous = None, "draining, watch"),
        ("draining", "seen running", |f| f.previous = Some(Phase::Running), "-"),
        ("drained", "seen running", |f| f.previous = None, "running"),
        ("drained", "seen starting", |f| f.previous = None, "starting"),
        // A unit that is up after a drain.
        ("draining", "started by hand", |f| f.phase = Some(Phase::Starting), "starting, unwatch"),
        ("draining", "resume", |f| f.phase = Some(Phase::Stopping), "starting, unwatch"),
        ("drained", "started by hand", |f| f.phase = Some(Phase::Running), "running, unwatch"),
        ("stopping after drain", "started by hand", |f| f.phase = None, "starting, unwatch"),
    ];
    for (state, trigger, change, expected) in cases {
        let (before, after) = result(state, trigger, change);
        assert_eq!(show(before, after), expected, "{state}, {trigger}");
    }
}

#[test]
fn next_states_have_expected_times() {
    // A repeated start resets the length of the run, the deadline does not.
    let (before, (after, _)) = result("running", "seen running", |_| {});
    let (State::Running { since: first }, State::Running { since: second }) = (before, after)
    else {
        panic!("{before:?}, {after:?}");
    };
    assert_eq!(second - first, Duration::from_secs(5));
    let (before, (after, _)) = result("running", "deadline passed", |_| {});
    assert_eq!(after, before);

    let (_, (after, _)) = result("running", "seen ended", |_| {});
    let State::Delayed { until, wait } = after else {
        panic!("{after:?}");
    };
    assert_eq!(wait, BACKOFF);
    assert_eq!(until.realtime_usec, 1_000_000 + 13_000_000);

    // A second drain replaces the deadline; the end of the first keeps it.
    let (_, (after, _)) = result("draining", "drain", |_| {});
    let State::Draining(second) = after else {
        panic!("{after:?}");
    };
    assert_eq!(second.budget, Duration::from_secs(3600));
    let (before, (after, _)) = result("draining", "idle", |_| {});
    let (State::Draining(first), State::StoppingAfterDrain { until, .. }) = (before, after) else {
        panic!("{before:?}, {after:?}");
    };
    assert_eq!(first.until, until);

    // A refused stop is requested again soon.
    let (_, (after, _)) = result("stopping after drain", "failed", |_| {});
    let State::Draining(retry) = after else {
        panic!("{after:?}");
    };
    assert_eq!(retry.budget, Duration::from_secs(5));
}
