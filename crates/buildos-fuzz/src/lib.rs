//! Makes the inputs of fuzz tests: random numbers, and mutations of valid messages and files.
//!
//! | variable | meaning |
//! |---|---|
//! | `BUILDOS_FUZZ_EXECUTIONS` | inputs per target; each target has its own default |
//! | `BUILDOS_FUZZ_SEED` | seed; the same seed makes the same inputs |
//!
//! No input may cause a panic, with debug assertions (`cargo test`) and without them
//! (`cargo test --profile=fuzz`).

#![allow(clippy::expect_used)] // A test fails by panicking.

/// Bytes at the limits of lengths and codes.
const EDGES: [u8; 16] = [
    0, 1, 2, 3, 4, 5, 51, 52, 53, 54, 119, 121, 127, 128, 254, 255,
];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Returns the number of inputs for a target.
#[must_use]
pub fn executions(default: u64) -> u64 {
    setting("BUILDOS_FUZZ_EXECUTIONS", default)
}

/// The SplitMix64 generator (Steele, Lea, Flood 2014), for which every seed is good.
#[derive(Debug)]
pub struct Generator(u64);

impl Generator {
    /// Returns the generator of a target of the crate.
    #[must_use]
    pub fn new(target: u64) -> Self {
        Self(setting("BUILDOS_FUZZ_SEED", 1).wrapping_add(target << 32))
    }

    /// Returns the next number.
    #[allow(clippy::should_implement_trait)] // It never ends.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from 0 to `bound - 1`; 0 if the bound is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The remainder is below a usize.
        (self.next() % (bound.max(1) as u64)) as usize
    }

    /// Returns one of the values.
    pub fn one_of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }

    fn byte(&mut self) -> u8 {
        if self.below(2) == 0 {
            *self.one_of(&EDGES)
        } else {
            self.below(256) as u8
        }
    }
}

/// Makes up to six changes to a message, mostly at or after the offset `first`.
pub fn mutate(bytes: &mut Vec<u8>, first: usize, random: &mut Generator) {
    for _ in 0..=random.below(6) {
        if bytes.is_empty() {
            return;
        }
        let first = if random.below(8) == 0 {
            0
        } else {
            first.min(bytes.len() - 1)
        };
        let at = first + random.below(bytes.len() - first);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 | 2 => bytes[at] = random.byte(),
            3 => bytes.insert(at, random.byte()),
            4 => drop(bytes.remove(at)),
            5 => bytes.truncate(at),
            6 => {
                let end = at + random.below((bytes.len() - at).min(64));
                let part = bytes[at..end].to_vec();
                let to = first + random.below(bytes.len() - first);
                bytes.splice(to..to, part);
            }
            _ => {
                for _ in 0..random.below(40) {
                    bytes.push(random.byte());
                }
            }
        }
    }
}

/// Makes up to four changes to a text. `parts` are tokens that a change inserts.
pub fn mutate_text(bytes: &mut Vec<u8>, parts: &[&str], random: &mut Generator) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 if random.below(8) == 0 => bytes.truncate(at),
            3 => {
                let end = at + random.below((bytes.len() - at).min(200));
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            _ => {
                let part = random.one_of(parts);
                bytes.splice(at..at, part.bytes());
            }
        }
    }
}
