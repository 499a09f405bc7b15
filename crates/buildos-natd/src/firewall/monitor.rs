//! Reports commits of other processes to nf_tables.
//!
//! The kernel announces each commit with the process that made it
//! (`NFT_MSG_NEWGEN`, linux/netfilter/nf_tables.h).

use buildos_netlink::{Monitor, NetfilterMessage, Notification};

use super::decode;
use super::error::FirewallError;

/// One or more commits of other processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Process of the last commit; [`None`] if notifications were lost.
    pub last_writer: Option<Writer>,
}

/// A process that committed a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// In the initial PID namespace.
    pub pid: u32,
    /// As `ps -o comm` shows it.
    pub command: String,
}

/// Receives the kernel's notifications of commits.
pub struct RulesetMonitor {
    monitor: Monitor,
    /// Own `comm`, to ignore own commits. The PID does not identify them, because
    /// it can be of another PID namespace than the kernel's.
    own_command: String,
}

impl RulesetMonitor {
    /// Subscribes to notifications.
    ///
    /// # Errors
    ///
    /// [`FirewallError::Open`]; EPERM without CAP_NET_ADMIN.
    pub fn open() -> Result<Self, FirewallError> {
        let monitor = Monitor::nfnetlink(libc::NFNLGRP_NFTABLES as u32);
        Ok(Self {
            monitor: monitor.map_err(FirewallError::Open)?,
            own_command: std::fs::read_to_string("/proc/self/comm")
                .unwrap_or_default()
                .trim_end()
                .to_owned(),
        })
    }

    /// Waits for a commit of another process, and merges all that are queued: one
    /// read of the ruleset covers them. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`FirewallError::Disconnected`].
    pub async fn next(&self) -> Result<Commit, FirewallError> {
        loop {
            let mut last = None;
            let received = self.monitor.next(|notification| {
                last = self.commit(&notification).or(last.take());
            });
            received.await.map_err(FirewallError::Disconnected)?;
            if let Some(commit) = last {
                return Ok(commit);
            }
        }
    }

    /// Returns the commit of another process that a notification reports. A lost or
    /// malformed notification counts as a commit of an unknown process.
    fn commit(&self, notification: &Notification<'_>) -> Option<Commit> {
        const UNKNOWN: Commit = Commit { last_writer: None };
        let Notification::Message(message) = notification else {
            return Some(UNKNOWN);
        };
        let Ok(message) = NetfilterMessage::decode(message) else {
            return Some(UNKNOWN);
        };
        if i32::from(message.kind) != libc::NFT_MSG_NEWGEN {
            return None;
        }
        let Ok(generation) = decode::generation(&message.attributes) else {
            return Some(UNKNOWN);
        };
        let writer = Writer {
            pid: generation.pid,
            command: generation.command,
        };
        (writer.command != self.own_command).then_some(Commit {
            last_writer: Some(writer),
        })
    }
}
