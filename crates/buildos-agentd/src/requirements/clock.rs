//! How long agents wait for a clock that is right.
//!
//! With one that is far off, certificates of controllers are refused. But a host whose
//! time servers do not answer builds all the same when its clock is right by itself:
//! nobody is waited for longer than a deadline, which begins when there is a network.

use std::time::{Duration, Instant};

/// What is known of the clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Clock {
    /// Nobody has set it yet, and somebody may.
    #[default]
    Awaited,
    /// It agrees with a server.
    Synchronised,
    /// It was waited for long enough.
    GivenUp,
}

/// Waiting for the clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wait {
    clock: Clock,
    /// Since when there has been a network, and somebody to set the clock.
    online: Option<Instant>,
}

impl Wait {
    /// Takes a look at the clock and the network, returns what is known then.
    pub fn look(
        &mut self,
        synchronised: bool,
        online: bool,
        deadline: Duration,
        now: Instant,
    ) -> Clock {
        if online {
            self.online.get_or_insert(now);
        }
        let waited = self
            .online
            .map(|since| now.saturating_duration_since(since));
        self.clock = match self.clock {
            // Servers that are away for hours do not make it wrong again.
            Clock::Synchronised => Clock::Synchronised,
            Clock::Awaited | Clock::GivenUp if synchronised => Clock::Synchronised,
            Clock::Awaited if waited.is_some_and(|waited| waited >= deadline) => Clock::GivenUp,
            clock @ (Clock::Awaited | Clock::GivenUp) => clock,
        };
        self.clock
    }

    /// Whether the time runs.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.clock == Clock::Awaited && self.online.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[test]
    fn the_time_runs_from_the_first_network_and_what_was_right_stays_so() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut wait = Wait::default();
        for (seconds, synchronised, online, clock, runs) in [
            (0, false, false, Clock::Awaited, false),
            (100, false, false, Clock::Awaited, false),
            (101, false, true, Clock::Awaited, true),
            // A network that was there is enough.
            (120, false, false, Clock::Awaited, true),
            (130, false, false, Clock::Awaited, true),
            (131, false, false, Clock::GivenUp, false),
            (140, false, true, Clock::GivenUp, false),
            // Late, and not too late.
            (141, true, true, Clock::Synchronised, false),
            (40_000, false, true, Clock::Synchronised, false),
        ] {
            let known = wait.look(synchronised, online, DEADLINE, at(seconds));
            assert_eq!((known, wait.runs()), (clock, runs), "{seconds}");
        }
    }

    #[test]
    fn nobody_needs_a_network_for_a_clock_that_is_right_nor_a_deadline_of_zero() {
        let now = Instant::now();
        let look = |synchronised, online, deadline| {
            Wait::default().look(synchronised, online, deadline, now)
        };
        assert_eq!(look(true, false, DEADLINE), Clock::Synchronised);
        assert_eq!(look(false, true, Duration::ZERO), Clock::GivenUp);
        assert_eq!(look(false, false, Duration::ZERO), Clock::Awaited);
    }
}
