//! Builds a request and collects its answer, without a socket.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
    NLMSG_OVERRUN, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};

use crate::frame::{self, malformed, messages};
use crate::protocol::Protocol;

/// The kind of answer that a request expects, which determines the end of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// An acknowledgement.
    Acknowledgement,
    /// The first object.
    Object,
    /// `NLMSG_DONE` after any number of objects.
    Dump,
    /// As [`Expect::Dump`], for a caller who reads again after each change: objects that changed
    /// during the dump, or that cannot be decoded, are no error.
    Readable,
}

/// Collects the answer to a request from datagrams.
#[derive(Debug)]
pub(crate) struct Exchange<M> {
    sequence: u32,
    expect: Expect,
    objects: Vec<M>,
    interrupted: bool,
}

impl<M: Protocol> Exchange<M> {
    /// Returns the exchange, and the request to be sent.
    pub(crate) fn new(sequence: u32, expect: Expect, message: M, flags: u16) -> (Self, Vec<u8>) {
        let mut header = NetlinkHeader::default();
        header.sequence_number = sequence;
        header.flags = flags
            | NLM_F_REQUEST
            | match expect {
                Expect::Acknowledgement => NLM_F_ACK,
                Expect::Object => 0,
                Expect::Dump | Expect::Readable => NLM_F_DUMP,
            };
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut request = vec![0; message.buffer_len()];
        message.serialize(&mut request);
        let exchange = Self {
            sequence,
            expect,
            objects: Vec::new(),
            interrupted: false,
        };
        (exchange, request)
    }

    /// Processes a datagram. Returns true once the answer is complete.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; [`io::ErrorKind::InvalidData`] for a malformed answer;
    /// [`io::ErrorKind::Interrupted`], as in libmnl, if the objects changed during a
    /// dump.
    pub(crate) fn accept(&mut self, datagram: &[u8]) -> io::Result<bool> {
        for message in messages(datagram) {
            let message = message.map_err(malformed)?;
            if message.sequence_number() != self.sequence {
                continue;
            }
            if let Some(error) = frame::error(&message).map_err(malformed)? {
                return Err(error);
            }
            self.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(io::ErrorKind::Interrupted.into()),
                NLMSG_ERROR | NLMSG_DONE if self.interrupted && self.expect != Expect::Readable => {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                NLMSG_ERROR | NLMSG_DONE => return Ok(true),
                _ => {
                    match NetlinkMessage::<M>::deserialize(message.into_inner()) {
                        Ok(message) => {
                            if let NetlinkPayload::InnerMessage(object) = message.payload {
                                self.objects.push(object);
                            }
                        }
                        Err(_) if self.expect == Expect::Readable => {}
                        Err(error) => return Err(malformed(error)),
                    }
                    if self.expect == Expect::Object {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Returns the objects of the answer.
    pub(crate) fn into_objects(self) -> Vec<M> {
        self.objects
    }

    /// Returns the one object of the answer.
    pub(crate) fn into_object(self) -> io::Result<M> {
        let first = self.objects.into_iter().next();
        first.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::fixture::{error_payload, message};
    use crate::netfilter::NetfilterMessage;
    use proptest::prelude::*;

    const NEWTABLE: u16 = 0x0a00;

    fn object(family: u8) -> NetfilterMessage {
        NetfilterMessage {
            subsystem: 10,
            kind: 0,
            family,
            version: 0,
            attributes: Vec::new(),
        }
    }

    fn started(expect: Expect) -> Exchange<NetfilterMessage> {
        Exchange::new(7, expect, object(0), 0).0
    }

    #[test]
    fn request_flags_match_expected_answer() {
        let flags = |expect| {
            let (_, request) = Exchange::new(7, expect, object(1), 0);
            let message = messages(&request).next().unwrap().unwrap();
            assert_eq!(message.sequence_number(), 7);
            assert_eq!(message.message_type(), NEWTABLE);
            assert_eq!(message.payload(), [1, 0, 0, 0]);
            message.flags()
        };
        assert_eq!(flags(Expect::Acknowledgement), NLM_F_REQUEST | NLM_F_ACK);
        assert_eq!(flags(Expect::Object), NLM_F_REQUEST);
        assert_eq!(flags(Expect::Dump), NLM_F_REQUEST | NLM_F_DUMP);
        assert_eq!(flags(Expect::Readable), NLM_F_REQUEST | NLM_F_DUMP);
    }

    #[test]
    fn answer_to_another_request_is_ignored() {
        let mut exchange = started(Expect::Object);
        let other = [
            message(NLMSG_ERROR, 6, 0, &error_payload(-libc::EPERM)),
            message(NEWTABLE, 6, 0, &[1, 0, 0, 0]),
        ];
        assert!(!exchange.accept(&other.concat()).unwrap());
        assert!(
            exchange
                .accept(&message(NEWTABLE, 7, 0, &[2, 0, 0, 0]))
                .unwrap()
        );
        assert_eq!(exchange.into_object().unwrap(), object(2));
    }

    #[test]
    fn acknowledgement_ends_exchange_without_object() {
        let acknowledgement = message(NLMSG_ERROR, 7, 0, &error_payload(0));
        assert!(
            started(Expect::Acknowledgement)
                .accept(&acknowledgement)
                .unwrap()
        );
        let mut exchange = started(Expect::Object);
        assert!(exchange.accept(&acknowledgement).unwrap());
        let error = exchange.into_object().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn refusal_returns_error_of_kernel() {
        let refusal = message(NLMSG_ERROR, 7, 0, &error_payload(-libc::EEXIST));
        let error = started(Expect::Acknowledgement)
            .accept(&refusal)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn dump_ends_with_done_and_keeps_all_objects() {
        let mut exchange = started(Expect::Dump);
        let first = [
            message(NEWTABLE, 7, 0, &[1, 0, 0, 0]),
            message(NEWTABLE, 7, 0, &[2, 0, 0, 0]),
        ];
        assert!(!exchange.accept(&first.concat()).unwrap());
        let last = [
            message(NEWTABLE, 7, 0, &[3, 0, 0, 0]),
            message(NLMSG_DONE, 7, 0, &[0; 4]),
        ];
        assert!(exchange.accept(&last.concat()).unwrap());
        assert_eq!(exchange.into_objects(), [object(1), object(2), object(3)]);
    }

    #[test]
    fn dump_of_changing_objects_is_interrupted() {
        let mut inconsistent = message(NEWTABLE, 7, 0, &[1, 0, 0, 0]);
        netlink_packet_core::NetlinkBuffer::new(&mut inconsistent).set_flags(NLM_F_DUMP_INTR);
        let mut exchange = started(Expect::Dump);
        assert!(!exchange.accept(&inconsistent).unwrap());
        let error = exchange
            .accept(&message(NLMSG_DONE, 7, 0, &[]))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        let overrun = message(NLMSG_OVERRUN, 7, 0, &[]);
        let error = started(Expect::Dump).accept(&overrun).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn readable_objects_of_a_changing_dump_are_kept() {
        let mut inconsistent = message(NEWTABLE, 7, 0, &[1, 0, 0, 0]);
        netlink_packet_core::NetlinkBuffer::new(&mut inconsistent).set_flags(NLM_F_DUMP_INTR);
        // Shorter than its header.
        let undecodable = message(NEWTABLE, 7, 0, &[2]);
        let last = [undecodable, message(NLMSG_DONE, 7, 0, &[])].concat();
        let mut exchange = started(Expect::Readable);
        assert!(!exchange.accept(&inconsistent).unwrap());
        assert!(exchange.accept(&last).unwrap());
        assert_eq!(exchange.into_objects(), [object(1)]);
        let mut exchange = started(Expect::Dump);
        assert!(exchange.accept(&last).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_datagram_completes_or_fails(mut datagram: Vec<u8>, numbered: bool) {
            if let (true, Some(sequence)) = (numbered, datagram.get_mut(8..12)) {
                sequence.copy_from_slice(&7_u32.to_ne_bytes());
            }
            let mut exchange = started(Expect::Dump);
            let _ = exchange.accept(&datagram);
            prop_assert!(exchange.into_objects().len() <= datagram.len() / 16);
        }
    }
}
