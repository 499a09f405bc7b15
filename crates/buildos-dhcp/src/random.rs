//! Generates pseudo-random transaction ids and jitter from a seed.

use core::time::Duration;

/// RFC 2131, section 4.1: a delay is randomized by at most a second.
const MAXIMUM_JITTER: Duration = Duration::from_secs(1);

/// The xorshift64* generator (Marsaglia 2003, Vigna 2016).
///
/// Its numbers protect no secret. The seed must come from the kernel, so that hosts
/// started together do not send in step.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Xorshift never leaves the state zero.
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
        // The upper half has the better quality, and fits.
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Returns a duration up to `limit`, in steps of a thousandth.
    pub(crate) fn up_to(&mut self, limit: Duration) -> Duration {
        limit * (self.next() % 1001) / 1000
    }

    /// Returns `delay` plus or minus up to a tenth, and at most [`MAXIMUM_JITTER`].
    pub(crate) fn jitter(&mut self, delay: Duration) -> Duration {
        let most = (delay / 10).min(MAXIMUM_JITTER);
        let thousandths = self.next() % 2001;
        (delay - most) + most * thousandths / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_for_any_seed() {
        for seed in [0, 1, u64::MAX] {
            let mut random = Random::new(seed);
            let mut seen: Vec<u32> = (0..1000).map(|_| random.next()).collect();
            seen.sort_unstable();
            seen.dedup();
            assert!(seen.len() > 990, "{seed}");
        }
    }

    #[test]
    fn up_to_reaches_zero_and_limit() {
        let mut random = Random::new(7);
        let limit = Duration::from_secs(u32::MAX.into());
        let durations: Vec<Duration> = (0..20_000).map(|_| random.up_to(limit)).collect();
        assert_eq!(durations.iter().min(), Some(&Duration::ZERO));
        assert_eq!(durations.iter().max(), Some(&limit));
    }

    #[test]
    fn jitter_is_at_most_a_tenth_and_a_second() {
        let mut random = Random::new(7);
        for (delay, most) in [(1, 100), (4, 400), (8, 800), (64, 1000)] {
            let (delay, most) = (Duration::from_secs(delay), Duration::from_millis(most));
            let delays: Vec<Duration> = (0..1000).map(|_| random.jitter(delay)).collect();
            let (least, greatest) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
            assert!(*least >= delay - most && *least < delay - most * 9 / 10);
            assert!(*greatest <= delay + most && *greatest > delay + most * 9 / 10);
        }
        assert_eq!(random.jitter(Duration::ZERO), Duration::ZERO);
    }
}
