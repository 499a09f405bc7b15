//! One conversation with the kernel's nf_tables over a netlink socket
//! (linux/netfilter/nfnetlink.h). It knows messages, not what they say.

use std::ops::Range;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_OVERRUN, NetlinkBuffer,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocketExt as _, TokioSocket};
use tokio::time::timeout;

use super::decode::{self, Dump};
use super::error::NftError;
use crate::netlink::{self, TIMEOUT, messages};

/// `struct nfgenmsg`.
const GENERAL: usize = 4;

/// A socket for requests; changes come on another, see [`super::Changes`].
pub(super) struct Netlink {
    socket: TokioSocket,
    sequence: u32,
}

/// A message without its header.
#[derive(Debug)]
pub(super) struct Message {
    /// `NFT_MSG_*` of a message of nf_tables.
    pub(super) kind: i32,
    /// `NFPROTO_*`: the family of the table that it is about.
    pub(super) family: u8,
    /// The attributes.
    pub(super) attributes: Vec<u8>,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, NftError> {
        Ok(Self {
            socket: netlink::socket(NETLINK_NETFILTER, 0).map_err(NftError::Socket)?,
            sequence: 0,
        })
    }

    /// Number of the ruleset's current generation: it grows with each commit.
    pub(super) async fn generation(&mut self) -> Result<u32, NftError> {
        self.request(libc::NFT_MSG_GETGEN, libc::NFPROTO_INET, 0, &[])
            .await?;
        let datagram = self.receive().await?;
        for message in messages(&datagram) {
            let message = message.map_err(NftError::Malformed)?;
            if message.sequence_number() == self.sequence {
                check(&message, "the question for the generation")?;
                let attributes = general(&message).map_err(NftError::Malformed)?.attributes;
                return Ok(decode::change(&attributes)?.generation);
            }
        }
        Err(NftError::Malformed("no generation in the answer".into()))
    }

    /// Every object of that kind in a family (`NFPROTO_UNSPEC`: in all).
    pub(super) async fn dump(&mut self, what: Dump, family: i32) -> Result<Vec<Message>, NftError> {
        self.dump_of(what, family, &[]).await
    }

    /// Every object of that kind that these attributes ask for.
    pub(super) async fn dump_of(
        &mut self,
        what: Dump,
        family: i32,
        attributes: &[u8],
    ) -> Result<Vec<Message>, NftError> {
        self.request(what.request(), family, NLM_F_DUMP, attributes)
            .await?;
        let mut found = Vec::new();
        loop {
            let datagram = self.receive().await?;
            for message in messages(&datagram) {
                let message = message.map_err(NftError::Malformed)?;
                if message.sequence_number() != self.sequence {
                    continue;
                }
                check(&message, what.name())?;
                if message.message_type() == NLMSG_DONE {
                    return Ok(found);
                }
                let message = general(&message).map_err(NftError::Malformed)?;
                if message.kind == what.answer() {
                    found.push(message);
                }
            }
        }
    }

    /// Sends a batch and waits until every message in it is acknowledged.
    /// Where an answer is an error there is none for the batch's end, and
    /// nothing was changed.
    pub(super) async fn transact(
        &mut self,
        batch: &[u8],
        numbers: Range<u32>,
        objects: &[String],
    ) -> Result<(), NftError> {
        self.send(batch).await?;
        // Begin and end of the batch are acknowledged from Linux 6.10 on.
        let framed = numbers.len() > objects.len();
        let first = numbers.start + u32::from(framed);
        let mut missing = numbers.len();
        while missing > 0 {
            let datagram = self.receive().await?;
            for message in messages(&datagram) {
                let message = message.map_err(NftError::Malformed)?;
                let number = message.sequence_number();
                if !numbers.contains(&number) {
                    continue;
                }
                let object = number
                    .checked_sub(first)
                    .and_then(|index| objects.get(index as usize))
                    .map_or("the transaction", String::as_str);
                check(&message, object)?;
                missing = missing.saturating_sub(1);
            }
        }
        Ok(())
    }

    async fn request(
        &mut self,
        kind: i32,
        family: i32,
        flags: u16,
        attributes: &[u8],
    ) -> Result<(), NftError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut payload = vec![family as u8, 0, 0, 0];
        payload.extend_from_slice(attributes);
        let kind = ((libc::NFNL_SUBSYS_NFTABLES << 8) | kind) as u16;
        let bytes = netlink::request(kind, NLM_F_REQUEST | flags, self.sequence, &payload);
        self.send(&bytes).await
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), NftError> {
        self.socket
            .send(bytes)
            .await
            .map_err(NftError::Conversation)?;
        Ok(())
    }

    async fn receive(&self) -> Result<Vec<u8>, NftError> {
        let received = timeout(TIMEOUT, self.socket.recv_from_full()).await;
        let (datagram, _) = received
            .map_err(|_| NftError::Timeout)?
            .map_err(NftError::Conversation)?;
        Ok(datagram)
    }
}

/// What nf_tables says in a message.
pub(super) fn general(message: &NetlinkBuffer<&[u8]>) -> Result<Message, DecodeError> {
    let kind = i32::from(message.message_type());
    if kind >> 8 != libc::NFNL_SUBSYS_NFTABLES {
        return Err(format!("message type {kind:#x} is not of nf_tables").into());
    }
    let payload = message.payload();
    let (Some(family), Some(attributes)) = (payload.first(), payload.get(GENERAL..)) else {
        return Err("a message without struct nfgenmsg".into());
    };
    Ok(Message {
        kind: kind & 0xff,
        family: *family,
        attributes: attributes.to_vec(),
    })
}

/// A refusal is an error that names what was refused.
fn check(message: &NetlinkBuffer<&[u8]>, object: &str) -> Result<(), NftError> {
    if message.message_type() == NLMSG_OVERRUN {
        return Err(NftError::Restless);
    }
    match netlink::refusal(message).map_err(NftError::Malformed)? {
        None => Ok(()),
        Some(source) => Err(NftError::Refused {
            object: object.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NLMSG_ERROR;
    use proptest::prelude::*;

    #[test]
    fn an_error_names_the_object() {
        let mut payload = [0; 20];
        payload[..4].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        let datagram = netlink::request(NLMSG_ERROR, 0, 0, &payload);
        let message = messages(&datagram).next().unwrap().unwrap();
        let error = check(&message, "table inet buildos").unwrap_err();
        assert!(error.to_string().contains("refused table inet buildos"));
        assert!(matches!(error, NftError::Refused { source, .. }
            if source.raw_os_error() == Some(libc::EPERM)));
    }

    proptest! {
        #[test]
        fn no_datagram_does_harm(datagram: Vec<u8>) {
            for message in messages(&datagram) {
                let Ok(message) = message else { continue };
                let _ = check(&message, "");
                let _ = general(&message);
            }
        }
    }
}
