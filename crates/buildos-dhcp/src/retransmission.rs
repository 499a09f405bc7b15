//! Computes the delays before a message is sent again or a search begins again.
//!
//! | function | after | delays |
//! |---|---|---|
//! | [`discovery_delay`] | DISCOVER | 0.1, 0.4, 1, 2, 2 … s; after two minutes 8, 16, 32, 64 s |
//! | [`confirmation_delay`] | REQUEST in REBOOTING | 0.02 s, then as a DISCOVER |
//! | [`request_delay`] | REQUEST for an OFFER | 1, 2, 4, 4 … s |
//! | [`renewal_delay`] | REQUEST in RENEWING, REBINDING | half of the remaining time, at least a minute |
//! | [`nak_delay`] | NAKs in a row | 0, 1, 2, 4 … 64 s |
//! | [`conflict_delay`] | DECLINEs in a row | 10, 20 s |

use core::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// Duration of the short delays of a search. Most silences at boot are short: a switch
/// port begins to forward, or a server restarts. With the doubling of the RFC a host
/// would be off the network up to a minute longer.
const EAGER: Duration = Duration::from_secs(120);
/// RFC 2131, section 4.1: delays double up to 64 s.
const LONGEST: Duration = Duration::from_secs(64);
/// RFC 2131, section 4.4.5: the shortest delay between renewals. A shorter lease gets
/// its [`RENEWAL_FRACTION`] instead.
const RENEWAL_MINIMUM: Duration = Duration::from_secs(60);
const RENEWAL_FRACTION: u32 = 32;

/// Delay after the first REQUEST of a confirmation. A server answers it from memory within a
/// few milliseconds, and a second REQUEST costs a server nothing.
const FIRST_CONFIRMATION: Duration = Duration::from_millis(20);
/// Longest delay of the first two minutes. A server that comes back gets a DISCOVER after
/// 1 s in the median.
const EAGER_LONGEST: u32 = 2;

/// Returns the delay after message number `sent` (from 1) of a search that began `elapsed`
/// ago.
///
/// The first two are short because the first message is often lost. A port of a switch
/// or a bridge begins to forward some milliseconds after carrier.
pub(crate) fn discovery_delay(sent: u32, elapsed: Duration) -> Duration {
    if elapsed < EAGER {
        match sent {
            0 | 1 => SECOND / 10,
            2 => SECOND * 2 / 5,
            more => SECOND * (more - 2).min(EAGER_LONGEST),
        }
    } else {
        // Each step of the doubling lasts as long as all steps before it.
        let past = elapsed.saturating_sub(EAGER);
        past.saturating_add(8 * SECOND).min(LONGEST)
    }
}

/// Returns the delay after REQUEST number `sent` (from 1) of a confirmation that began
/// `elapsed` ago.
///
/// The host has its address meanwhile, but its network waits for the confirmation. A search
/// has no such short delay: a second DISCOVER can make a server check a second address.
pub(crate) fn confirmation_delay(sent: u32, elapsed: Duration) -> Duration {
    match sent {
        0 | 1 => FIRST_CONFIRMATION,
        more => discovery_delay(more - 1, elapsed),
    }
}

/// Returns the delay after REQUEST number `sent` (from 1) for an OFFER. A server that
/// has just made an OFFER answers soon or not at all.
pub(crate) fn request_delay(sent: u32) -> Duration {
    SECOND * (1 << sent.saturating_sub(1).min(2))
}

/// Returns the delay after an unanswered REQUEST in RENEWING or REBINDING.
///
/// It is half of `remaining`, the time until the next state, but at least a minute. For
/// a short `lease` the minimum is a fraction of the lease.
pub(crate) fn renewal_delay(remaining: Option<Duration>, lease: Option<Duration>) -> Duration {
    let least = lease.map_or(RENEWAL_MINIMUM, |lease| {
        (lease / RENEWAL_FRACTION).clamp(SECOND, RENEWAL_MINIMUM)
    });
    remaining.map_or(least, |remaining| (remaining / 2).max(least))
}

/// Returns the delay before a new search after `naks` NAKs in a row. The first NAK is
/// usual after a move to another network; several in a row are a loop.
pub(crate) fn nak_delay(naks: u32) -> Duration {
    match naks {
        0 | 1 => Duration::ZERO,
        more => (SECOND * (1 << (more - 2).min(6))).min(LONGEST),
    }
}

/// Time without a conflict after which the count of [`conflict_delay`] starts again.
pub(crate) const CONFLICT_MEMORY: Duration = Duration::from_secs(600);

/// Returns the delay before a new search after `conflicts` DECLINEs in a row.
///
/// It starts at the 10 s of RFC 2131, section 3.1, step 5, and doubles.
pub(crate) fn conflict_delay(conflicts: u32) -> Duration {
    10 * SECOND * (1 << conflicts.saturating_sub(1).min(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(value: u64) -> Duration {
        Duration::from_secs(value)
    }

    #[test]
    fn discovery_delay_is_short_for_two_minutes_then_doubles() {
        let delays = |elapsed| {
            [1, 2, 3, 4, 5, 6, u32::MAX].map(|sent| discovery_delay(sent, elapsed).as_millis())
        };
        let eager = [100, 400, 1000, 2000, 2000, 2000, 2000];
        assert_eq!(delays(Duration::ZERO), eager);
        assert_eq!(delays(seconds(119)), eager);
        for (elapsed, delay) in [(120, 8), (128, 16), (144, 32), (176, 64), (10_000, 64)] {
            assert_eq!(
                discovery_delay(50, seconds(elapsed)),
                seconds(delay),
                "after {elapsed}"
            );
        }
        assert_eq!(discovery_delay(50, Duration::MAX), LONGEST);
        assert_eq!(discovery_delay(0, Duration::ZERO), SECOND / 10);
    }

    #[test]
    fn confirmation_delay_is_twenty_milliseconds_then_that_of_discovery() {
        let delays =
            [0, 1, 2, 3, 4, 5, 6].map(|sent| confirmation_delay(sent, Duration::ZERO).as_millis());
        assert_eq!(delays, [20, 20, 100, 400, 1000, 2000, 2000]);
    }

    #[test]
    fn request_delay_doubles_to_four_seconds() {
        let delays = [0, 1, 2, 3, 4, u32::MAX].map(request_delay);
        assert_eq!(delays, [1, 1, 2, 4, 4, 4].map(seconds));
    }

    #[test]
    fn renewal_delay_is_half_of_remaining_time_with_minimum() {
        for (remaining, lease, delay) in [
            (Some(1000), Some(86_400), 500),
            (Some(100), Some(86_400), 60),
            (Some(0), Some(86_400), 60),
            (Some(100), Some(640), 50),
            (Some(10), Some(640), 20),
            (Some(1), Some(8), 1),
            (None, None, 60),
        ] {
            let found = renewal_delay(remaining.map(seconds), lease.map(seconds));
            assert_eq!(found, seconds(delay), "{remaining:?} of {lease:?}");
        }
    }

    #[test]
    fn nak_delay_is_zero_then_doubles_to_64_seconds() {
        let delays = [1, 2, 3, 4, 8, 9, u32::MAX].map(nak_delay);
        assert_eq!(delays, [0, 1, 2, 4, 64, 64, 64].map(seconds));
    }

    #[test]
    fn conflict_delay_doubles_from_ten_seconds() {
        let delays = [0, 1, 2, u32::MAX].map(conflict_delay);
        assert_eq!(delays, [10, 10, 20, 20].map(seconds));
    }
}
