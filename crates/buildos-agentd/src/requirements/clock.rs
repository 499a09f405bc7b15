//! Limits the wait for a synchronised clock.
//!
//! With a clock that is far off, agents refuse the certificates of controllers. A host
//! whose time servers do not answer can still build if its hardware clock is right. The
//! wait therefore has a deadline, which begins when the host first comes online.

use std::time::{Duration, Instant};

/// State of the clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Clock {
    /// Not synchronised; agents wait for it.
    #[default]
    Awaited,
    /// The kernel reports the clock as synchronised.
    Synchronised,
    /// Not synchronised at the deadline; agents start anyway.
    GivenUp,
}

/// Wait for a synchronised clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wait {
    clock: Clock,
    /// Time at which the host first came online.
    first_online: Option<Instant>,
}

impl Wait {
    /// Updates the state from the clock and the network.
    pub fn update(
        &mut self,
        synchronised: bool,
        online: bool,
        deadline: Duration,
        now: Instant,
    ) -> Clock {
        if online {
            self.first_online.get_or_insert(now);
        }
        let waited = self
            .first_online
            .map(|since| now.saturating_duration_since(since));
        self.clock = match self.clock {
            // Without time servers the clock stays accurate for hours.
            Clock::Synchronised => Clock::Synchronised,
            Clock::Awaited | Clock::GivenUp if synchronised => Clock::Synchronised,
            Clock::Awaited if waited.is_some_and(|waited| waited >= deadline) => Clock::GivenUp,
            clock @ (Clock::Awaited | Clock::GivenUp) => clock,
        };
        self.clock
    }

    /// Returns true from the time when the host first came online until the deadline.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.clock == Clock::Awaited && self.first_online.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[test]
    fn clock_deadline_begins_online_and_synchronised_is_final() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut wait = Wait::default();
        for (seconds, synchronised, online, clock, runs) in [
            (0, false, false, Clock::Awaited, false),
            (100, false, false, Clock::Awaited, false),
            (101, false, true, Clock::Awaited, true),
            // Going offline does not stop the deadline.
            (120, false, false, Clock::Awaited, true),
            (130, false, false, Clock::Awaited, true),
            (131, false, false, Clock::GivenUp, false),
            (140, false, true, Clock::GivenUp, false),
            // Synchronisation after the deadline.
            (141, true, true, Clock::Synchronised, false),
            (40_000, false, true, Clock::Synchronised, false),
        ] {
            let state = wait.update(synchronised, online, DEADLINE, at(seconds));
            assert_eq!((state, wait.is_running()), (clock, runs), "{seconds}");
        }
    }

    #[test]
    fn clock_synchronised_offline_counts_and_deadline_zero_is_immediate() {
        let now = Instant::now();
        let update = |synchronised, online, deadline| {
            Wait::default().update(synchronised, online, deadline, now)
        };
        assert_eq!(update(true, false, DEADLINE), Clock::Synchronised);
        assert_eq!(update(false, true, Duration::ZERO), Clock::GivenUp);
        assert_eq!(update(false, false, Duration::ZERO), Clock::Awaited);
    }
}
