//! When to send again.

use core::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// How long a search uses short gaps. Most silences at boot are short (a switch
/// port that starts to forward, a server that restarts), and a host that waits
/// 64 s by then is off the network a minute longer than needed.
const EAGER: Duration = Duration::from_secs(120);
/// RFC 2131, section 4.1: delays double up to 64 s.
const LONGEST: Duration = Duration::from_secs(64);
/// RFC 2131, section 4.4.5: the shortest gap between renewals. A lease too short
/// for it gets a part of its time instead.
const RENEWAL_GAP: Duration = Duration::from_secs(60);
const RENEWAL_PART: u32 = 32;

/// Random numbers for transaction ids and jitter: xorshift64* (Marsaglia 2003,
/// Vigna 2016). No secret hangs on them, but hosts that start together must not
/// stay in step: the seed has to come from the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves.
        Self(if seed == 0 {
            0x9e37_79b9_7f4a_7c15
        } else {
            seed
        })
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        // The upper half is the better one; it fits.
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// `gap`, give or take a tenth, and at most the second of the RFC.
    pub(crate) fn jitter(&mut self, gap: Duration) -> Duration {
        let most = (gap / 10).min(SECOND);
        let thousandths = self.next() % 2001;
        (gap - most) + most * thousandths / 1000
    }
}

/// The gap after message number `sent` (1 is the first) of a search or confirmation
/// that began `elapsed` ago: 0.1, 0.4, 1, 2, 3, 3 … s in the first two minutes, then
/// 8, 16, 32, 64, 64 … s.
///
/// The first two are short because the first message is often lost: the port of a
/// switch, or of a bridge, forwards some milliseconds after the link has carrier.
/// With 3 s a server that comes back has waited for us 1.5 s in the median.
pub(crate) fn discovery_gap(sent: u32, elapsed: Duration) -> Duration {
    if elapsed < EAGER {
        match sent {
            0 | 1 => SECOND / 10,
            2 => SECOND * 2 / 5,
            more => SECOND * (more - 2).min(3),
        }
    } else {
        // Each step of the doubling lasts as long as all before it.
        let past = elapsed.saturating_sub(EAGER);
        past.saturating_add(8 * SECOND).min(LONGEST)
    }
}

/// The gap after REQUEST number `sent` for an OFFER: 1, 2, 4, 4 … s. Whoever is asked
/// for what it just offered answers soon, or not at all.
pub(crate) fn request_gap(sent: u32) -> Duration {
    SECOND * (1 << sent.saturating_sub(1).min(2))
}

/// The gap after an unanswered REQUEST in RENEWING or REBINDING: half of what
/// `remains` until the next state, but not shorter than a minute, or than a part
/// of the lease when that is less.
pub(crate) fn renewal_gap(remains: Option<Duration>, lease: Option<Duration>) -> Duration {
    let least = lease.map_or(RENEWAL_GAP, |lease| {
        (lease / RENEWAL_PART).clamp(SECOND, RENEWAL_GAP)
    });
    remains.map_or(least, |remains| (remains / 2).max(least))
}

/// How long to wait before a new search after `naks` NAKs in a row. The first is
/// the normal end of a lease that moved; the next ones are a loop.
pub(crate) fn nak_gap(naks: u32) -> Duration {
    match naks {
        0 | 1 => Duration::ZERO,
        more => (SECOND * (1 << (more - 2).min(6))).min(LONGEST),
    }
}

/// How long after a conflict the next one counts as one of the same row.
pub(crate) const CONFLICTS_FORGOTTEN: Duration = Duration::from_secs(600);

/// How long to rest after `conflicts` DECLINEs in a row: 10 s, the least of RFC 2131,
/// section 3.1, step 5, then doubled up to a minute, the RATE_LIMIT_INTERVAL of RFC
/// 5227. Each one costs the server an address: whoever answers ARP for all of them
/// must not have the pool emptied.
pub(crate) fn conflict_gap(conflicts: u32) -> Duration {
    (10 * SECOND * (1 << conflicts.saturating_sub(1).min(3))).min(60 * SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(value: u64) -> Duration {
        Duration::from_secs(value)
    }

    #[test]
    fn random_numbers_differ_from_any_seed() {
        for seed in [0, 1, u64::MAX] {
            let mut random = Random::new(seed);
            let mut seen: Vec<u32> = (0..1000).map(|_| random.next()).collect();
            seen.sort_unstable();
            seen.dedup();
            assert!(seen.len() > 990, "{seed}");
        }
    }

    #[test]
    fn jitter_is_a_tenth_and_at_most_a_second() {
        let mut random = Random::new(7);
        for (gap, most) in [(1, 100), (4, 400), (8, 800), (64, 1000)] {
            let (gap, most) = (seconds(gap), Duration::from_millis(most));
            let gaps: Vec<Duration> = (0..1000).map(|_| random.jitter(gap)).collect();
            let (least, greatest) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
            assert!(*least >= gap - most && *least < gap - most * 9 / 10);
            assert!(*greatest <= gap + most && *greatest > gap + most * 9 / 10);
        }
        assert_eq!(random.jitter(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn discovery_gaps() {
        let gaps = |elapsed| {
            [1, 2, 3, 4, 5, 6, u32::MAX].map(|sent| discovery_gap(sent, elapsed).as_millis())
        };
        let eager = [100, 400, 1000, 2000, 3000, 3000, 3000];
        assert_eq!(gaps(Duration::ZERO), eager);
        assert_eq!(gaps(seconds(119)), eager);
        for (elapsed, gap) in [(120, 8), (128, 16), (144, 32), (176, 64), (10_000, 64)] {
            assert_eq!(
                discovery_gap(50, seconds(elapsed)),
                seconds(gap),
                "after {elapsed}"
            );
        }
        assert_eq!(discovery_gap(50, Duration::MAX), LONGEST);
        assert_eq!(discovery_gap(0, Duration::ZERO), SECOND / 10);
    }

    #[test]
    fn request_gaps() {
        let gaps = [0, 1, 2, 3, 4, u32::MAX].map(request_gap);
        assert_eq!(gaps, [1, 1, 2, 4, 4, 4].map(seconds));
    }

    #[test]
    fn renewal_gaps() {
        for (remains, lease, gap) in [
            (Some(1000), Some(86_400), 500),
            (Some(100), Some(86_400), 60),
            (Some(0), Some(86_400), 60),
            (Some(100), Some(640), 50),
            (Some(10), Some(640), 20),
            (Some(1), Some(8), 1),
            (None, None, 60),
        ] {
            let found = renewal_gap(remains.map(seconds), lease.map(seconds));
            assert_eq!(found, seconds(gap), "{remains:?} of {lease:?}");
        }
    }

    #[test]
    fn nak_gaps() {
        let gaps = [1, 2, 3, 4, 8, 9, u32::MAX].map(nak_gap);
        assert_eq!(gaps, [0, 1, 2, 4, 64, 64, 64].map(seconds));
    }

    #[test]
    fn conflict_gaps() {
        let gaps = [0, 1, 2, 3, 4, u32::MAX].map(conflict_gap);
        assert_eq!(gaps, [10, 10, 20, 40, 60, 60].map(seconds));
    }
}
