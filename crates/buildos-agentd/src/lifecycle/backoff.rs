//! How long an agent that ended stays down.

use std::time::Duration;

/// Before the first new start. A build host with a program that ends at once
/// stays responsive; one that ended by accident is hardly missed.
pub const FIRST: Duration = Duration::from_secs(1);
/// Before any new start: an agent is never given up, and this often is cheap.
pub const LONGEST: Duration = Duration::from_secs(300);
/// Who ran this long is taken to be in order: the next end counts as the first.
pub const HEALTHY: Duration = Duration::from_secs(600);

/// Who ended that often in a row is in a crash loop: the second end may still
/// have had the cause of the first, the third says that it stays.
pub const CRASH_LOOP: u32 = 3;

/// The delay after that many failures in a row before this one. It doubles from
/// [`FIRST`] to [`LONGEST`]; its second half is drawn by lot (`lot` is a random
/// number), so that agents that ended together do not come back together.
#[must_use]
pub fn delay(failures: u32, lot: u32) -> Duration {
    let doubled = 2u32.saturating_pow(failures);
    let ceiling = FIRST.saturating_mul(doubled).min(LONGEST);
    let half = ceiling / 2;
    half + half.mul_f64(f64::from(lot) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_doubles_up_to_a_limit() {
        let longest: Vec<_> = (0..11).map(|n| delay(n, u32::MAX).as_secs()).collect();
        assert_eq!(longest, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(delay(0, 0), FIRST / 2);
    }

    proptest! {
        #[test]
        fn it_is_bounded(failures: u32, lot: u32) {
            let delay = delay(failures, lot);
            prop_assert!(delay >= FIRST / 2 && delay <= LONGEST);
        }
    }
}
