//! Owns the file descriptor of a netlink socket.

#![allow(unsafe_code)] // AsyncFd has no safe constructor.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect,
    getsockname, recvmsg, send, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Netlink port of the kernel.
pub(crate) const KERNEL: u32 = 0;

/// A netlink socket whose calls never block. A call that would block fails with
/// [`io::ErrorKind::WouldBlock`], even without O_NONBLOCK.
pub(crate) struct Endpoint(OwnedFd);

impl AsRawFd for Endpoint {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Endpoint {
    /// Opens a socket in the network namespace of the process, as a member of the
    /// multicast groups in the mask.
    pub(crate) fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // The kernel then refuses datagrams of other processes to this port.
        connect(fd.as_raw_fd(), &NetlinkAddr::new(KERNEL, 0))?;
        Ok(Self(fd))
    }

    /// Takes over a socket that another process opened. Discards the queued datagrams,
    /// which are answers to that process.
    pub(crate) fn inherit(fd: OwnedFd) -> io::Result<Self> {
        getsockname::<NetlinkAddr>(fd.as_raw_fd())
            .map_err(|_| io::Error::from_raw_os_error(libc::EPROTOTYPE))?;
        let endpoint = Self(fd);
        loop {
            match endpoint.receive() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(endpoint),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Registers the socket with tokio's reactor.
    pub(crate) fn register(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the descriptor stays open and the same until the endpoint is dropped,
        // and the AsyncFd owns the endpoint.
        let registered = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        Ok(registered?)
    }

    /// Returns the netlink port, which the kernel assigned.
    pub(crate) fn port(&self) -> io::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.as_raw_fd())?.pid())
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(self.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }

    /// Returns the next datagram in full, or [`None`] if the kernel did not send it.
    pub(crate) fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let (length, _) = self.receive_into(&mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC)?;
        let mut datagram = vec![0; length];
        let (length, sender) = self.receive_into(&mut datagram, MsgFlags::empty())?;
        datagram.truncate(length);
        Ok((sender == Some(KERNEL)).then_some(datagram))
    }

    /// Returns the length of the datagram and the port of its sender.
    fn receive_into(&self, buffer: &mut [u8], flags: MsgFlags) -> io::Result<(usize, Option<u32>)> {
        let mut buffers = [IoSliceMut::new(buffer)];
        let flags = flags | MsgFlags::MSG_DONTWAIT;
        let received = recvmsg::<NetlinkAddr>(self.as_raw_fd(), &mut buffers, None, flags)?;
        Ok((received.bytes, received.address.map(|sender| sender.pid())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::sendto;

    /// A protocol over which processes can send each other datagrams.
    const PROTOCOL: SockProtocol = SockProtocol::NetlinkUserSock;

    fn unconnected() -> OwnedFd {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            PROTOCOL,
        )
        .unwrap();
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
        fd
    }

    fn send_from_process(to: &impl AsRawFd) -> nix::Result<usize> {
        let address = getsockname::<NetlinkAddr>(to.as_raw_fd()).unwrap();
        let flags = MsgFlags::empty();
        sendto(unconnected().as_raw_fd(), &[0; 16], &address, flags)
    }

    #[test]
    fn datagram_of_another_process_is_dropped() {
        let endpoint = Endpoint::inherit(unconnected()).unwrap();
        send_from_process(&endpoint).unwrap();
        assert_eq!(endpoint.receive().unwrap(), None);
        let error = endpoint.receive().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn own_socket_refuses_datagrams_of_other_processes() {
        let endpoint = Endpoint::open(PROTOCOL, 0).unwrap();
        let refused = send_from_process(&endpoint);
        assert_eq!(refused, Err(nix::Error::ECONNREFUSED));
    }
}
