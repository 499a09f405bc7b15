//! Encodes and decodes messages of nfnetlink (linux/netfilter/nfnetlink.h).

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};

use crate::frame::Message;

/// Length of `struct nfgenmsg`.
const NFGENMSG_LENGTH: usize = 4;

/// A message of a netfilter subsystem, with its attributes still encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetfilterMessage {
    /// `NFNL_SUBSYS_*`.
    pub subsystem: u8,
    /// Type of the message in its subsystem, such as `NFT_MSG_*`.
    pub kind: u8,
    /// Protocol family, `NFPROTO_*`.
    pub family: u8,
    /// Version of the message, 0 (`NFNETLINK_V0`) unless the subsystem has others.
    pub version: u8,
    /// Netlink attributes.
    pub attributes: Vec<u8>,
}

impl NetfilterMessage {
    /// Decodes a message that a [`Monitor`](crate::Monitor) received.
    ///
    /// # Errors
    ///
    /// The message is too short.
    pub fn decode(message: &Message<'_>) -> Result<Self, DecodeError> {
        let mut header = NetlinkHeader::default();
        header.message_type = message.message_type();
        Self::deserialize(&header, message.payload())
    }
}

impl NetlinkSerializable for NetfilterMessage {
    fn message_type(&self) -> u16 {
        u16::from_be_bytes([self.subsystem, self.kind])
    }

    fn buffer_len(&self) -> usize {
        NFGENMSG_LENGTH + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(NFGENMSG_LENGTH);
        // Resource 0.
        header.copy_from_slice(&[self.family, self.version, 0, 0]);
        attributes.copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for NetfilterMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let [subsystem, kind] = header.message_type.to_be_bytes();
        let (Some([family, version, ..]), Some(attributes)) = (
            payload.get(..NFGENMSG_LENGTH),
            payload.get(NFGENMSG_LENGTH..),
        ) else {
            return Err("a message without struct nfgenmsg".into());
        };
        Ok(Self {
            subsystem,
            kind,
            family: *family,
            version: *version,
            attributes: attributes.to_vec(),
        })
    }
}

impl From<NetfilterMessage> for NetlinkPayload<NetfilterMessage> {
    fn from(message: NetfilterMessage) -> Self {
        Self::InnerMessage(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn message_decodes_as_it_was_encoded(
            subsystem: u8, kind: u8, family: u8, version: u8, attributes: Vec<u8>,
        ) {
            let message = NetfilterMessage { subsystem, kind, family, version, attributes };
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            let mut header = NetlinkHeader::default();
            header.message_type = message.message_type();
            prop_assert_eq!(NetfilterMessage::deserialize(&header, &bytes).unwrap(), message);
        }

        #[test]
        fn arbitrary_payload_decodes_or_fails(kind: u16, payload: Vec<u8>) {
            let mut header = NetlinkHeader::default();
            header.message_type = kind;
            let message = NetfilterMessage::deserialize(&header, &payload);
            prop_assert_eq!(message.is_ok(), payload.len() >= NFGENMSG_LENGTH);
        }
    }
}
