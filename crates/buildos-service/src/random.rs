//! Provides randomness for jitter and transaction numbers.

use std::hash::{BuildHasher as _, RandomState};

/// Returns a random number, a new one at each call. It is not fit for cryptography.
///
/// The keys of the standard library's hashers come from getrandom(2).
#[must_use]
pub fn seed() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_within_a_process() {
        assert_ne!(seed(), seed());
    }
}
