//! Maps every pair of state and trigger to the next state and an action.
//!
//! [`transition`] is total and has no wildcard arm: a new state or trigger does not
//! compile before each of its pairs has an answer. `tests/lifecycle/table.rs` lists all
//! pairs.

use std::time::{Duration, Instant};

use buildos_dbus_api::agent1::InstanceState;

use crate::unit::phase::Phase;

/// Delay before a stop that systemd refused is requested again.
const STOP_RETRY: Duration = Duration::from_secs(5);

/// A point in time, on all clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_MONOTONIC, for durations.
    pub instant: Instant,
    /// CLOCK_REALTIME microseconds, for operators.
    pub realtime_usec: u64,
    /// Time since boot, for deadlines that survive a restart of agentd.
    pub uptime: Duration,
}

impl Now {
    /// Returns the point in time `delay` later.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        let usec = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        Self {
            instant: self.instant + delay,
            realtime_usec: self.realtime_usec.saturating_add(usec),
            uptime: self.uptime.saturating_add(delay),
        }
    }
}

/// State of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A requirement is not met, or systemd has not reported the unit yet.
    Waiting,
    /// systemd starts the unit.
    Starting,
    /// The agent runs.
    Running {
        /// Start of the run.
        since: Instant,
    },
    /// The agent ended by itself or could not be started.
    Delayed {
        /// Time of the next start.
        until: Now,
        /// Length of the delay.
        wait: Duration,
    },
    /// An operator stopped the unit.
    Stopped,
    /// The tasks of the agent have until the deadline to end.
    Draining(DrainDeadline),
    /// The tasks have ended or the deadline has passed; systemd stops the unit.
    StoppingAfterDrain {
        /// Deadline that the tasks had.
        until: Now,
        /// True if tasks still ran at the deadline.
        overdue: bool,
    },
    /// Drained, and the unit is down.
    Drained,
}

/// Time that tasks have to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainDeadline {
    /// The deadline.
    pub until: Now,
    /// Time from the request to the deadline.
    pub budget: Duration,
}

impl DrainDeadline {
    /// Returns the deadline `budget` after `now`.
    #[must_use]
    pub fn new(budget: Duration, now: Now) -> Self {
        Self {
            until: now.after(budget),
            budget,
        }
    }
}

impl State {
    /// Returns the state that D-Bus shows.
    #[must_use]
    pub const fn public(self) -> InstanceState {
        match self {
            Self::Waiting => InstanceState::Waiting,
            Self::Starting => InstanceState::Starting,
            Self::Running { .. } => InstanceState::Running,
            Self::Delayed { .. } => InstanceState::Delayed,
            Self::Stopped => InstanceState::Stopped,
            Self::Draining(_) => InstanceState::Draining,
            Self::StoppingAfterDrain { .. } | Self::Drained => InstanceState::Drained,
        }
    }

    /// Returns true if a drain was requested and not resumed.
    #[must_use]
    pub const fn is_drain(self) -> bool {
        match self {
            Self::Draining(_) | Self::StoppingAfterDrain { .. } | Self::Drained => true,
            Self::Waiting
            | Self::Starting
            | Self::Running { .. }
            | Self::Delayed { .. }
            | Self::Stopped => false,
        }
    }
}

/// Input of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The unit is observed in this phase, after a change or for the first time.
    Seen(Phase),
    /// systemd refused the last command, or its job failed.
    Failed,
    /// A stop that agentd did not request has ended, and the unit is down.
    StoppedByHand,
    /// A start that agentd did not request has ended, and the unit is up.
    StartedByHand,
    /// All requirements are met, and the unit can be started.
    RequirementsMet,
    /// The deadline of the state has passed.
    DeadlinePassed,
    /// D-Bus method `Restart`.
    Restart,
    /// D-Bus method `Drain`.
    Drain(DrainDeadline),
    /// D-Bus method `Resume`.
    Resume,
    /// No task runs in the unit.
    Idle,
}

/// Observations that some entries of the table depend on.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Phase of the unit; [`None`] before systemd has reported it.
    pub phase: Option<Phase>,
    /// Phase before a [`Trigger::Seen`]; [`None`] for the first report.
    pub previous: Option<Phase>,
    /// True if the unit was up since the last request to start it.
    pub launched: bool,
    /// Current time.
    pub now: Now,
    /// Delay before the next start if this trigger is a failure.
    pub backoff: Duration,
}

/// Command to the supervisor of the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Start the unit.
    Start,
    /// Stop the unit and start it again.
    Restart,
    /// Stop the unit.
    Stop,
    /// Send the drain signal, if the agent has one, and watch for the end of its tasks.
    Drain,
    /// Watch for the end of the tasks; the drain signal was sent before.
    Watch,
    /// End the watch.
    Unwatch,
}

/// Effect of a transition besides the next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// No effect.
    None,
    /// Pass a command to the supervisor.
    Command(Command),
    /// Count a failure and record its cause.
    CountFailure,
    /// Record a more precise cause of the failure that was counted last.
    UpdateFailure,
    /// Reset the failure count: the agent has run long enough.
    ResetFailures,
    /// Reset the failure count, and treat the unit as not started yet.
    StartOver,
}

/// Returns the next state and the action for a trigger in a state.
#[must_use]
pub fn transition(state: State, trigger: Trigger, facts: &Facts) -> (State, Action) {
    match state {
        State::Waiting => waiting(trigger, facts),
        State::Starting => starting(trigger, facts),
        State::Running { .. } => running(state, trigger, facts),
        State::Delayed { .. } => delayed(state, trigger, facts),
        State::Stopped => stopped(trigger, facts),
        State::Draining(deadline) => draining(deadline, trigger, facts),
        State::StoppingAfterDrain { .. } => stopping_after_drain(state, trigger, facts),
        State::Drained => drained(trigger, facts),
    }
}

const START: Action = Action::Command(Command::Start);
const RESTART: Action = Action::Command(Command::Restart);
const STOP: Action = Action::Command(Command::Stop);
const DRAIN: Action = Action::Command(Command::Drain);
const WATCH: Action = Action::Command(Command::Watch);
const UNWATCH: Action = Action::Command(Command::Unwatch);

fn waiting(trigger: Trigger, facts: &Facts) -> (State, Action) {
    match trigger {
        // The unit has not been up: no stop has happened.
        Trigger::Seen(Phase::Down) if !facts.launched => (State::Waiting, Action::None),
        Trigger::Seen(Phase::Down) | Trigger::StoppedByHand => (State::Stopped, Action::None),
        Trigger::Seen(Phase::Starting) => (State::Starting, Action::None),
        Trigger::Seen(Phase::Running) => (facts.run(), Action::None),
        Trigger::Seen(Phase::Ended) => (facts.delay(), Action::CountFailure),
        Trigger::RequirementsMet => (State::Starting, START),
        Trigger::Drain(deadline) => drain_before_run(deadline, facts),
        Trigger::Seen(Phase::Stopping)
        | Trigger::Failed
        | Trigger::StartedByHand
        | Trigger::DeadlinePassed
        | Trigger::Restart
        | Trigger::Resume
        | Trigger::Idle => (State::Waiting, Action::None),
    }
}

fn starting(trigger: Trigger, facts: &Facts) -> (State, Action) {
    match trigger {
        Trigger::Seen(Phase::Down) | Trigger::StoppedByHand => (State::Stopped, Action::None),
        Trigger::Seen(Phase::Running) => (facts.run(), Action::None),
        Trigger::Seen(Phase::Ended) => (facts.delay(), Action::CountFailure),
        // systemd refused a restart: the agent still runs.
        Trigger::Failed if facts.phase == Some(Phase::Running) => (facts.run(), Action::None),
        Trigger::Failed => (facts.delay(), Action::CountFailure),
        // A task has at most just begun.
        Trigger::Drain(deadline) => stop_after_drain(deadline, false),
        Trigger::Seen(Phase::Starting | Phase::Stopping)
        | Trigger::StartedByHand
        | Trigger::RequirementsMet
        | Trigger::DeadlinePassed
        | Trigger::Restart
        | Trigger::Resume
        | Trigger::Idle => (State::Starting, Action::None),
    }
}

fn running(state: State, trigger: Trigger, facts: &Facts) -> (State, Action) {
    match trigger {
        Trigger::Seen(Phase::Down) | Trigger::StoppedByHand => (State::Stopped, Action::None),
        Trigger::Seen(Phase::Starting) => (State::Starting, Action::None),
        Trigger::Seen(Phase::Running) => (facts.run(), Action::None),
        Trigger::Seen(Phase::Ended) => (facts.delay(), Action::CountFailure),
        Trigger::DeadlinePassed => (state, Action::ResetFailures),
        Trigger::Restart => (State::Starting, RESTART),
        Trigger::Drain(deadline) => (State::Draining(deadline), DRAIN),
        Trigger::Seen(Phase::Stopping)
        | Trigger::Failed
        | Trigger::StartedByHand
        | Trigger::RequirementsMet
        | Trigger::Resume
        | Trigger::Idle => (state, Action::None),
    }
}

fn delayed(state: State, trigger: Trigger, facts: &Facts) -> (State, Action) {
    match trigger {
        Trigger::Seen(Phase::Down) | Trigger::StoppedByHand => (State::Stopped, Action::None),
        Trigger::Seen(Phase::Starting) => (State::Starting, Action::None),
        Trigger::Seen(Phase::Running) => (facts.run(), Action::None),
        // The failed start was counted before; the unit has the exit status.
        Trigger::Seen(Phase::Ended) if facts.previous.is_some_and(|p| p != Phase::Ended) => {
            (state, Action::UpdateFailure)
        }
        Trigger::Seen(Phase::Ended) => (facts.delay(), Action::CountFailure),
        Trigger::DeadlinePassed => (State::Waiting, Action::None),
        Trigger::Restart => (State::Waiting, Action::StartOver),
        Trigger::Drain(deadline) => drain_before_run(deadline, facts),
        Trigger::Seen(Phase::Stopping)
        | Trigger::Failed
        | Trigger::StartedByHand
        | Trigger::RequirementsMet
        | Trigger::Resume
        | Trigger::Idle => (state, Action::None),
    }
}

fn stopped(trigger: Trigger, facts: &Facts) -> (State, Action) {
    match trigger {
        Trigger::Seen(Phase::Starting) => (State::Starting, Action::None),
        Trigger::Seen(Phase::Running) => (facts.run(), Action::None),
        Trigger::Seen(Phase::Ended) => (facts.delay(), Action::CountFailure),
        Trigger::Restart => (State::Waiting, Action::StartOver),
        // A stopped agent accepts no tasks: nothing to drain.
        Trigger::Seen(Phase::Down | Phase::Stopping)
        | Trigger::Failed
        | Trigger::StoppedByHand
        | Trigger::StartedByHand
        | Trigger::RequirementsMet
        | Trigger::DeadlinePassed
        | Trigger::Drain(_)
        | Trigger::Resume
        | Trigger::Idle => (State::Stopped, Action::None),
    }
}

fn draining(deadline: DrainDeadline, trigger: Trigger, facts: &Facts) -> (State, Action) {
    match trigger {
        Trigger::Seen(Phase::Down) | Trigger::StoppedByHand => (State::Drained, Action::None),
        // agentd was restarted, or the unit was still starting when the drain began.
        Trigger::Seen(Phase::Running) if facts.previous != Some(Phase::Running) => {
            (State::Draining(deadline), WATCH)
        }
        // The stop cancels the pending automatic restart.
        Trigger::Seen(Phase::Ended) | Trigger::Idle => stop_after_drain(deadline, false),
        Trigger::DeadlinePassed => stop_after_drain(deadline, true),
        Trigger::StartedByHand => (facts.active_state(), UNWATCH),
        Trigger::Restart => (State::Starting, RESTART),
        Trigger::Drain(deadline) => (State::Draining(deadline), Action::None),
        Trigger::Resume if facts.phase.is_none() => (State::Waiting, Action::None),
        Trigger::Resume => (facts.active_state(), UNWATCH),
        Trigger::Seen(Phase::Starting | Phase::Running | Phase::Stopping)
        | Trigger::Failed
        | Trigger::RequirementsMet => (State::Draining(deadline), Action::None),
    }
}

fn stopping_after_drain(state: State, trigger: Trigger, facts: &Facts) -> (State, Action) {
    match trigger {
        Trigger::Seen(Phase::Down) | Trigger::StoppedByHand => (State::Drained, Action::None),
        Trigger::Seen(Phase::Ended) => (state, STOP),
        // systemd refused the stop: request it again.
        Trigger::Failed => {
            let deadline = DrainDeadline::new(STOP_RETRY, facts.now);
            (State::Draining(deadline), Action::None)
        }
        Trigger::StartedByHand => (facts.active_state(), UNWATCH),
        // The stop is under way: only a restart brings the agent back.
        Trigger::Restart | Trigger::Resume => (State::Starting, RESTART),
        Trigger::Seen(Phase::Starting | Phase::Running | Phase::Stopping)
        | Trigger::RequirementsMet
        | Trigger::DeadlinePassed
        | Trigger::Drain(_)
        | Trigger::Idle => (state, Action::None),
    }
}

fn drained(trigger: Trigger, facts: &Facts) -> (State, Action) {
    match trigger {
        Trigger::Seen(Phase::Ended) => (State::Drained, STOP),
        // An operator started the unit while agentd did not run.
        Trigger::Seen(Phase::Starting | Phase::Running) if facts.previous.is_none() => {
            (facts.active_state(), Action::None)
        }
        Trigger::StartedByHand => (facts.active_state(), UNWATCH),
        Trigger::Restart | Trigger::Resume => (State::Waiting, Action::StartOver),
        Trigger::Seen(Phase::Down | Phase::Starting | Phase::Running | Phase::Stopping)
        | Trigger::Failed
        | Trigger::StoppedByHand
        | Trigger::RequirementsMet
        | Trigger::DeadlinePassed
        | Trigger::Drain(_)
        | Trigger::Idle => (State::Drained, Action::None),
    }
}

/// Drains an agent that waits for its start.
fn drain_before_run(deadline: DrainDeadline, facts: &Facts) -> (State, Action) {
    match facts.phase {
        Some(Phase::Down) => (State::Drained, Action::None),
        Some(Phase::Starting | Phase::Running | Phase::Stopping | Phase::Ended) => {
            stop_after_drain(deadline, false)
        }
        // The first report of the unit decides.
        None => (State::Draining(deadline), Action::None),
    }
}

fn stop_after_drain(deadline: DrainDeadline, overdue: bool) -> (State, Action) {
    let until = deadline.until;
    (State::StoppingAfterDrain { until, overdue }, STOP)
}

impl Facts {
    fn run(&self) -> State {
        State::Running {
            since: self.now.instant,
        }
    }

    fn delay(&self) -> State {
        State::Delayed {
            until: self.now.after(self.backoff),
            wait: self.backoff,
        }
    }

    /// Returns the state of an agent whose unit is up.
    fn active_state(&self) -> State {
        match self.phase {
            Some(Phase::Running) => self.run(),
            Some(Phase::Down | Phase::Starting | Phase::Stopping | Phase::Ended) | None => {
                State::Starting
            }
        }
    }
}
