//! Asks `buildosctl why` which step fails, also while tasks run.
//!
//! The exit status is 0 while tasks run: the host builds. But tasks run for a while without a
//! network, so the trial reads the failed step of the JSON.

use std::process::Command;

use serde::Deserialize;

use super::judge;
use crate::programs::capture::{self, ProgramError};

/// Bytes that buildosctl may write.
const OUTPUT: usize = 64 * 1024;

/// Answer of `buildosctl why --json`.
#[derive(Deserialize)]
struct Answer {
    step: Option<String>,
}

/// Returns the exit status that `buildosctl why` would have without tasks; `limit` is an argument
/// of timeout(1). None if buildosctl does not work.
#[must_use]
pub fn status(limit: &str) -> Option<u8> {
    let mut command = Command::new("timeout");
    command.args([limit, "buildosctl", "why", "--json"]);
    match capture::output(&mut command, "coreutils", OUTPUT) {
        Ok(json) => failed_step(&json),
        Err(ProgramError::Failed { status, .. }) => u8::try_from(status.code()?).ok(),
        Err(_) => None,
    }
}

fn failed_step(json: &[u8]) -> Option<u8> {
    let answer: Answer = serde_json::from_slice(json).ok()?;
    match answer.step {
        None => Some(0),
        Some(step) => judge::status_of_step(&step),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_step_counts_while_tasks_run() {
        for (step, expected) in [
            ("null", Some(0)),
            (r#""daemons""#, Some(10)),
            (r#""nat""#, Some(15)),
            (r#""controllers""#, Some(19)),
            (r#""other""#, None),
        ] {
            let json = format!(r#"{{"schema": 1, "outcome": "building", "step": {step}}}"#);
            assert_eq!(failed_step(json.as_bytes()), expected, "{step}");
        }
        assert_eq!(failed_step(b"{"), None);
    }
}
