//! Describes an agent for D-Bus, the journal and `STATUS=`.

use buildos_dbus_api::agent1::{InstanceState, Need};

use super::backoff::CRASH_LOOP;
use super::instance::{Instance, Machines};
use super::table::{DrainDeadline, State};
use crate::machine::tracker::Machine;
use crate::requirements::check::Unmet;

impl Instance {
    /// Returns true if systemd has reported the unit.
    #[must_use]
    pub fn seen(&self) -> bool {
        self.unit.is_some()
    }

    /// Returns true if agentd starts the agent once its requirements are met.
    #[must_use]
    pub fn wanted(&self) -> bool {
        let is_down = self.state.is_drain() || self.state == State::Stopped;
        !is_down || self.drains_for_room().is_some()
    }

    /// Returns why the agent is drained until disks have room again; [`None`] if it is not.
    fn drains_for_room(&self) -> Option<&Unmet> {
        let drains = self.state.is_drain() && self.remembered.disk_shortage;
        let mut unmet = self.unmet.iter().filter(|_| drains);
        unmet.find(|unmet| unmet.need == Need::Disk)
    }

    /// Returns the state that D-Bus shows.
    #[must_use]
    pub fn state(&self) -> InstanceState {
        let invalid = self
            .unmet
            .iter()
            .any(|unmet| unmet.need == Need::Configuration);
        if self.state == State::Waiting && invalid {
            InstanceState::Invalid
        } else {
            self.state.public()
        }
    }

    /// Returns the time of the last change of the state, CLOCK_REALTIME microseconds.
    #[must_use]
    pub fn since_usec(&self) -> u64 {
        self.since_usec
    }

    /// Returns the state and its cause, to follow the name of the agent: `waits: …`.
    #[must_use]
    pub fn reason(&self) -> String {
        match self.state {
            State::Waiting if !self.seen() => "waits: systemd has not answered yet".into(),
            // The first is the likely cause of the others. `Needs` has all.
            State::Waiting => match self.unmet.as_slice() {
                [] => "waits: its unit is being stopped".into(),
                [only] => format!("waits: {only}"),
                [first, others @ ..] => format!("waits: {first} (and {} more)", others.len()),
            },
            State::Starting => "is being started".into(),
            State::Running { .. } if self.crash_loop() => format!(
                "runs as process {}, in a crash loop: {}",
                self.main_pid(),
                self.last_failures()
            ),
            State::Running { .. } => format!("runs as process {}", self.main_pid()),
            State::Delayed { wait, .. } => {
                let verb = if self.crash_loop() {
                    "is in a crash loop"
                } else {
                    "ended"
                };
                let wait = wait.as_secs_f64();
                let failures = self.last_failures();
                format!("{verb}: {failures}; starts again after {wait:.1} s")
            }
            State::Stopped => "was stopped; systemctl start starts it again".into(),
            State::Draining(DrainDeadline { budget, .. }) => format!(
                "drains{}: its tasks have up to {} s to end; remaining tasks are then stopped{}",
                self.for_room(),
                budget.as_secs_f64().ceil(),
                self.machines.in_drain()
            ),
            State::StoppingAfterDrain { overdue: false, .. } => {
                let suspended = self.machines.names(Machine::is_suspended);
                let suspended = match suspended.as_str() {
                    "" => String::new(),
                    names => format!(", and with it suspended {names}"),
                };
                let room = self.for_room();
                format!("is drained{room}; its unit is being stopped{suspended}")
            }
            State::StoppingAfterDrain { overdue: true, .. } => {
                "did not end its tasks in time; its unit is being stopped".into()
            }
            State::Drained if self.drains_for_room().is_some() => {
                format!(
                    "is drained{}; starts again when there is room",
                    self.for_room()
                )
            }
            State::Drained => "is drained; buildosctl resume starts it again".into(),
        }
    }

    /// Returns the disk for which the agent is drained, to follow other text.
    fn for_room(&self) -> String {
        let room = self.drains_for_room();
        room.map_or_else(String::new, |room| format!(" ({room})"))
    }

    /// Returns the cause of the last failure, and the number of failures in a row.
    fn last_failures(&self) -> String {
        match self.remembered.failures {
            0 | 1 => self.remembered.last_failure.clone(),
            n => format!("{}, {n} times in a row", self.remembered.last_failure),
        }
    }

    /// Returns all requirements that are not met, whatever the state.
    #[must_use]
    pub fn unmet(&self) -> &[Unmet] {
        &self.unmet
    }

    /// Returns the machines of the agent.
    #[must_use]
    pub fn machines(&self) -> &Machines {
        &self.machines
    }

    /// Returns systemd's count of starts after an unexpected end.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.unit.as_ref().map_or(0, |unit| unit.restarts)
    }

    /// Returns the number of unexpected ends and failed starts in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.remembered.failures
    }

    /// Returns true if the agent has failed [`CRASH_LOOP`] times in a row.
    #[must_use]
    pub fn crash_loop(&self) -> bool {
        self.remembered.failures >= CRASH_LOOP
    }

    /// Returns the exit status of the last run as text, or an empty string.
    #[must_use]
    pub fn last_exit(&self) -> &str {
        &self.remembered.last_exit
    }

    /// Returns the main process, or 0.
    #[must_use]
    pub fn main_pid(&self) -> u32 {
        self.unit.as_ref().map_or(0, |unit| unit.main_pid)
    }

    /// Returns the time of the next start, CLOCK_REALTIME microseconds, or 0.
    #[must_use]
    pub fn next_start_usec(&self) -> u64 {
        match self.state {
            State::Delayed { until, .. } => until.realtime_usec,
            State::Waiting
            | State::Starting
            | State::Running { .. }
            | State::Stopped
            | State::Draining(_)
            | State::StoppingAfterDrain { .. }
            | State::Drained => 0,
        }
    }

    /// Returns the deadline of the tasks in a drain, CLOCK_REALTIME microseconds, or 0.
    #[must_use]
    pub fn drain_deadline_usec(&self) -> u64 {
        match self.state {
            State::Draining(DrainDeadline { until, .. }) => until.realtime_usec,
            State::Waiting
            | State::Starting
            | State::Running { .. }
            | State::Delayed { .. }
            | State::Stopped
            | State::StoppingAfterDrain { .. }
            | State::Drained => 0,
        }
    }
}

impl Machines {
    /// Returns the names of the machines with a property, separated by commas.
    fn names(&self, has: fn(&Machine) -> bool) -> String {
        let names = self.list.iter().filter(|machine| has(machine));
        names.map(Machine::name).collect::<Vec<_>>().join(", ")
    }

    /// Returns which machines a drain waits for, to follow other text.
    fn in_drain(&self) -> String {
        let mut text = String::new();
        let running = self.names(|machine| !machine.is_suspended());
        if !running.is_empty() {
            text.push_str(&format!("; waits for {running}"));
            if self.interactive {
                text.push_str(" (a person can be logged in)");
            }
        }
        let suspended = self.names(Machine::is_suspended);
        if !suspended.is_empty() {
            let waits = match self.leaves_suspended {
                true => "does not wait",
                false => "waits",
            };
            text.push_str(&format!("; {waits} for suspended {suspended}"));
        }
        text
    }
}
