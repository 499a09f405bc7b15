//! Follows the kernel's notifications of changes.
//!
//! A notification only triggers a re-read: the caller reads the state once for all queued
//! notifications. Lost notifications (ENOBUFS) have the same effect.

use std::collections::BTreeSet;
use std::io;

use nix::sys::socket::SockProtocol;
use tokio::io::unix::AsyncFd;

use crate::endpoint::{Endpoint, KERNEL};
use crate::frame::{Message, messages};

/// A change in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Netlink port that the request for the change came from: normally the number of
    /// the process. [`None`] if the kernel made the change, or several ports did.
    pub by: Option<u32>,
}

/// A message of a multicast group.
#[derive(Debug)]
pub enum Notification<'a> {
    /// A well-formed message.
    Message(Message<'a>),
    /// The kernel dropped notifications, or one is malformed.
    Lost,
}

/// A member of multicast groups.
pub struct Monitor(AsyncFd<Endpoint>);

impl Monitor {
    /// Joins groups of rtnetlink: a mask of `RTMGRP_*` (linux/rtnetlink.h).
    ///
    /// # Errors
    ///
    /// The process may not open netlink sockets, or has no file descriptor left.
    pub fn rtnetlink(groups: u32) -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute, groups)
    }

    /// Joins a group of nfnetlink: a number `NFNLGRP_*`, at most 32
    /// (linux/netfilter/nfnetlink.h).
    ///
    /// # Errors
    ///
    /// As [`Monitor::rtnetlink`]; EPERM without CAP_NET_ADMIN.
    pub fn nfnetlink(group: u32) -> io::Result<Self> {
        let mask = group.checked_sub(1).and_then(|bit| 1_u32.checked_shl(bit));
        let mask = mask.ok_or(io::ErrorKind::InvalidInput)?;
        Self::open(SockProtocol::NetlinkNetFilter, mask)
    }

    fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        Ok(Self(Endpoint::open(protocol, groups)?.register()?))
    }

    /// Waits for a notification, then passes all queued notifications to `visit`.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// The socket is broken.
    pub async fn next(&self, mut visit: impl FnMut(Notification<'_>)) -> io::Result<()> {
        let mut any = false;
        while !any {
            let mut ready = self.0.readable().await?;
            // An error here means that the queue is empty.
            while let Ok(received) = ready.try_io(|socket| socket.get_ref().receive()) {
                visit_received(received, &mut visit)?;
                any = true;
            }
        }
        Ok(())
    }

    /// Waits for a change by a netlink port other than `own`; with [`None`], by any port.
    /// Merges all queued changes into one. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The socket is broken.
    pub async fn changed(&self, own: Option<u32>) -> io::Result<Change> {
        loop {
            let mut ports = BTreeSet::new();
            self.next(|notification| {
                ports.insert(port(&notification));
            })
            .await?;
            if let Some(change) = change(&ports, own) {
                return Ok(change);
            }
        }
    }
}

/// Passes what the socket returned to `visit`.
fn visit_received(
    received: io::Result<Option<Vec<u8>>>,
    visit: &mut impl FnMut(Notification<'_>),
) -> io::Result<()> {
    match received {
        Ok(Some(datagram)) => visit_datagram(&datagram, visit),
        // Another process sent it.
        Ok(None) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => visit(Notification::Lost),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn visit_datagram(datagram: &[u8], visit: &mut impl FnMut(Notification<'_>)) {
    for message in messages(datagram) {
        visit(message.map_or(Notification::Lost, Notification::Message));
    }
}

/// Returns the port that caused a notification. For a lost notification it is unknown, as
/// for a change by the kernel itself.
fn port(notification: &Notification<'_>) -> u32 {
    match notification {
        Notification::Message(message) => message.port_number(),
        Notification::Lost => KERNEL,
    }
}

/// Merges notifications from these ports into one change. Returns [`None`] if all are
/// from `own`.
fn change(ports: &BTreeSet<u32>, own: Option<u32>) -> Option<Change> {
    let others = || ports.iter().copied().filter(|port| Some(*port) != own);
    others().next()?;
    let mut processes = others().filter(|port| *port != KERNEL);
    let by = processes.next().filter(|_| processes.next().is_none());
    Some(Change { by })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::fixture::message;
    use proptest::prelude::*;

    fn ports(datagram: &[u8]) -> Vec<u32> {
        let mut ports = Vec::new();
        visit_datagram(datagram, &mut |notification| {
            ports.push(port(&notification));
        });
        ports
    }

    #[test]
    fn change_by_a_single_process_names_its_port() {
        let table: [(&[u32], Option<u32>, Option<Change>); 7] = [
            (&[0], Some(5), Some(Change { by: None })),
            (&[7], Some(5), Some(Change { by: Some(7) })),
            (&[0, 7], Some(5), Some(Change { by: Some(7) })),
            (&[7, 8], Some(5), Some(Change { by: None })),
            (&[5, 7], Some(5), Some(Change { by: Some(7) })),
            (&[5], Some(5), None),
            (&[5], None, Some(Change { by: Some(5) })),
        ];
        for (ports, own, expected) in table {
            let set = ports.iter().copied().collect();
            assert_eq!(change(&set, own), expected, "{ports:?} {own:?}");
        }
    }

    #[test]
    fn datagram_yields_port_of_each_message() {
        let datagram = [
            message(16, 0, 7, &[1, 2, 3]),
            message(16, 0, 0, &[]),
            message(16, 0, 9, &[1]),
        ]
        .concat();
        assert_eq!(ports(&datagram), [7, 0, 9]);
    }

    #[test]
    fn malformed_message_counts_as_lost() {
        let datagram = [message(16, 0, 7, &[]), vec![1, 2, 3]].concat();
        assert_eq!(ports(&datagram), [7, KERNEL]);
    }

    #[test]
    fn dropped_notifications_count_as_lost_and_other_errors_end_the_monitor() {
        let mut lost = 0;
        let mut received = |received| {
            visit_received(received, &mut |notification| {
                assert!(matches!(notification, Notification::Lost));
                lost += 1;
            })
        };
        let error = |code| Err(io::Error::from_raw_os_error(code));
        received(error(libc::ENOBUFS)).unwrap();
        received(Ok(None)).unwrap();
        assert!(received(error(libc::EBADF)).is_err());
        assert_eq!(lost, 1);
    }

    proptest! {
        #[test]
        fn arbitrary_datagram_yields_bounded_notifications(datagram: Vec<u8>) {
            prop_assert!(ports(&datagram).len() <= datagram.len() / 16 + 1);
        }
    }
}
