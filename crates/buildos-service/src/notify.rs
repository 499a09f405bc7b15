//! Messages to systemd, sd_notify(3). Without a manager that listens they go
//! nowhere; a socket that has gone away is no reason to stop a daemon.

use sd_notify::NotifyState;

use crate::text;

/// Longest text shown in `systemctl status`; systemd cuts none, terminals do.
const STATUS_LIMIT: usize = 512;

/// What the unit waits for is there (`READY=1`).
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// One line for `systemctl status` (`STATUS=`); it is escaped here.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text::truncate(
        &text::escape(text),
        STATUS_LIMIT,
    ))]);
}

pub(crate) fn stopping() {
    send(&[NotifyState::Stopping]);
}

pub(crate) fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// For `Type=notify-reload`: both fields must be in one datagram.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read CLOCK_MONOTONIC"),
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd did not get a notification");
    }
}
