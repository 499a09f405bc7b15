//! What the kernel announces of changes (rtnetlink(7)).
//!
//! Nothing is read of an announcement but by whom it was caused: what the network is
//! like is looked at afterwards, once for all of them.

use std::collections::BTreeSet;
use std::io;

use futures_util::FutureExt as _;
use rtnetlink::packet_core::NetlinkBuffer;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// Links, addresses and routes of IPv4, addresses of IPv6 (linux/rtnetlink.h).
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR;
/// The kernel itself, as netlink counts.
const KERNEL: u32 = 0;
/// Messages begin at multiples of this (`NLMSG_ALIGNTO`).
const ALIGNMENT: usize = 4;

/// Somebody's change of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The netlink port that it came by, which normally is the number of the
    /// process; none when it is the kernel's own or comes from several.
    pub by: Option<u32>,
}

/// A listener.
pub(super) struct Events(TokioSocket);

impl Events {
    /// Listens from now on.
    pub(super) fn listen() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = SocketAddr::new(0, GROUPS as u32);
        socket.socket_mut().bind(&groups)?;
        Ok(Self(socket))
    }

    /// Waits for changes that did not come by the netlink port `own`, and takes all
    /// that have been announced by then. Cancel-safe.
    pub(super) async fn next(&self, own: u32) -> io::Result<Change> {
        let mut by = BTreeSet::new();
        loop {
            heard(self.0.recv_from_full().await, &mut by)?;
            while let Some(more) = self.0.recv_from_full().now_or_never() {
                heard(more, &mut by)?;
            }
            by.remove(&own);
            if !by.is_empty() {
                return Ok(author(&by));
            }
        }
    }
}

fn heard(datagram: io::Result<(Vec<u8>, SocketAddr)>, by: &mut BTreeSet<u32>) -> io::Result<()> {
    match datagram {
        // Everybody may send to a socket (netlink(7)).
        Ok((datagram, sender)) if sender.port_number() == KERNEL => {
            by.extend(ports(&datagram));
            Ok(())
        }
        Ok(_) => Ok(()),
        // Announcements were lost, and with them whose they were.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            by.insert(KERNEL);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn author(by: &BTreeSet<u32>) -> Change {
    let mut others = by.iter().copied().filter(|port| *port != KERNEL);
    let by = others.next().filter(|_| others.next().is_none());
    Change { by }
}

/// The netlink port of each message in a datagram.
fn ports(datagram: &[u8]) -> impl Iterator<Item = u32> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = (message.length() as usize).next_multiple_of(ALIGNMENT);
        rest = rest.get(length..).unwrap_or_default();
        Some(message.port_number())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(port: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend_from_slice(payload);
        let length = bytes.len() as u32;
        let mut header = NetlinkBuffer::new(&mut bytes);
        header.set_length(length);
        header.set_port_number(port);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn kernel(datagram: Vec<u8>) -> io::Result<(Vec<u8>, SocketAddr)> {
        Ok((datagram, SocketAddr::new(KERNEL, 0)))
    }

    #[test]
    fn an_author_is_known_when_there_is_one() {
        let table: [(&[u32], Option<u32>); 4] = [
            (&[0], None),
            (&[7], Some(7)),
            (&[0, 7], Some(7)),
            (&[7, 8], None),
        ];
        for (ports, by) in table {
            let ports = ports.iter().copied().collect();
            assert_eq!(author(&ports), Change { by }, "{ports:?}");
        }
    }

    #[test]
    fn each_message_of_a_datagram_counts() {
        let mut by = BTreeSet::new();
        let datagram = [message(7, &[1, 2, 3]), message(0, &[]), message(9, &[1])].concat();
        heard(kernel(datagram), &mut by).unwrap();
        assert_eq!(by, BTreeSet::from([0, 7, 9]));
    }

    #[test]
    fn what_others_send_is_no_announcement_and_what_is_lost_is_one() {
        let mut by = BTreeSet::new();
        let forged = (message(7, &[]), SocketAddr::new(7, 0));
        heard(Ok(forged), &mut by).unwrap();
        assert_eq!(by, BTreeSet::new());
        heard(Err(io::Error::from_raw_os_error(libc::ENOBUFS)), &mut by).unwrap();
        assert_eq!(by, BTreeSet::from([KERNEL]));
        let broken = Err(io::Error::from_raw_os_error(libc::EBADF));
        assert!(heard(broken, &mut by).is_err());
    }

    proptest! {
        #[test]
        fn no_datagram_does_harm(datagram: Vec<u8>) {
            let count = ports(&datagram).count();
            prop_assert!(count <= datagram.len() / 16);
        }
    }
}
