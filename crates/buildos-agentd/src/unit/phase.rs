//! What systemd says about the unit of an agent.

use crate::unit::exit::Exit;

/// Where a unit is in its life, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing runs: never started, or stopped on purpose. A service that ends
    /// by itself is not here but in [`Phase::Ended`], see the template units.
    Down,
    /// On its way up.
    Starting,
    /// The agent runs.
    Running,
    /// On its way down.
    Stopping,
    /// The agent ended by itself and systemd waits for us to start it again.
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

    /// From `ActiveState` and `SubState`; [`None`] for words of a systemd that
    /// we do not know, whose next ones we wait for.
    #[must_use]
    pub fn new(active: &str, sub: &str) -> Option<Self> {
        match (active, sub) {
            // With Restart= and a RestartSec= that never passes. The two before
            // it are passed through without a pause.
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

/// A look at a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Where it is.
    pub phase: Phase,
    /// When it came there, CLOCK_MONOTONIC microseconds; 0 when it was never
    /// anywhere else. Two looks with the same stamp saw the same thing.
    pub changed_usec: u64,
    /// The same on CLOCK_REALTIME.
    pub changed_realtime_usec: u64,
    /// Main process, or 0.
    pub main_pid: u32,
    /// How the main process ended, unless there is one or there never was one.
    pub exit: Option<Exit>,
    /// Starts after an end by itself, counted by systemd.
    pub restarts: u32,
}

impl Unit {
    /// One that has not been started in this boot, of which there is nothing more to know.
    #[must_use]
    pub fn never_up() -> Self {
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
        // While `systemctl clean` works: it will be inactive in a moment.
        assert_eq!(Phase::new("maintenance", "cleaning"), None);
    }
}
