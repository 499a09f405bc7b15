//! Limits how often netd reads the kernel because of notifications.
//!
//! A link that flaps causes hundreds of notifications a second, and each reading costs about a
//! millisecond. Notifications are read at once while the budget lasts, which a boot does not use
//! up. After that they wait in the socket, and one reading serves all of them.

use std::time::Duration;

use buildos_dhcp::Instant;

/// Readings at once. A boot with four NICs causes about twenty.
const BURST: u32 = 60;
/// Time that restores one reading. It is also the longest delay of a reading.
const REFILL: Duration = Duration::from_millis(50);

/// The budget of readings.
#[derive(Debug)]
pub struct ChangeBudget {
    left: u32,
    /// Time of the last refill.
    refilled: Instant,
}

impl Default for ChangeBudget {
    fn default() -> Self {
        Self {
            left: BURST,
            refilled: Instant::ZERO,
        }
    }
}

impl ChangeBudget {
    /// Takes a reading from the budget.
    pub fn spend(&mut self, now: Instant) {
        let elapsed = now.saturating_sub(self.refilled);
        let steps = elapsed.as_millis() / REFILL.as_millis();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        if steps > 0 {
            self.left = self.left.saturating_add(steps).min(BURST);
            self.refilled = now;
        }
        self.left = self.left.saturating_sub(1);
    }

    /// Returns the time before which no notification is read; [`None`] while the budget lasts.
    #[must_use]
    pub fn paused_until(&self) -> Option<Instant> {
        (self.left == 0).then(|| self.refilled.saturating_add(REFILL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of readings of notifications that arrive all the time.
    fn readings(budget: &mut ChangeBudget, from: Instant, until: Instant) -> u32 {
        let (mut now, mut readings) = (from, 0);
        while now < until {
            match budget.paused_until().filter(|at| *at > now) {
                Some(at) => now = at,
                None => {
                    budget.spend(now);
                    readings += 1;
                    now += Duration::from_millis(1);
                }
            }
        }
        readings
    }

    #[test]
    fn notifications_of_flapping_link_are_read_twenty_times_a_second() {
        let mut budget = ChangeBudget::default();
        let start = Duration::from_secs(100);
        let first = readings(&mut budget, start, start + Duration::from_secs(1));
        assert!((BURST..BURST + 25).contains(&first), "{first}");
        let later = start + Duration::from_secs(1);
        let next = readings(&mut budget, later, later + Duration::from_secs(10));
        assert!((190..=210).contains(&next), "{next}");
    }

    #[test]
    fn budget_is_full_again_after_three_seconds() {
        let mut budget = ChangeBudget::default();
        let start = Duration::from_secs(100);
        readings(&mut budget, start, start + Duration::from_secs(5));
        let later = start + Duration::from_secs(8);
        for _ in 1..BURST {
            budget.spend(later);
            assert_eq!(budget.paused_until(), None);
        }
    }
}
