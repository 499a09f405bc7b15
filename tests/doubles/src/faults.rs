//! Parses the faults that a test injects into an agent (`BBOT_DOUBLE_MISCHIEF`).

use std::str::FromStr;
use std::time::Duration;

/// The faults to inject.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Exits with status 70 after this many rounds of polls (`crash-after=N`).
    pub crash_after: Option<u32>,
    /// Never polls (`hang`).
    pub hang: bool,
    /// Does not end on SIGTERM (`ignore-term`).
    pub ignore_term: bool,
    /// Additional duration of every task (`slow=SECONDS`).
    pub slow: Duration,
    /// Leaves a tap and a redirection behind in every round (`leak`).
    pub leak: bool,
    /// Pauses the machine of each task, as after a time-out, until the agent ends (`suspend`).
    pub suspend: bool,
}

/// A word is not the name of a fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a fault: crash-after=N, hang, ignore-term, slow=SECONDS, leak or suspend is expected"
)]
pub struct FaultError(String);

impl FromStr for Faults {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut faults = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let error = || FaultError(word.to_owned());
            match word.split_once('=') {
                None if word == "hang" => faults.hang = true,
                None if word == "ignore-term" => faults.ignore_term = true,
                None if word == "leak" => faults.leak = true,
                None if word == "suspend" => faults.suspend = true,
                Some(("crash-after", n)) => {
                    faults.crash_after = Some(n.parse().map_err(|_| error())?);
                }
                Some(("slow", seconds)) => {
                    faults.slow = Duration::from_secs(seconds.parse().map_err(|_| error())?);
                }
                Some(_) | None => return Err(error()),
            }
        }
        Ok(faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_parsed_from_a_comma_separated_list() {
        assert_eq!("".parse(), Ok(Faults::default()));
        assert_eq!(
            "crash-after=3,hang,ignore-term,slow=2,leak,suspend".parse(),
            Ok(Faults {
                crash_after: Some(3),
                hang: true,
                ignore_term: true,
                slow: Duration::from_secs(2),
                leak: true,
                suspend: true,
            })
        );
        for invalid in ["x", "hang=1", "slow", "slow=x", "crash-after=-1"] {
            assert_eq!(invalid.parse::<Faults>(), Err(FaultError(invalid.into())));
        }
    }
}
