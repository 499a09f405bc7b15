//! Parses the framing of netlink messages: headers and errors.

use std::io;

use netlink_packet_core::{
    DecodeError, ErrorBuffer, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
};

/// A message, borrowed from the datagram that brought it.
pub type Message<'a> = NetlinkBuffer<&'a [u8]>;

/// Returns the messages of a datagram, in order. The iterator ends after a malformed
/// message, because the start of the next message is unknown.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, DecodeError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(rest);
        rest = match &message {
            Ok(message) => {
                let length = (message.length() as usize).next_multiple_of(NLMSG_ALIGNTO.into());
                rest.get(length..).unwrap_or_default()
            }
            Err(_) => &[],
        };
        Some(message)
    })
}

/// Returns the error that a message reports. `NLMSG_ERROR` with code 0 is an
/// acknowledgement. A failed dump ends with `NLMSG_DONE` and a negative code.
///
/// # Errors
///
/// The message is too short for its type.
pub(crate) fn error(message: &Message<'_>) -> Result<Option<io::Error>, DecodeError> {
    let kind = message.message_type();
    // The kernel can omit the code of NLMSG_DONE.
    let has_code =
        kind == NLMSG_ERROR || (kind == NLMSG_DONE && message.payload().len() >= size_of::<i32>());
    if !has_code {
        return Ok(None);
    }
    let code = ErrorBuffer::new_checked(message.payload())?.code();
    Ok(code
        .filter(|code| kind == NLMSG_ERROR || code.get() < 0)
        .map(|code| io::Error::from_raw_os_error(code.get().saturating_neg())))
}

/// Wraps a decoding error.
pub(crate) fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Messages for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// Returns a message with this header and payload.
    pub(crate) fn message(kind: u16, sequence: u32, port: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend_from_slice(payload);
        let length = bytes.len() as u32;
        let mut header = NetlinkBuffer::new(&mut bytes);
        header.set_length(length);
        header.set_message_type(kind);
        header.set_sequence_number(sequence);
        header.set_port_number(port);
        bytes.resize(bytes.len().next_multiple_of(NLMSG_ALIGNTO.into()), 0);
        bytes
    }

    /// Returns the payload of an `NLMSG_ERROR` with this code.
    pub(crate) fn error_payload(code: i32) -> Vec<u8> {
        [&code.to_ne_bytes()[..], &[0; 16]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{error_payload, message};
    use super::*;
    use proptest::prelude::*;

    fn reported(kind: u16, payload: &[u8]) -> Option<i32> {
        let datagram = message(kind, 0, 0, payload);
        let message = messages(&datagram).next().unwrap().unwrap();
        error(&message).unwrap().and_then(|e| e.raw_os_error())
    }

    #[test]
    fn datagram_of_two_messages_yields_both() {
        let datagram = [
            message(3, 0, 0, &[1, 2, 3]),
            message(NLMSG_ERROR, 0, 0, &[0; 20]),
        ]
        .concat();
        let kinds: Vec<_> = messages(&datagram)
            .map(|m| m.map(|m| m.message_type()).unwrap())
            .collect();
        assert_eq!(kinds, [3, NLMSG_ERROR]);
    }

    #[test]
    fn error_with_code_0_is_an_acknowledgement() {
        assert_eq!(reported(NLMSG_ERROR, &error_payload(0)), None);
        assert_eq!(
            reported(NLMSG_ERROR, &error_payload(-libc::ENODEV)),
            Some(libc::ENODEV)
        );
    }

    #[test]
    fn end_of_dump_reports_negative_codes_only() {
        assert_eq!(reported(NLMSG_DONE, &[]), None);
        assert_eq!(reported(NLMSG_DONE, &0_i32.to_ne_bytes()), None);
        assert_eq!(reported(NLMSG_DONE, &7_i32.to_ne_bytes()), None);
        assert_eq!(
            reported(NLMSG_DONE, &(-libc::EPERM).to_ne_bytes()),
            Some(libc::EPERM)
        );
    }

    proptest! {
        #[test]
        fn arbitrary_datagram_yields_bounded_messages(datagram: Vec<u8>) {
            let mut count = 0;
            for message in messages(&datagram).flatten() {
                let _ = error(&message);
                count += 1;
            }
            prop_assert!(count <= datagram.len() / 16);
        }
    }
}
