//! Sends notifications to systemd (sd_notify(3)). Without systemd they have no effect.
//! Errors do not stop the daemon.

use sd_notify::NotifyState;

use crate::text::{self, Escaped};

/// Length limit of `STATUS=`, bytes. systemd has none, but terminals are narrow.
const STATUS_LIMIT: usize = 512;

/// Reports readiness (`READY=1`).
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// Shows a line in `systemctl status` (`STATUS=`). Escapes control characters, and keeps
/// the escapes of text from outside.
pub fn status(text: &str) {
    send(&[NotifyState::Status(&status_line(text))]);
}

fn status_line(text: &str) -> String {
    text::truncate(&Escaped::received(text), STATUS_LIMIT).to_owned()
}

/// Reports that the daemon ends (`STOPPING=1`): systemd starts it again only after its end.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Reports that the program works (`WATCHDOG=1`), within `WatchdogSec=`.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// Reports a reload. `Type=notify-reload` requires both fields in one datagram.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read CLOCK_MONOTONIC"),
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_line_keeps_escapes_and_escapes_line_feeds() {
        let from_server = text::escape("a\\b\nc");
        let line = status_line(&format!("no lease: {from_server}"));
        assert_eq!(line, r"no lease: a\\b\u{a}c");
        assert_eq!(status_line("a\nMAINPID=1"), r"a\u{a}MAINPID=1");
    }
}
