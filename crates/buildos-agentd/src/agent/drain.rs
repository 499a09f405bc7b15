//! Configures how an agent is drained.
//!
//! bbot-agent has no drain signal: SIGTERM ends it together with its tasks. agentd
//! therefore detects idleness from the processes of the unit. A task is a process
//! besides the main process. Other programs may have a signal on which they end after
//! their tasks.

use std::time::Duration;

use serde::Deserialize;

/// Method to drain an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DrainMethod {
    /// Wait until the unit has no process besides the main process, then stop it.
    Idle,
    /// Send a signal to the main process, and wait until the agent ends by itself.
    Signal(Signal),
}

/// Signal without a fixed meaning, by name and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(&'static str, i32);

const SIGNALS: [Signal; 7] = [
    Signal("SIGTERM", libc::SIGTERM),
    Signal("SIGINT", libc::SIGINT),
    Signal("SIGHUP", libc::SIGHUP),
    Signal("SIGQUIT", libc::SIGQUIT),
    Signal("SIGUSR1", libc::SIGUSR1),
    Signal("SIGUSR2", libc::SIGUSR2),
    Signal("SIGWINCH", libc::SIGWINCH),
];

impl Signal {
    /// SIGTERM.
    pub const TERM: Self = SIGNALS[0];

    /// Returns the number, for `KillUnit`.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.1
    }
}

/// Error: the text is not a valid [`DrainMethod`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a drain method: \"idle\" or one of {signals} is expected", signals = SIGNALS.map(|s| s.0).join(", "))]
pub struct DrainMethodError(String);

impl TryFrom<String> for DrainMethod {
    type Error = DrainMethodError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "idle" {
            return Ok(Self::Idle);
        }
        SIGNALS
            .into_iter()
            .find(|signal| signal.0 == text)
            .map(Self::Signal)
            .ok_or(DrainMethodError(text))
    }
}

/// What a drain does with suspended machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suspended {
    /// It waits for them as for tasks.
    Wait,
    /// It does not wait for them. They end with their agent.
    Leave,
}

/// Time that tasks have to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// In a drain that an operator requests. A controller drops a task after 10,800 s.
    pub drain: Duration,
    /// During a shutdown of the host. systemd forces it after 30 min
    /// (`JobTimeoutSec=` of poweroff.target).
    pub shutdown: Duration,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(10_800),
            shutdown: Duration::from_secs(600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_method_is_idle_or_signal_name() {
        let method = |text: &str| DrainMethod::try_from(text.to_owned());
        assert_eq!(method("idle"), Ok(DrainMethod::Idle));
        assert_eq!(method("SIGTERM"), Ok(DrainMethod::Signal(Signal::TERM)));
        assert_eq!(
            method("TERM").unwrap_err().to_string(),
            "\"TERM\" is not a drain method: \"idle\" or one of SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH is expected"
        );
    }
}
