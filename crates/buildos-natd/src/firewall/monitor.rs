//! Who changes the ruleset: the kernel announces every commit.

use std::io;

use futures_util::FutureExt as _;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocketExt as _, TokioSocket};

use super::decode;
use super::error::NftError;
use super::nfnetlink::general;
use crate::netlink::{messages, socket};

/// Somebody else committed something to nf_tables, perhaps several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Who did it last; [`None`] when announcements were lost.
    pub by: Option<Author>,
}

/// The process that committed a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// Its number, as the initial PID namespace counts.
    pub pid: u32,
    /// Its name, as `ps -o comm` shows it.
    pub command: String,
}

/// A listener to announcements.
pub struct Changes {
    socket: TokioSocket,
    /// Our own name: what we commit we know already. Our number is no help, as
    /// the kernel's may be of another namespace.
    own: String,
}

impl Changes {
    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// [`NftError::Socket`]; EPERM without CAP_NET_ADMIN.
    pub fn listen() -> Result<Self, NftError> {
        let group = 1 << (libc::NFNLGRP_NFTABLES - 1);
        Ok(Self {
            socket: socket(NETLINK_NETFILTER, group).map_err(NftError::Socket)?,
            own: std::fs::read_to_string("/proc/self/comm")
                .unwrap_or_default()
                .trim_end()
                .to_owned(),
        })
    }

    /// Waits for the next commit of somebody else, and takes all that have been
    /// announced by then: who looks at the ruleset sees them all at once.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`NftError::Conversation`] when the socket is broken.
    pub async fn next(&mut self) -> Result<Change, NftError> {
        let mut change = loop {
            if let Some(change) = self.heard(self.socket.recv_from_full().await)? {
                break change;
            }
        };
        while let Some(heard) = self.socket.recv_from_full().now_or_never() {
            change = self.heard(heard)?.unwrap_or(change);
        }
        Ok(change)
    }

    fn heard<A>(&self, heard: io::Result<(Vec<u8>, A)>) -> Result<Option<Change>, NftError> {
        match heard {
            Ok((datagram, _)) => {
                let by = last_commit(&datagram, &self.own)?;
                Ok(by.map(|by| Change { by: Some(by) }))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                Ok(Some(Change { by: None }))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(NftError::Conversation(error)),
        }
    }
}

/// The last commit in a datagram that was not made by `own`.
fn last_commit(datagram: &[u8], own: &str) -> Result<Option<Author>, NftError> {
    let mut last = None;
    for message in messages(datagram) {
        let message =
            general(&message.map_err(NftError::Malformed)?).map_err(NftError::Malformed)?;
        if message.kind == libc::NFT_MSG_NEWGEN {
            let generation = decode::change(&message.attributes)?;
            if generation.command != own {
                last = Some(Author {
                    pid: generation.pid,
                    command: generation.command,
                });
            }
        }
    }
    Ok(last)
}
