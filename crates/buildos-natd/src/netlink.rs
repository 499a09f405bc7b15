//! Netlink sockets and the frame of their messages (netlink(7)). What messages
//! are about is known elsewhere.

use std::io;
use std::time::Duration;

use netlink_packet_core::{DecodeError, ErrorBuffer, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{AsyncSocket as _, SocketAddr, TokioSocket};

/// How long the kernel may take. It answers before the call that asks returns;
/// only other holders of a lock can make us wait.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// Messages and attributes begin at multiples of this (`NLMSG_ALIGNTO`,
/// `NLA_ALIGNTO`).
const ALIGNMENT: usize = 4;

/// A socket that hears only the kernel and is a member of the groups.
pub(crate) fn socket(protocol: isize, groups: u32) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// A message.
pub(crate) fn request(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(payload);
    let length = bytes.len() as u32;
    let mut header = NetlinkBuffer::new(&mut bytes);
    header.set_length(length);
    header.set_message_type(kind);
    header.set_flags(flags);
    header.set_sequence_number(sequence);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

/// An attribute, filled up to where the next one begins.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (ATTRIBUTE_HEADER + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

/// The messages of a datagram.
pub(crate) fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, DecodeError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(rest);
        rest = match &message {
            Ok(message) => {
                let length = (message.length() as usize).next_multiple_of(ALIGNMENT);
                rest.get(length..).unwrap_or_default()
            }
            Err(_) => &[],
        };
        Some(message)
    })
}

/// The error of an error message, unless its code is 0: an acknowledgement.
pub(crate) fn refusal(message: &NetlinkBuffer<&[u8]>) -> Result<Option<io::Error>, DecodeError> {
    if message.message_type() != NLMSG_ERROR {
        return Ok(None);
    }
    let code = ErrorBuffer::new_checked(message.payload())?.code();
    Ok(code.map(|code| io::Error::from_raw_os_error(code.get().saturating_neg())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_taken_apart() {
        let datagram = [
            request(3, 0, 0, &[1, 2, 3]),
            request(NLMSG_ERROR, 0, 0, &[0; 20]),
        ]
        .concat();
        let kinds: Vec<_> = messages(&datagram)
            .map(|m| m.map(|m| m.message_type()).unwrap())
            .collect();
        assert_eq!(kinds, [3, NLMSG_ERROR]);
    }

    #[test]
    fn an_error_of_0_is_none() {
        let refused = |code: i32| {
            let payload = [&code.to_ne_bytes()[..], &[0; 16]].concat();
            let datagram = request(NLMSG_ERROR, 0, 0, &payload);
            let message = messages(&datagram).next().unwrap().unwrap();
            refusal(&message).unwrap().and_then(|e| e.raw_os_error())
        };
        assert_eq!(refused(0), None);
        assert_eq!(refused(-libc::ENODEV), Some(libc::ENODEV));
    }
}
