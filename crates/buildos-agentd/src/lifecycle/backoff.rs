//! Computes the delay before an agent that ended is started again.

use std::time::Duration;

/// Delay after the first failure: a program that ends at once does not keep the host
/// busy, and an accidental end costs little.
pub const FIRST: Duration = Duration::from_secs(1);
/// Upper limit of the delay. agentd never gives up, and a start this often costs little.
pub const LONGEST: Duration = Duration::from_secs(300);
/// Length of a run that resets the failure count.
pub const HEALTHY: Duration = Duration::from_secs(600);

/// Number of failures in a row that is a crash loop. The second may share the cause of
/// the first; the third shows that the cause persists.
pub const CRASH_LOOP: u32 = 3;

/// Returns the delay after `failures` previous failures in a row. It doubles from
/// [`FIRST`] to [`LONGEST`]. `jitter`, a random number, spreads it over the upper half,
/// so that agents that ended together start at different times.
#[must_use]
pub fn backoff(failures: u32, jitter: u32) -> Duration {
    let doubled = 2u32.saturating_pow(failures);
    let ceiling = FIRST.saturating_mul(doubled).min(LONGEST);
    let half = ceiling / 2;
    half + half.mul_f64(f64::from(jitter) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn backoff_doubles_up_to_limit() {
        let longest: Vec<_> = (0..11).map(|n| backoff(n, u32::MAX).as_secs()).collect();
        assert_eq!(longest, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(backoff(0, 0), FIRST / 2);
    }

    proptest! {
        #[test]
        fn backoff_is_bounded(failures: u32, jitter: u32) {
            let delay = backoff(failures, jitter);
            prop_assert!(delay >= FIRST / 2 && delay <= LONGEST);
        }
    }
}
