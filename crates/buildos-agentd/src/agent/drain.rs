//! How an agent is brought to take no new work.
//!
//! bbot-agent has no command for that: SIGTERM ends it with its tasks. So it is
//! watched until no task runs, and stopped then: a task is a process in its
//! unit besides its own. Another program may have a signal on which it ends when
//! its tasks have.

use std::time::Duration;

use serde::Deserialize;

/// How to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Way {
    /// Wait until the agent has no process but its own.
    Idle,
    /// Send it a signal; it ends by itself.
    Signal(Signal),
}

/// A signal that programs give a meaning.
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
    /// The one that asks a program to end.
    pub const TERM: Self = SIGNALS[0];

    /// Its number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.1
    }
}

/// A text is no [`Way`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to drain: \"idle\" or one of {signals} is expected", signals = SIGNALS.map(|s| s.0).join(", "))]
pub struct WayError(String);

impl TryFrom<String> for Way {
    type Error = WayError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "idle" {
            return Ok(Self::Idle);
        }
        SIGNALS
            .into_iter()
            .find(|signal| signal.0 == text)
            .map(Self::Signal)
            .ok_or(WayError(text))
    }
}

/// How long tasks may take to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// When somebody asks for it. A controller forgets a task after 10,800 s.
    pub drain: Duration,
    /// When the host goes down. systemd itself gives up after 30 min
    /// (poweroff.target).
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
    fn ways() {
        let way = |text: &str| Way::try_from(text.to_owned());
        assert_eq!(way("idle"), Ok(Way::Idle));
        assert_eq!(way("SIGTERM"), Ok(Way::Signal(Signal::TERM)));
        assert_eq!(
            way("TERM").unwrap_err().to_string(),
            "\"TERM\" is no way to drain: \"idle\" or one of SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH is expected"
        );
    }
}
