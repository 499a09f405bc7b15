//! Holds one agent: turns events into triggers of the [table](super::table) and
//! carries out the actions.

use std::time::{Duration, Instant};

use buildos_dbus_api::agent1::Need;
use serde::{Deserialize, Serialize};

use super::backoff::{HEALTHY, backoff};
use super::table::{Action, Command, DrainDeadline, Facts, Now, State, Trigger, transition};
use crate::machine::tracker::{Machine, Totals};
use crate::requirements::check::Unmet;
use crate::unit::phase::{Phase, Unit};

/// Event that concerns one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// systemd reported the unit.
    Seen(Unit),
    /// systemd refused the last command, or its job failed, for this reason.
    Failed(String),
    /// A stop that agentd did not request has ended, and the unit is down.
    StoppedByHand,
    /// A start that agentd did not request has ended, and the unit is up.
    StartedByHand,
    /// Result of a check of the requirements: those that are not met. If room on disks is
    /// one, tasks have this time to end.
    Requirements(Vec<Unmet>, Duration),
    /// The deadline may have passed.
    Due,
    /// D-Bus method `Restart`.
    Restart,
    /// D-Bus method `Drain`, with the time that the tasks have.
    Drain(Duration),
    /// D-Bus method `Resume`.
    Resume,
    /// No task runs in the unit.
    Idle,
    /// The machines of the unit were observed.
    Machines(Machines),
}

/// Machines of an agent, and what a drain does with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machines {
    /// Machines that exist.
    pub list: Vec<Machine>,
    /// Sums over those that have ended.
    pub totals: Totals,
    /// True if a drain does not wait for suspended ones.
    pub leaves_suspended: bool,
    /// True if people can log in to them, as the configuration says.
    pub interactive: bool,
}

/// State of an agent that survives a restart of agentd and that systemd does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// True if the unit was up, or stopped by an operator, since the last request to
    /// start it: if the unit is down now, an operator stopped it.
    pub launched: bool,
    /// The drain, if one was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// True if disks have had too little room since the agent was drained for it. An operator
    /// can have started it nevertheless.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disk_shortage: bool,
    /// Unexpected ends and failed starts in a row.
    pub failures: u32,
    /// Time of the last counted end, CLOCK_MONOTONIC microseconds; prevents a second
    /// count.
    pub ended_usec: u64,
    /// Cause of the last failure.
    pub last_failure: String,
    /// Exit status of the last run.
    pub last_exit: String,
}

/// Drain in [`Remembered`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drain {
    /// The tasks have until this time since boot to end.
    Until(Duration),
    /// The agent is drained and down.
    Done,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub(super) state: State,
    /// Time of the last change of the state, CLOCK_REALTIME microseconds.
    pub(super) since_usec: u64,
    pub(super) unit: Option<Unit>,
    pub(super) unmet: Vec<Unmet>,
    pub(super) machines: Machines,
    /// `drain` is the value at the start of agentd; [`Instance::remember`] derives the
    /// current one from the state.
    pub(super) remembered: Remembered,
}

impl Instance {
    /// Creates an agent whose unit systemd has not reported yet.
    #[must_use]
    pub fn new(remembered: Remembered, unmet: Vec<Unmet>, now: Now) -> Self {
        let state = match remembered.drain {
            None => State::Waiting,
            Some(Drain::Done) => State::Drained,
            Some(Drain::Until(end)) => {
                let budget = end.saturating_sub(now.uptime);
                State::Draining(DrainDeadline::new(budget, now))
            }
        };
        Self {
            state,
            since_usec: now.realtime_usec,
            unit: None,
            unmet,
            machines: Machines::default(),
            remembered,
        }
    }

    /// Handles an event and returns the command for systemd. `jitter` is a random number.
    pub fn handle(&mut self, event: Event, now: Now, jitter: u32) -> Option<Command> {
        let command = match event {
            Event::Seen(unit) => self.record_unit(unit, now, jitter),
            Event::Failed(cause) => self.step(Trigger::Failed, None, cause, now, jitter),
            Event::StoppedByHand => {
                // An operator stopped it while it was drained for room.
                self.remembered.disk_shortage = false;
                self.remembered.launched = true;
                self.step_plain(Trigger::StoppedByHand, now)
            }
            Event::StartedByHand => self.step_plain(Trigger::StartedByHand, now),
            Event::Requirements(unmet, budget) => {
                self.unmet = unmet;
                self.follow_disks(budget, now)
            }
            Event::Due if self.deadline().is_some_and(|at| at <= now.instant) => {
                self.step_plain(Trigger::DeadlinePassed, now)
            }
            Event::Due => None,
            Event::Restart => self.step_plain(Trigger::Restart, now),
            Event::Drain(budget) => {
                // This drain outlasts the shortage.
                self.remembered.disk_shortage = false;
                self.step_plain(Trigger::Drain(DrainDeadline::new(budget, now)), now)
            }
            Event::Resume => {
                self.remembered.disk_shortage = self.lacks_room();
                self.step_plain(Trigger::Resume, now)
            }
            Event::Idle => self.step_plain(Trigger::Idle, now),
            Event::Machines(machines) => {
                self.machines = machines;
                None
            }
        };
        let startable = matches!(self.phase(), Some(Phase::Down | Phase::Ended));
        if command.is_none() && startable && self.unmet.is_empty() {
            return self.step_plain(Trigger::RequirementsMet, now);
        }
        command
    }

    /// Drains an agent that runs while disks have too little room, and ends this drain when
    /// they have room again.
    fn follow_disks(&mut self, budget: Duration, now: Now) -> Option<Command> {
        let is_up = matches!(self.state, State::Starting | State::Running { .. });
        match (self.lacks_room(), self.remembered.disk_shortage) {
            (true, false) if is_up => {
                self.remembered.disk_shortage = true;
                self.step_plain(Trigger::Drain(DrainDeadline::new(budget, now)), now)
            }
            (false, true) => {
                self.remembered.disk_shortage = false;
                let drains = self.state.is_drain();
                drains.then(|| self.step_plain(Trigger::Resume, now))?
            }
            (true, _) | (false, false) => None,
        }
    }

    fn lacks_room(&self) -> bool {
        self.unmet.iter().any(|unmet| unmet.need == Need::Disk)
    }

    /// Records a report of the unit. An unchanged unit triggers nothing.
    fn record_unit(&mut self, unit: Unit, now: Now, jitter: u32) -> Option<Command> {
        if let Some(exit) = &unit.exit {
            self.remembered.last_exit = exit.to_string();
        }
        // agentd itself may be stopping this unit: its agent was removed from the
        // configuration and added again.
        self.remembered.launched |= !matches!(unit.phase, Phase::Down | Phase::Stopping);
        let cause = unit
            .exit
            .as_ref()
            .map_or_else(|| "unknown reasons".into(), ToString::to_string);
        let (phase, changed_usec) = (unit.phase, unit.changed_usec);
        let previous = self.unit.replace(unit);
        if previous
            .as_ref()
            .is_some_and(|previous| previous.changed_usec == changed_usec)
        {
            return None;
        }
        let previous = previous.map(|previous| previous.phase);
        self.step(Trigger::Seen(phase), previous, cause, now, jitter)
    }

    /// Takes a trigger that is not a failure.
    fn step_plain(&mut self, trigger: Trigger, now: Now) -> Option<Command> {
        self.step(trigger, None, String::new(), now, 0)
    }

    fn step(
        &mut self,
        trigger: Trigger,
        previous: Option<Phase>,
        cause: String,
        now: Now,
        jitter: u32,
    ) -> Option<Command> {
        let ended = matches!(trigger, Trigger::Seen(Phase::Ended));
        let failures = self.failures_before(ended && previous.is_none(), now);
        let facts = Facts {
            phase: self.phase(),
            previous,
            launched: self.remembered.launched,
            now,
            backoff: backoff(failures, jitter),
        };
        let (next, action) = transition(self.state, trigger, &facts);
        self.enter(next, trigger, now);
        let remembered = &mut self.remembered;
        match action {
            Action::None => None,
            Action::Command(command) => Some(command),
            Action::CountFailure | Action::UpdateFailure => {
                if action == Action::CountFailure {
                    remembered.failures = failures.saturating_add(1);
                }
                remembered.last_failure = cause;
                if ended {
                    remembered.ended_usec = self.unit.as_ref().map_or(0, |u| u.changed_usec);
                }
                None
            }
            Action::ResetFailures => {
                remembered.failures = 0;
                None
            }
            Action::StartOver => {
                remembered.failures = 0;
                remembered.launched = false;
                None
            }
        }
    }

    /// Returns the failures in a row before the current one. `first_report`: the current
    /// one is an end in the first report of the unit, which agentd may have counted
    /// before its restart.
    fn failures_before(&self, first_report: bool, now: Now) -> u32 {
        let failures = self.remembered.failures;
        let healthy = match self.state {
            State::Running { since } => now.instant.saturating_duration_since(since) >= HEALTHY,
            State::Waiting
            | State::Starting
            | State::Delayed { .. }
            | State::Stopped
            | State::Draining(_)
            | State::StoppingAfterDrain { .. }
            | State::Drained => false,
        };
        let ended_usec = self.unit.as_ref().map(|unit| unit.changed_usec);
        let counted = first_report && ended_usec == Some(self.remembered.ended_usec);
        match (healthy, counted) {
            (true, _) => 0,
            (false, true) => failures.saturating_sub(1),
            (false, false) => failures,
        }
    }

    fn enter(&mut self, next: State, trigger: Trigger, now: Now) {
        let again = matches!(next, State::Delayed { .. }) && next != self.state;
        if next.public() != self.state.public() || again {
            self.since_usec = match (trigger, &self.unit) {
                (Trigger::Seen(Phase::Down | Phase::Starting | Phase::Running), Some(unit)) => {
                    unit.changed_realtime_usec
                }
                _ => now.realtime_usec,
            };
        }
        self.state = next;
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        self.unit.as_ref().map(|unit| unit.phase)
    }

    /// Returns when to send [`Event::Due`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Delayed { until, .. } | State::Draining(DrainDeadline { until, .. }) => {
                Some(until.instant)
            }
            // The failure count is reset then.
            State::Running { since } => (self.remembered.failures > 0).then(|| since + HEALTHY),
            State::Waiting
            | State::Starting
            | State::Stopped
            | State::StoppingAfterDrain { .. }
            | State::Drained => None,
        }
    }

    /// Returns the state to save for [`Instance::new`].
    #[must_use]
    pub fn remember(&self) -> Remembered {
        let drain = match self.state {
            // The drain is done when the unit is down.
            State::Draining(DrainDeadline { until, .. })
            | State::StoppingAfterDrain { until, .. } => Some(Drain::Until(until.uptime)),
            State::Drained => Some(Drain::Done),
            State::Waiting
            | State::Starting
            | State::Running { .. }
            | State::Delayed { .. }
            | State::Stopped => None,
        };
        Remembered {
            drain,
            ..self.remembered.clone()
        }
    }
}
