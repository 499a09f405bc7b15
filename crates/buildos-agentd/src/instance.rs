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
//!     ^                  |    ^                      |
//!     | a need is        |    | time is up,          | ended by itself
//!     | not met          |    | needs met            |
//!     +---------------- delayed <--------------------+
//!
//!  any state: unit stopped by somebody -> stopped; unit started by somebody
//!  -> starting, running; `Restart` -> starting, or waiting for the needs
//! ```

use std::time::{Duration, Instant};

use buildos_dbus_api::agent1::InstanceState;

use crate::delay::{HEALTHY, delay};
use crate::exit::Exit;
use crate::needs::{Need, Unmet};
use crate::unit::{Phase, Unit};

/// A moment, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For durations.
    pub instant: Instant,
    /// CLOCK_REALTIME microseconds, for people.
    pub realtime_usec: u64,
}

impl Now {
    fn after(self, delay: Duration) -> Self {
        let usec = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        Self {
            instant: self.instant + delay,
            realtime_usec: self.realtime_usec.saturating_add(usec),
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
    /// The needs were looked at; these are not met.
    Needs(Vec<Unmet>),
    /// The deadline may have passed.
    Due,
    /// Somebody wants it started again now.
    Restart,
}

/// What systemd is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Start the unit.
    Start,
    /// Stop the unit and start it again.
    Restart,
}

/// Where it is, and what belongs to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Starting,
    Running { from: Instant },
    Delayed { until: Now, wait: Duration },
    Stopped,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    state: State,
    since_usec: u64,
    /// Whether its unit was up, or was kept down by somebody: if it is down, then
    /// because it was stopped.
    launched: bool,
    unit: Option<Unit>,
    unmet: Vec<Unmet>,
    /// Ends by itself and failed starts, in a row.
    failures: u32,
    /// Why the last start failed or the last run ended.
    last_failure: String,
    last_exit: Option<Exit>,
}

impl Instance {
    /// An agent of which nothing is known yet, but what agentd remembers from
    /// before its own restart (see [`Instance::launched`]) and what it needs.
    #[must_use]
    pub fn new(launched: bool, unmet: Vec<Unmet>, now: Now) -> Self {
        Self {
            state: State::Waiting,
            since_usec: now.realtime_usec,
            launched,
            unit: None,
            unmet,
            failures: 0,
            last_failure: String::new(),
            last_exit: None,
        }
    }

    /// Takes an event, returns what is to be done. `lot` is a random number.
    pub fn handle(&mut self, event: Event, now: Now, lot: u32) -> Option<Command> {
        match event {
            Event::Seen(unit) => self.see(unit, now, lot),
            Event::Failed(why) => self.failed(why, now, lot),
            Event::StoppedByHand => {
                self.launched = true;
                self.enter(State::Stopped, now.realtime_usec);
            }
            Event::Needs(unmet) => self.unmet = unmet,
            Event::Due => {
                if self
                    .deadline()
                    .is_some_and(|deadline| deadline <= now.instant)
                {
                    self.enter(State::Waiting, now.realtime_usec);
                }
            }
            Event::Restart => match self.state {
                State::Waiting | State::Starting => {}
                State::Running { .. } => {
                    self.enter(State::Starting, now.realtime_usec);
                    return Some(Command::Restart);
                }
                State::Delayed { .. } | State::Stopped => {
                    self.failures = 0;
                    self.launched = false;
                    self.enter(State::Waiting, now.realtime_usec);
                }
            },
        }
        self.start(now)
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

    fn see(&mut self, unit: Unit, now: Now, lot: u32) {
        if unit.exit.is_some() {
            self.last_exit.clone_from(&unit.exit);
        }
        // One that is on its way down may be so on our behalf, removed from the
        // configuration and put back.
        self.launched |= !matches!(unit.phase, Phase::Down | Phase::Stopping);
        let before = self.unit.replace(unit.clone());
        let news = before
            .as_ref()
            .is_none_or(|before| before.changed_usec != unit.changed_usec);
        if !news {
            return;
        }
        match unit.phase {
            // Nothing was there to be stopped: it has not been started yet.
            Phase::Down if self.state == State::Waiting && !self.launched => {}
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
            Phase::Ended => {
                let why = unit
                    .exit
                    .as_ref()
                    .map_or_else(|| "unknown reasons".into(), ToString::to_string);
                let counted = matches!(self.state, State::Delayed { .. })
                    && before.is_some_and(|before| before.phase != Phase::Ended);
                if counted {
                    // The failed start came first; this is the same one, in better words.
                    self.last_failure = why;
                } else {
                    self.delay(why, now, lot);
                }
            }
        }
    }

    fn failed(&mut self, why: String, now: Now, lot: u32) {
        match (self.state, self.phase()) {
            // A restart that was refused: it goes on.
            (State::Starting, Some(Phase::Running)) => {
                self.enter(State::Running { from: now.instant }, now.realtime_usec);
            }
            (State::Starting, _) => self.delay(why, now, lot),
            // The unit itself has told more already.
            (
                State::Waiting | State::Running { .. } | State::Delayed { .. } | State::Stopped,
                _,
            ) => {}
        }
    }

    fn delay(&mut self, why: String, now: Now, lot: u32) {
        if let State::Running { from } = self.state {
            if now.instant.saturating_duration_since(from) >= HEALTHY {
                self.failures = 0;
            }
        }
        let wait = delay(self.failures, lot);
        self.failures = self.failures.saturating_add(1);
        self.last_failure = why;
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

    /// When [`Event::Due`] is to be sent, if ever.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Delayed { until, .. } => Some(until.instant),
            State::Waiting | State::Starting | State::Running { .. } | State::Stopped => None,
        }
    }

    /// What is to be remembered: whether a unit that is down was stopped, or has
    /// not been started yet in this boot.
    #[must_use]
    pub fn launched(&self) -> bool {
        self.launched
    }

    /// Whether systemd has told about its unit.
    #[must_use]
    pub fn seen(&self) -> bool {
        self.unit.is_some()
    }

    /// State for the bus.
    #[must_use]
    pub fn state(&self) -> InstanceState {
        let invalid = self
            .unmet
            .iter()
            .any(|unmet| unmet.need == Need::Configuration);
        if self.state == State::Waiting && invalid {
            InstanceState::Invalid
        } else {
            word(self.state)
        }
    }

    /// When it came into its state, CLOCK_REALTIME microseconds.
    #[must_use]
    pub fn since_usec(&self) -> u64 {
        self.since_usec
    }

    /// What it does or waits for, to stand behind its name: `waits: …`.
    #[must_use]
    pub fn reason(&self) -> String {
        match self.state {
            State::Waiting if !self.seen() => "waits: systemd has not answered yet".into(),
            // The first is the likely cause of the others; all are in `Needs`.
            State::Waiting => match self.unmet.as_slice() {
                [] => "waits: its unit is being stopped".into(),
                [one] => format!("waits: {one}"),
                [first, others @ ..] => format!("waits: {first} (and {} more)", others.len()),
            },
            State::Starting => "is being started".into(),
            State::Running { .. } => format!("runs as process {}", self.main_pid()),
            State::Delayed { wait, .. } => {
                let row = match self.failures {
                    0 | 1 => String::new(),
                    n => format!(", {n} times in a row"),
                };
                format!(
                    "ended: {}{row}; starts again after {:.1} s",
                    self.last_failure,
                    wait.as_secs_f64()
                )
            }
            State::Stopped => "was stopped; systemctl start starts it again".into(),
        }
    }

    /// Needs that are not met, whether it waits for them or not.
    #[must_use]
    pub fn unmet(&self) -> &[Unmet] {
        &self.unmet
    }

    /// Starts after it had ended by itself, counted by systemd.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.unit.as_ref().map_or(0, |unit| unit.restarts)
    }

    /// How it last ended, in words, or empty.
    #[must_use]
    pub fn last_exit(&self) -> String {
        self.last_exit
            .as_ref()
            .map_or_else(String::new, ToString::to_string)
    }

    /// Main process, or 0.
    #[must_use]
    pub fn main_pid(&self) -> u32 {
        self.unit.as_ref().map_or(0, |unit| unit.main_pid)
    }

    /// When it is started again, CLOCK_REALTIME microseconds, or 0.
    #[must_use]
    pub fn next_start_usec(&self) -> u64 {
        match self.state {
            State::Delayed { until, .. } => until.realtime_usec,
            State::Waiting | State::Starting | State::Running { .. } | State::Stopped => 0,
        }
    }
}

const fn word(state: State) -> InstanceState {
    match state {
        State::Waiting => InstanceState::Waiting,
        State::Starting => InstanceState::Starting,
        State::Running { .. } => InstanceState::Running,
        State::Delayed { .. } => InstanceState::Delayed,
        State::Stopped => InstanceState::Stopped,
    }
}
