//! Who changes the ruleset: the kernel announces every commit.

use std::io;

use netlink_sys::{AsyncSocketExt as _, TokioSocket};

use super::netlink::{general, messages, socket};
use super::{NftError, decode};

/// Somebody committed something to nf_tables, perhaps we.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Process and command of the last one; [`None`] when announcements were
    /// lost.
    pub by: Option<(u32, String)>,
}

/// A listener to announcements.
pub struct Changes {
    socket: TokioSocket,
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
            socket: socket(group).map_err(NftError::Socket)?,
        })
    }

    /// Waits for the next commit. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`NftError::Conversation`] when the socket is broken.
    pub async fn next(&mut self) -> Result<Change, NftError> {
        loop {
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => {
                    if let Some(by) = last_commit(&datagram)? {
                        return Ok(Change { by: Some(by) });
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Change { by: None });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NftError::Conversation(error)),
            }
        }
    }
}

fn last_commit(datagram: &[u8]) -> Result<Option<(u32, String)>, NftError> {
    let mut last = None;
    for message in messages(datagram) {
        let message =
            general(&message.map_err(NftError::Malformed)?).map_err(NftError::Malformed)?;
        if message.kind == libc::NFT_MSG_NEWGEN {
            let generation = decode::change(&message.attributes)?;
            last = Some((generation.pid, generation.command));
        }
    }
    Ok(last)
}
