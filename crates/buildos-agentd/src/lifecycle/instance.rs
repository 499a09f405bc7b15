//! The life of one agent, as a machine without clock, chance or I/O.
//!
//! systemd has the facts, this machine the intentions. The template units say
//! `Restart=always` with a delay that never passes: a service that ends by
//! itself stays in `auto-restart` ([`Phase::Ended`]) until it is started, one
//! that somebody stops is down ([`Phase::Down`]). So a look at the unit tells
//! the two apart, also when agentd was away in between.
//!
//! ```text
//!            needs met                 it runs
//!  waiting ------------> starting ---------------> running
//!     ^                  |    ^                      |   |
//!     | a need is        |    | time is up,          |   | Drain
//!     | not met          |    | needs met            |   v
//!     +---------------- delayed <--------------------+  draining --> drained
//!                             ended by itself            no task runs,
//!                                                        or time is up
//!
//!  any state: unit stopped by somebody -> stopped; unit started by somebody
//!  -> starting, running; `Restart` -> starting, or waiting for the needs;
//!  `Drain` of one that does not run -> drained
//! ```

use std::time::{Duration, Instant};

use buildos_dbus_api::agent1::InstanceState;
use serde::{Deserialize, Serialize};

use crate::lifecycle::backoff::{HEALTHY, delay};
use crate::requirements::check::Unmet;
use crate::unit::phase::{Phase, Unit};

/// How long a stop that systemd refused waits before it is asked for again.
const STOP_AGAIN: Duration = Duration::from_secs(5);

/// A moment, on all clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For durations.
    pub instant: Instant,
    /// CLOCK_REALTIME microseconds, for people.
    pub realtime_usec: u64,
    /// Time since boot, for what must outlive this process.
    pub uptime: Duration,
}

impl Now {
    fn after(self, delay: Duration) -> Self {
        let usec = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        Self {
            instant: self.instant + delay,
            realtime_usec: self.realtime_usec.saturating_add(usec),
            uptime: self.uptime.saturating_add(delay),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The unit was looked at.
    Seen(Unit),
    /// systemd could not carry out our command, for this reason.
    Failed(String),
    /// A stop that was not ours is done, and the unit is down.
    StoppedByHand,
    /// A start that was not ours is done, and the unit is up.
    StartedByHand,
    /// The needs were looked at; these are not met.
    Needs(Vec<Unmet>),
    /// The deadline may have passed.
    Due,
    /// Somebody wants it started again now.
    Restart,
    /// Somebody wants its tasks to end, within this time, and then no more.
    Drain(Duration),
    /// Somebody takes that back.
    Resume,
    /// No task runs in the unit.
    Idle,
}

/// What systemd is to do, or what is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Start the unit.
    Start,
    /// Stop the unit and start it again.
    Restart,
    /// Stop the unit.
    Stop,
    /// Tell the agent that it is drained, and watch for the end of its tasks.
    Drain,
    /// Watch for the end of its tasks; it has been told.
    Watch,
    /// Watch no longer.
    Unwatch,
}

/// Where it is, and what belongs to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Starting,
    Running {
        from: Instant,
    },
    Delayed {
        until: Now,
        wait: Duration,
    },
    Stopped,
    /// Its tasks may end.
    Draining {
        until: Now,
        budget: Duration,
    },
    /// They have ended, or their time has, and the unit is told to stop.
    Drained {
        until: Now,
        overdue: bool,
    },
    /// The unit is down.
    DrainedDown,
}

/// What agentd keeps of an agent over its own restart, and systemd cannot tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// Whether its unit was up, or was kept down by somebody: if it is down,
    /// then because it was stopped.
    pub launched: bool,
    /// Whether and how it is drained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Ends by itself and failed starts, in a row.
    pub failures: u32,
    /// When the last of them came, CLOCK_MONOTONIC microseconds: it is not
    /// counted twice.
    pub ended_usec: u64,
    /// Why the last start failed or the last run ended.
    pub last_failure: String,
    /// How the last run ended.
    pub last_exit: String,
}

/// A drain, for [`Remembered`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drain {
    /// Its tasks may end until this time since boot.
    Until(Duration),
    /// It is done.
    Done,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub(super) state: State,
    pub(super) since_usec: u64,
    pub(super) unit: Option<Unit>,
    pub(super) unmet: Vec<Unmet>,
    /// All but `drain`, which the state says.
    pub(super) kept: Remembered,
}

impl Instance {
    /// An agent of which nothing is known yet, but what agentd remembers from
    /// before its own restart and what it needs.
    #[must_use]
    pub fn new(remembered: Remembered, unmet: Vec<Unmet>, now: Now) -> Self {
        let state = match remembered.drain {
            None => State::Waiting,
            Some(Drain::Done) => State::DrainedDown,
            Some(Drain::Until(end)) => {
                let budget = end.saturating_sub(now.uptime);
                let until = now.after(budget);
                State::Draining { until, budget }
            }
        };
        Self {
            state,
            since_usec: now.realtime_usec,
            unit: None,
            unmet,
            kept: remembered,
        }
    }

    /// Takes an event, returns what is to be done. `lot` is a random number.
    pub fn handle(&mut self, event: Event, now: Now, lot: u32) -> Option<Command> {
        let command = match event {
            Event::Seen(unit) => self.see(unit, now, lot),
            Event::Failed(why) => {
                self.failed(why, now, lot);
                None
            }
            Event::StoppedByHand => {
                self.kept.launched = true;
                let state = if self.drains() {
                    State::DrainedDown
                } else {
                    State::Stopped
                };
                self.enter(state, now.realtime_usec);
                None
            }
            Event::StartedByHand => {
                let drains = self.drains();
                if drains {
                    self.follow_up(now);
                }
                drains.then_some(Command::Unwatch)
            }
            Event::Needs(unmet) => {
                self.unmet = unmet;
                None
            }
            Event::Due => self.due(now),
            Event::Restart => self.restart(now),
            Event::Drain(budget) => self.drain(budget, now),
            Event::Resume => self.resume(now),
            Event::Idle => match self.state {
                State::Draining { until, .. } => self.end_drain(until, false, now),
                State::Waiting
                | State::Starting
                | State::Running { .. }
                | State::Delayed { .. }
                | State::Stopped
                | State::Drained { .. }
                | State::DrainedDown => None,
            },
        };
        command.or_else(|| self.start(now))
    }

    /// Starts what waits for nothing any more.
    fn start(&mut self, now: Now) -> Option<Command> {
        let startable = matches!(self.phase(), Some(Phase::Down | Phase::Ended));
        if self.state != State::Waiting || !startable || !self.unmet.is_empty() {
            return None;
        }
        self.enter(State::Starting, now.realtime_usec);
        Some(Command::Start)
    }

    fn due(&mut self, now: Now) -> Option<Command> {
        if self
            .deadline()
            .is_none_or(|deadline| deadline > now.instant)
        {
            return None;
        }
        match self.state {
            State::Delayed { .. } => self.enter(State::Waiting, now.realtime_usec),
            State::Running { .. } => self.kept.failures = 0,
            State::Draining { until, .. } => return self.end_drain(until, true, now),
            State::Waiting
            | State::Starting
            | State::Stopped
            | State::Drained { .. }
            | State::DrainedDown => {}
        }
        None
    }

    fn restart(&mut self, now: Now) -> Option<Command> {
        match self.state {
            State::Waiting | State::Starting => None,
            State::Running { .. } | State::Draining { .. } | State::Drained { .. } => {
                self.enter(State::Starting, now.realtime_usec);
                Some(Command::Restart)
            }
            State::Delayed { .. } | State::Stopped | State::DrainedDown => {
                self.want(now);
                None
            }
        }
    }

    /// It is to run again, from the beginning.
    fn want(&mut self, now: Now) {
        self.kept.failures = 0;
        self.kept.launched = false;
        self.enter(State::Waiting, now.realtime_usec);
    }

    fn drain(&mut self, budget: Duration, now: Now) -> Option<Command> {
        let until = now.after(budget);
        match (self.state, self.phase()) {
            // It takes no work already.
            (State::Stopped | State::Drained { .. } | State::DrainedDown, _) => None,
            (State::Draining { .. }, _) => {
                self.enter(State::Draining { until, budget }, now.realtime_usec);
                None
            }
            (State::Running { .. }, _) => {
                self.enter(State::Draining { until, budget }, now.realtime_usec);
                Some(Command::Drain)
            }
            // Nothing that it began can have come far.
            (State::Starting, _)
            | (_, Some(Phase::Ended | Phase::Starting | Phase::Running | Phase::Stopping)) => {
                self.end_drain(until, false, now)
            }
            (State::Waiting | State::Delayed { .. }, Some(Phase::Down)) => {
                self.enter(State::DrainedDown, now.realtime_usec);
                None
            }
            // What is to be done is known when its unit is seen.
            (State::Waiting | State::Delayed { .. }, None) => {
                self.enter(State::Draining { until, budget }, now.realtime_usec);
                None
            }
        }
    }

    fn end_drain(&mut self, until: Now, overdue: bool, now: Now) -> Option<Command> {
        self.enter(State::Drained { until, overdue }, now.realtime_usec);
        Some(Command::Stop)
    }

    fn resume(&mut self, now: Now) -> Option<Command> {
        match self.state {
            State::Draining { .. } if self.unit.is_some() => {
                self.follow_up(now);
                Some(Command::Unwatch)
            }
            State::Draining { .. } => {
                self.enter(State::Waiting, now.realtime_usec);
                None
            }
            // Too late to keep it.
            State::Drained { .. } => {
                self.enter(State::Starting, now.realtime_usec);
                Some(Command::Restart)
            }
            State::DrainedDown => {
                self.want(now);
                None
            }
            State::Waiting
            | State::Starting
            | State::Running { .. }
            | State::Delayed { .. }
            | State::Stopped => None,
        }
    }

    /// It is up although it was to end.
    fn follow_up(&mut self, now: Now) {
        let state = match self.phase() {
            Some(Phase::Running) => State::Running { from: now.instant },
            Some(Phase::Down | Phase::Starting | Phase::Stopping | Phase::Ended) | None => {
                State::Starting
            }
        };
        self.enter(state, now.realtime_usec);
    }

    fn see(&mut self, unit: Unit, now: Now, lot: u32) -> Option<Command> {
        if let Some(exit) = &unit.exit {
            self.kept.last_exit = exit.to_string();
        }
        // One that is on its way down may be so on our behalf, removed from the
        // configuration and put back.
        self.kept.launched |= !matches!(unit.phase, Phase::Down | Phase::Stopping);
        let before = self.unit.replace(unit.clone());
        let news = before
            .as_ref()
            .is_none_or(|before| before.changed_usec != unit.changed_usec);
        if !news {
            return None;
        }
        if self.drains() {
            return self.see_drained(&unit, before.map(|before| before.phase), now);
        }
        match unit.phase {
            // Nothing was there to be stopped: it has not been started yet.
            Phase::Down if self.state == State::Waiting && !self.kept.launched => {}
            Phase::Down => self.enter(State::Stopped, unit.changed_realtime_usec),
            Phase::Starting => self.enter(State::Starting, unit.changed_realtime_usec),
            Phase::Running => {
                self.enter(
                    State::Running { from: now.instant },
                    unit.changed_realtime_usec,
                );
            }
            // Where it ends is not decided yet.
            Phase::Stopping => {}
            Phase::Ended => self.ended(&unit, before.map(|before| before.phase), now, lot),
        }
        None
    }

    /// A unit that is to end, or has.
    fn see_drained(&mut self, unit: &Unit, before: Option<Phase>, now: Now) -> Option<Command> {
        let usec = unit.changed_realtime_usec;
        match (self.state, unit.phase) {
            (_, Phase::Down) => {
                self.enter(State::DrainedDown, usec);
                None
            }
            // It ended by itself, maybe because it was told to: systemd is not to
            // wait for a start.
            (State::Draining { until, .. }, Phase::Ended) => self.end_drain(until, false, now),
            (_, Phase::Ended) => Some(Command::Stop),
            // agentd was away, or it was still on its way up.
            (State::Draining { .. }, Phase::Running) if before != Some(Phase::Running) => {
                Some(Command::Watch)
            }
            // Somebody started it while agentd was away.
            (State::DrainedDown, Phase::Starting | Phase::Running) if before.is_none() => {
                self.follow_up(now);
                None
            }
            (_, Phase::Starting | Phase::Running | Phase::Stopping) => None,
        }
    }

    fn ended(&mut self, unit: &Unit, before: Option<Phase>, now: Now, lot: u32) {
        let why = unit
            .exit
            .as_ref()
            .map_or_else(|| "unknown reasons".into(), ToString::to_string);
        let known = before.is_some_and(|before| before != Phase::Ended);
        if matches!(self.state, State::Delayed { .. }) && known {
            // The failed start came first; this is the same one, in better words.
            self.kept.last_failure = why;
        } else {
            if before.is_none() && self.kept.ended_usec == unit.changed_usec {
                // Counted before agentd was restarted.
                self.kept.failures = self.kept.failures.saturating_sub(1);
            }
            self.delay(why, now, lot);
        }
        self.kept.ended_usec = unit.changed_usec;
    }

    fn failed(&mut self, why: String, now: Now, lot: u32) {
        match (self.state, self.phase()) {
            // A restart that was refused: it goes on.
            (State::Starting, Some(Phase::Running)) => {
                self.enter(State::Running { from: now.instant }, now.realtime_usec);
            }
            (State::Starting, _) => self.delay(why, now, lot),
            // The stop was refused: it is asked for again.
            (State::Drained { .. }, _) => {
                let (until, budget) = (now.after(STOP_AGAIN), STOP_AGAIN);
                self.enter(State::Draining { until, budget }, now.realtime_usec);
            }
            // The unit itself has told more already.
            (
                State::Waiting
                | State::Running { .. }
                | State::Delayed { .. }
                | State::Stopped
                | State::Draining { .. }
                | State::DrainedDown,
                _,
            ) => {}
        }
    }

    fn delay(&mut self, why: String, now: Now, lot: u32) {
        if let State::Running { from } = self.state {
            if now.instant.saturating_duration_since(from) >= HEALTHY {
                self.kept.failures = 0;
            }
        }
        let wait = delay(self.kept.failures, lot);
        self.kept.failures = self.kept.failures.saturating_add(1);
        self.kept.last_failure = why;
        let until = now.after(wait);
        self.enter(State::Delayed { until, wait }, now.realtime_usec);
    }

    fn enter(&mut self, state: State, usec: u64) {
        if word(self.state) != word(state) || matches!(state, State::Delayed { .. }) {
            self.since_usec = usec;
        }
        self.state = state;
    }

    fn phase(&self) -> Option<Phase> {
        self.unit.as_ref().map(|unit| unit.phase)
    }

    pub(super) fn drains(&self) -> bool {
        matches!(
            self.state,
            State::Draining { .. } | State::Drained { .. } | State::DrainedDown
        )
    }

    /// When [`Event::Due`] is to be sent, if ever.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Delayed { until, .. } | State::Draining { until, .. } => Some(until.instant),
            // Then it is in order again.
            State::Running { from } => (self.kept.failures > 0).then(|| from + HEALTHY),
            State::Waiting
            | State::Starting
            | State::Stopped
            | State::Drained { .. }
            | State::DrainedDown => None,
        }
    }

    /// What is to be remembered for [`Instance::new`].
    #[must_use]
    pub fn remember(&self) -> Remembered {
        let drain = match self.state {
            // Not done before the unit is down.
            State::Draining { until, .. } | State::Drained { until, .. } => {
                Some(Drain::Until(until.uptime))
            }
            State::DrainedDown => Some(Drain::Done),
            State::Waiting
            | State::Starting
            | State::Running { .. }
            | State::Delayed { .. }
            | State::Stopped => None,
        };
        Remembered {
            drain,
            ..self.kept.clone()
        }
    }
}

pub(super) const fn word(state: State) -> InstanceState {
    match state {
        State::Waiting => InstanceState::Waiting,
        State::Starting => InstanceState::Starting,
        State::Running { .. } => InstanceState::Running,
        State::Delayed { .. } => InstanceState::Delayed,
        State::Stopped => InstanceState::Stopped,
        State::Draining { .. } => InstanceState::Draining,
        State::Drained { .. } | State::DrainedDown => InstanceState::Drained,
    }
}
