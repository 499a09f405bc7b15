//! Reports commits of other processes to nf_tables.
//!
//! The kernel announces each commit with the process that made it
//! (`NFT_MSG_NEWGEN`, linux/netfilter/nf_tables.h).

use std::io;

use futures_util::FutureExt as _;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocketExt as _, TokioSocket};

use super::decode;
use super::error::FirewallError;
use super::nfnetlink;
use crate::netlink::{messages, socket};

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
    socket: TokioSocket,
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
        let group = 1 << (libc::NFNLGRP_NFTABLES - 1);
        Ok(Self {
            socket: socket(NETLINK_NETFILTER, group).map_err(FirewallError::Open)?,
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
    pub async fn next(&mut self) -> Result<Commit, FirewallError> {
        let mut commit = loop {
            let received = self.socket.recv_from_full().await;
            if let Some(commit) = self.parse(received)? {
                break commit;
            }
        };
        while let Some(received) = self.socket.recv_from_full().now_or_never() {
            commit = self.parse(received)?.unwrap_or(commit);
        }
        Ok(commit)
    }

    /// Treats ENOBUFS (lost notifications) as a commit of an unknown process.
    fn parse<A>(
        &self,
        received: io::Result<(Vec<u8>, A)>,
    ) -> Result<Option<Commit>, FirewallError> {
        match received {
            Ok((datagram, _)) => {
                let last_writer = last_writer(&datagram, &self.own_command)?;
                Ok(last_writer.is_some().then_some(Commit { last_writer }))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                Ok(Some(Commit { last_writer: None }))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(FirewallError::Disconnected(error)),
        }
    }
}

/// Returns the process of a datagram's last commit by a command other than `own`.
fn last_writer(datagram: &[u8], own: &str) -> Result<Option<Writer>, FirewallError> {
    let mut last = None;
    for message in messages(datagram) {
        let message = message
            .and_then(|message| nfnetlink::parse(&message))
            .map_err(FirewallError::Malformed)?;
        if message.kind == libc::NFT_MSG_NEWGEN {
            let generation = decode::generation(&message.attributes)?;
            if generation.command != own {
                last = Some(Writer {
                    pid: generation.pid,
                    command: generation.command,
                });
            }
        }
    }
    Ok(last)
}
