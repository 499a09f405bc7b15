//! What one agent shows: its state in words and numbers, for the bus, the journal and
//! `STATUS=`.

use buildos_dbus_api::agent1::{InstanceState, Need};

use crate::lifecycle::backoff::CRASH_LOOP;
use crate::lifecycle::instance::{Instance, State, word};
use crate::requirements::check::Unmet;

impl Instance {
    /// Whether systemd has told about its unit.
    #[must_use]
    pub fn seen(&self) -> bool {
        self.unit.is_some()
    }

    /// Whether it is to run as soon as its needs are met.
    #[must_use]
    pub fn wanted(&self) -> bool {
        !self.drains() && self.state != State::Stopped
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
            State::Running { .. } if self.crash_loop() => format!(
                "runs as process {}, in a crash loop: {}",
                self.main_pid(),
                self.row()
            ),
            State::Running { .. } => format!("runs as process {}", self.main_pid()),
            State::Delayed { wait, .. } => {
                let verb = if self.crash_loop() {
                    "is in a crash loop"
                } else {
                    "ended"
                };
                let wait = wait.as_secs_f64();
                format!("{verb}: {}; starts again after {wait:.1} s", self.row())
            }
            State::Stopped => "was stopped; systemctl start starts it again".into(),
            State::Draining { budget, .. } => format!(
                "drains: its tasks have up to {} s to end, then it is stopped with what still runs",
                budget.as_secs_f64().ceil()
            ),
            State::Drained { overdue: false, .. } => "is drained; its unit is being stopped".into(),
            State::Drained { overdue: true, .. } => {
                "did not end its tasks in time; its unit is being stopped".into()
            }
            State::DrainedDown => "is drained; buildosctl resume starts it again".into(),
        }
    }

    /// The last failure, and which one in a row it is.
    fn row(&self) -> String {
        match self.kept.failures {
            0 | 1 => self.kept.last_failure.clone(),
            n => format!("{}, {n} times in a row", self.kept.last_failure),
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

    /// Ends by itself and failed starts, in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.kept.failures
    }

    /// Whether it ends again and again.
    #[must_use]
    pub fn crash_loop(&self) -> bool {
        self.kept.failures >= CRASH_LOOP
    }

    /// How it last ended, in words, or empty.
    #[must_use]
    pub fn last_exit(&self) -> &str {
        &self.kept.last_exit
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
            State::Waiting
            | State::Starting
            | State::Running { .. }
            | State::Stopped
            | State::Draining { .. }
            | State::Drained { .. }
            | State::DrainedDown => 0,
        }
    }

    /// Until when its tasks may end, CLOCK_REALTIME microseconds, or 0.
    #[must_use]
    pub fn drain_deadline_usec(&self) -> u64 {
        match self.state {
            State::Draining { until, .. } => until.realtime_usec,
            State::Waiting
            | State::Starting
            | State::Running { .. }
            | State::Delayed { .. }
            | State::Stopped
            | State::Drained { .. }
            | State::DrainedDown => 0,
        }
    }
}
