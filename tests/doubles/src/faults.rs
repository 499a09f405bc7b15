//! Ways in which an agent can misbehave, for tests of what runs agents:
//! `BBOT_DOUBLE_MISCHIEF`, words with commas between them.

use std::str::FromStr;
use std::time::Duration;

/// What is to go wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mischief {
    /// Exit with 70 after this many rounds of polls (`crash-after=N`).
    pub crash_after: Option<u32>,
    /// Never poll (`hang`).
    pub hang: bool,
    /// Do not end on SIGTERM (`ignore-term`).
    pub ignore_term: bool,
    /// Let every task take this much longer (`slow=SECONDS`).
    pub slow: Duration,
    /// Make a tap and a redirection for every round, and leave them (`leak`).
    pub leak: bool,
}

/// A word is none of these.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no mischief: crash-after=N, hang, ignore-term, slow=SECONDS and leak are")]
pub struct MischiefError(String);

impl FromStr for Mischief {
    type Err = MischiefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut mischief = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let error = || MischiefError(word.to_owned());
            match word.split_once('=') {
                None if word == "hang" => mischief.hang = true,
                None if word == "ignore-term" => mischief.ignore_term = true,
                None if word == "leak" => mischief.leak = true,
                Some(("crash-after", n)) => {
                    mischief.crash_after = Some(n.parse().map_err(|_| error())?);
                }
                Some(("slow", seconds)) => {
                    mischief.slow = Duration::from_secs(seconds.parse().map_err(|_| error())?);
                }
                Some(_) | None => return Err(error()),
            }
        }
        Ok(mischief)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!("".parse(), Ok(Mischief::default()));
        assert_eq!(
            "crash-after=3,hang,ignore-term,slow=2,leak".parse(),
            Ok(Mischief {
                crash_after: Some(3),
                hang: true,
                ignore_term: true,
                slow: Duration::from_secs(2),
                leak: true,
            })
        );
        for bad in ["x", "hang=1", "slow", "slow=x", "crash-after=-1"] {
            assert_eq!(bad.parse::<Mischief>(), Err(MischiefError(bad.into())));
        }
    }
}
