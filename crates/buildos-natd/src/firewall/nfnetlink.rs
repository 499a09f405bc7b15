//! Exchanges nf_tables messages over an nfnetlink socket
//! (linux/netfilter/nfnetlink.h). [`super::decode`] parses their attributes.

use std::ops::Range;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_OVERRUN, NetlinkBuffer,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocketExt as _, TokioSocket};
use tokio::time::timeout;

use super::decode::{self, Dump};
use super::error::FirewallError;
use crate::netlink::{self, TIMEOUT, messages};

/// Size of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// A socket for requests; [`super::monitor`] receives notifications on another.
pub(super) struct Netlink {
    socket: TokioSocket,
    sequence: u32,
}

/// An nf_tables message.
#[derive(Debug)]
pub(super) struct Message {
    /// `NFT_MSG_*`.
    pub(super) kind: i32,
    /// `NFPROTO_*` of the table.
    pub(super) family: u8,
    pub(super) attributes: Vec<u8>,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, FirewallError> {
        Ok(Self {
            socket: netlink::socket(NETLINK_NETFILTER, 0).map_err(FirewallError::Open)?,
            sequence: 0,
        })
    }

    /// Returns the generation of the ruleset, which grows with each commit.
    pub(super) async fn generation(&mut self) -> Result<u32, FirewallError> {
        self.request(libc::NFT_MSG_GETGEN, libc::NFPROTO_INET, 0, &[])
            .await?;
        let datagram = self.receive().await?;
        for message in messages(&datagram) {
            let message = message.map_err(FirewallError::Malformed)?;
            if message.sequence_number() == self.sequence {
                check(&message, "the request for the generation")?;
                let attributes = parse(&message)
                    .map_err(FirewallError::Malformed)?
                    .attributes;
                return Ok(decode::generation(&attributes)?.id);
            }
        }
        Err(FirewallError::Malformed(
            "no generation in the answer".into(),
        ))
    }

    /// Returns every object of that kind in a family; `NFPROTO_UNSPEC` selects all
    /// families.
    pub(super) async fn dump(
        &mut self,
        kind: Dump,
        family: i32,
    ) -> Result<Vec<Message>, FirewallError> {
        self.dump_of(kind, family, &[]).await
    }

    /// Returns every object of that kind that the attributes select.
    pub(super) async fn dump_of(
        &mut self,
        kind: Dump,
        family: i32,
        attributes: &[u8],
    ) -> Result<Vec<Message>, FirewallError> {
        self.request(kind.request(), family, NLM_F_DUMP, attributes)
            .await?;
        let mut found = Vec::new();
        loop {
            let datagram = self.receive().await?;
            for message in messages(&datagram) {
                let message = message.map_err(FirewallError::Malformed)?;
                if message.sequence_number() != self.sequence {
                    continue;
                }
                check(&message, kind.name())?;
                if message.message_type() == NLMSG_DONE {
                    return Ok(found);
                }
                let message = parse(&message).map_err(FirewallError::Malformed)?;
                if message.kind == kind.answer() {
                    found.push(message);
                }
            }
        }
    }

    /// Sends a batch and waits until the kernel acknowledges each of its messages.
    ///
    /// After an error the kernel changes nothing, and does not acknowledge the end
    /// of the batch.
    pub(super) async fn transact(
        &mut self,
        batch: &[u8],
        numbers: Range<u32>,
        objects: &[String],
    ) -> Result<(), FirewallError> {
        self.send(batch).await?;
        // Linux 6.10 and later acknowledge begin and end of the batch.
        let framed = numbers.len() > objects.len();
        let first = numbers.start + u32::from(framed);
        let mut missing = numbers.len();
        while missing > 0 {
            let datagram = self.receive().await?;
            for message in messages(&datagram) {
                let message = message.map_err(FirewallError::Malformed)?;
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
    ) -> Result<(), FirewallError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut payload = vec![family as u8, 0, 0, 0];
        payload.extend_from_slice(attributes);
        let kind = ((libc::NFNL_SUBSYS_NFTABLES << 8) | kind) as u16;
        let bytes = netlink::request(kind, NLM_F_REQUEST | flags, self.sequence, &payload);
        self.send(&bytes).await
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), FirewallError> {
        self.socket
            .send(bytes)
            .await
            .map_err(FirewallError::Disconnected)?;
        Ok(())
    }

    async fn receive(&self) -> Result<Vec<u8>, FirewallError> {
        let received = timeout(TIMEOUT, self.socket.recv_from_full()).await;
        let (datagram, _) = received
            .map_err(|_| FirewallError::Timeout)?
            .map_err(FirewallError::Disconnected)?;
        Ok(datagram)
    }
}

/// Parses `struct nfgenmsg`, the header of nf_tables messages.
pub(super) fn parse(message: &NetlinkBuffer<&[u8]>) -> Result<Message, DecodeError> {
    let kind = i32::from(message.message_type());
    if kind >> 8 != libc::NFNL_SUBSYS_NFTABLES {
        return Err(format!("message type {kind:#x} does not belong to nf_tables").into());
    }
    let payload = message.payload();
    let (Some(family), Some(attributes)) = (payload.first(), payload.get(NFGENMSG..)) else {
        return Err("a message without struct nfgenmsg".into());
    };
    Ok(Message {
        kind: kind & 0xff,
        family: *family,
        attributes: attributes.to_vec(),
    })
}

/// Returns the error of a refusal, with the refused object.
fn check(message: &NetlinkBuffer<&[u8]>, object: &str) -> Result<(), FirewallError> {
    if message.message_type() == NLMSG_OVERRUN {
        return Err(FirewallError::Unstable);
    }
    match netlink::refusal(message).map_err(FirewallError::Malformed)? {
        None => Ok(()),
        Some(source) => Err(FirewallError::Refused {
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
    fn refusal_names_object_and_errno() {
        let mut payload = [0; 20];
        payload[..4].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        let datagram = netlink::request(NLMSG_ERROR, 0, 0, &payload);
        let message = messages(&datagram).next().unwrap().unwrap();
        let error = check(&message, "table inet buildos").unwrap_err();
        assert!(error.to_string().contains("refused table inet buildos"));
        assert!(matches!(error, FirewallError::Refused { source, .. }
            if source.raw_os_error() == Some(libc::EPERM)));
    }

    proptest! {
        #[test]
        fn random_datagrams_do_not_panic(datagram: Vec<u8>) {
            for message in messages(&datagram) {
                let Ok(message) = message else { continue };
                let _ = check(&message, "");
                let _ = parse(&message);
            }
        }
    }
}
