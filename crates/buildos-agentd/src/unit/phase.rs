//! Interprets the state that systemd reports for the unit of an agent.

use crate::unit::exit::Exit;

/// Phase of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Inactive: never started, or stopped on purpose. After an unexpected end the phase
    /// is [`Phase::Ended`]: see `Restart=` in the template units.
    Down,
    /// systemd starts the unit.
    Starting,
    /// The agent runs.
    Running,
    /// systemd stops the unit.
    Stopping,
    /// The agent ended by itself, and the unit waits in `auto-restart`.
    Ended,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 5] = [
        Self::Down,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Ended,
    ];

    /// Interprets `ActiveState` and `SubState`. Returns [`None`] for unknown values: the
    /// next change brings a known one.
    #[must_use]
    pub fn new(active: &str, sub: &str) -> Option<Self> {
        match (active, sub) {
            // Restart=always with RestartSec=infinity. The unit passes through the next
            // two without a pause.
            ("activating", "auto-restart") => Some(Self::Ended),
            (_, "dead-before-auto-restart" | "failed-before-auto-restart") => Some(Self::Stopping),
            ("activating", _) => Some(Self::Starting),
            ("active" | "reloading" | "refreshing", _) => Some(Self::Running),
            ("deactivating", _) => Some(Self::Stopping),
            ("inactive" | "failed", _) => Some(Self::Down),
            _ => None,
        }
    }
}

/// Report of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Phase at the time of the report.
    pub phase: Phase,
    /// Time of the last change, CLOCK_MONOTONIC microseconds; 0 if the unit was never
    /// started. Reports with the same time describe the same state.
    pub changed_usec: u64,
    /// The same time, CLOCK_REALTIME microseconds.
    pub changed_realtime_usec: u64,
    /// Main process, or 0.
    pub main_pid: u32,
    /// Exit status of the last main process, if the unit is down or ended.
    pub exit: Option<Exit>,
    /// systemd's count of starts after an unexpected end.
    pub restarts: u32,
}

impl Unit {
    /// Returns the report of a unit that was not started in this boot.
    #[must_use]
    pub fn never_started() -> Self {
        Self {
            phase: Phase::Down,
            changed_usec: 0,
            changed_realtime_usec: 0,
            main_pid: 0,
            exit: None,
            restarts: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The states of a service in systemd 257 (`service_state_table` in
    /// src/basic/unit-def.c, `state_translation_table` in src/core/service.c).
    #[test]
    fn every_state_of_a_service_has_a_phase() {
        for (active, sub, phase) in [
            ("inactive", "dead", Phase::Down),
            ("activating", "condition", Phase::Starting),
            ("activating", "start-pre", Phase::Starting),
            ("activating", "start", Phase::Starting),
            ("activating", "start-post", Phase::Starting),
            ("active", "running", Phase::Running),
            ("active", "exited", Phase::Running),
            ("refreshing", "refresh", Phase::Running),
            ("reloading", "reload", Phase::Running),
            ("reloading", "reload-signal", Phase::Running),
            ("reloading", "reload-notify", Phase::Running),
            ("refreshing", "mounting", Phase::Running),
            ("deactivating", "stop", Phase::Stopping),
            ("deactivating", "stop-watchdog", Phase::Stopping),
            ("deactivating", "stop-sigterm", Phase::Stopping),
            ("deactivating", "stop-sigkill", Phase::Stopping),
            ("deactivating", "stop-post", Phase::Stopping),
            ("deactivating", "final-watchdog", Phase::Stopping),
            ("deactivating", "final-sigterm", Phase::Stopping),
            ("deactivating", "final-sigkill", Phase::Stopping),
            ("failed", "failed", Phase::Down),
            ("inactive", "dead-before-auto-restart", Phase::Stopping),
            ("failed", "failed-before-auto-restart", Phase::Stopping),
            ("inactive", "dead-resources-pinned", Phase::Down),
            ("activating", "auto-restart", Phase::Ended),
            ("activating", "auto-restart-queued", Phase::Starting),
        ] {
            assert_eq!(Phase::new(active, sub), Some(phase), "{active} ({sub})");
        }
        // While `systemctl clean` runs; the unit becomes inactive after it.
        assert_eq!(Phase::new("maintenance", "cleaning"), None);
    }
}
