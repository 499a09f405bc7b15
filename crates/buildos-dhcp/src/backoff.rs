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

/// The gap after DISCOVER or REQUEST number `sent` (1 is the first) of a search
/// that began `elapsed` ago: 1, 2, 4, 4 … s in the first two minutes, then 8,
/// 16, 32, 64, 64 … s.
pub(crate) fn discovery_gap(sent: u32, elapsed: Duration) -> Duration {
    if elapsed < EAGER {
        SECOND * (1 << sent.saturating_sub(1).min(2))
    } else {
        // Each step of the doubling lasts as long as all before it.
        let past = elapsed.saturating_sub(EAGER);
        past.saturating_add(8 * SECOND).min(LONGEST)
    }
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
