//! The two kinds of socket of a DHCP client, and all `unsafe` code of netd
//! besides the clock.
//!
//! [`PacketSocket`] works on a link without an address (packet(7)). It is made
//! with protocol 0, so that it receives nothing before the filter is attached
//! and it is bound. [`udp`] makes the ordinary socket that is used once there
//! is an address; unlike a packet socket it resolves the server's hardware
//! address, and its mere presence keeps the kernel from answering the server
//! with "port unreachable".
//!
//! Invariant for every `unsafe` block here: pointers and lengths passed to the
//! kernel describe live local values for the duration of the call.

#![allow(unsafe_code)] // socket options, sockaddr_ll and recvmsg have no safe wrapper.

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};

use buildos_dhcp::filter;
use buildos_dhcp::frame::CLIENT_PORT;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;

use crate::mac::MacAddress;

/// Larger than any frame without jumbo frames; DHCP messages over 1500 bytes
/// would be fragments, which the filter drops.
const RECEIVE_SIZE: usize = 2048;
/// A flood fills the socket's buffer, not our memory.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// A packet socket for DHCP replies on one link.
pub struct PacketSocket {
    fd: AsyncFd<OwnedFd>,
    index: i32,
}

/// An IP packet that the filter let through.
pub struct Received {
    /// From the IP header on.
    pub packet: Vec<u8>,
    /// Whether the UDP checksum was filled in. A sender on the same machine
    /// leaves that to hardware that is never reached (`TP_STATUS_CSUMNOTREADY`).
    pub checksum_ready: bool,
}

impl PacketSocket {
    /// Opens a socket on a link for replies to that hardware address.
    ///
    /// # Errors
    ///
    /// No permission (CAP_NET_RAW), or the link is gone.
    pub fn open(index: u32, mac: MacAddress) -> io::Result<Self> {
        let index = i32::try_from(index).map_err(io::Error::other)?;
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        attach_filter(fd.as_raw_fd(), mac)?;
        set(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        set(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            i32::try_from(RECEIVE_BUFFER).unwrap_or(i32::MAX),
        )?;
        let address = link_address(index, [0; 6]);
        // SAFETY: see the module.
        check(unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                length_of(&address),
            )
        })?;
        // SAFETY: an OwnedFd returns the same open descriptor until it is
        // dropped, and the AsyncFd owns it.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)?;
        Ok(Self { fd, index })
    }

    /// Broadcasts an IP packet on the link.
    ///
    /// # Errors
    ///
    /// The link is down or gone, or its queue is full.
    pub fn broadcast(&self, packet: &[u8]) -> io::Result<()> {
        let address = link_address(self.index, [0xff; 6]);
        // SAFETY: see the module.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                length_of(&address),
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Waits for the next packet. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The link went down or is gone.
    pub async fn receive(&self) -> io::Result<Received> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(received) = ready.try_io(|fd| receive(fd.as_raw_fd())) {
                return received;
            }
        }
    }
}

/// A UDP socket on the client port that sends and receives by one device,
/// broadcasts included.
///
/// # Errors
///
/// No permission (CAP_NET_RAW, CAP_NET_BIND_SERVICE), or no such device.
pub fn udp(device: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.bind(&SockAddr::from(std::net::SocketAddrV4::new(
        Ipv4Addr::UNSPECIFIED,
        CLIENT_PORT,
    )))?;
    UdpSocket::from_std(socket.into())
}

fn receive(fd: RawFd) -> io::Result<Received> {
    let mut packet = vec![0u8; RECEIVE_SIZE];
    // Room for one struct tpacket_auxdata with its header, aligned as cmsghdr.
    let mut control = [0u64; 8];
    let mut part = libc::iovec {
        iov_base: packet.as_mut_ptr().cast(),
        iov_len: packet.len(),
    };
    // SAFETY: a msghdr of zeroes is valid; the pointers set below live in this function.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: see the module.
    let length = unsafe { libc::recvmsg(fd, &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    packet.truncate(length);
    Ok(Received {
        packet,
        checksum_ready: checksum_ready(&message),
    })
}

/// True unless the kernel says that the checksum is still to be filled in.
fn checksum_ready(message: &libc::msghdr) -> bool {
    // SAFETY: the kernel filled in `message` and the CMSG macros walk the
    // control buffer by the lengths in it; the data is only read when its
    // header says that a whole tpacket_auxdata is there.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let wanted = libc::CMSG_LEN(size_of::<libc::tpacket_auxdata>() as u32) as usize;
            if (*header).cmsg_level == libc::SOL_PACKET
                && (*header).cmsg_type == libc::PACKET_AUXDATA
                && (*header).cmsg_len >= wanted
            {
                let data: libc::tpacket_auxdata = libc::CMSG_DATA(header)
                    .cast::<libc::tpacket_auxdata>()
                    .read_unaligned();
                return data.tp_status & libc::TP_STATUS_CSUMNOTREADY == 0;
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    true
}

fn attach_filter(fd: RawFd, mac: MacAddress) -> io::Result<()> {
    let mut instructions: Vec<libc::sock_filter> = filter::program(mac.0)
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jt,
            jf: i.jf,
            k: i.k,
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(io::Error::other)?,
        filter: instructions.as_mut_ptr(),
    };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)
}

fn set<T>(fd: RawFd, level: i32, option: i32, value: T) -> io::Result<()> {
    // SAFETY: see the module.
    check(unsafe {
        libc::setsockopt(
            fd,
            level,
            option,
            (&raw const value).cast(),
            length_of(&value),
        )
    })?;
    Ok(())
}

fn link_address(index: i32, mac: [u8; 6]) -> libc::sockaddr_ll {
    // SAFETY: a sockaddr_ll of zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
    address.sll_ifindex = index;
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&mac);
    address
}

fn length_of<T>(value: &T) -> libc::socklen_t {
    // No socket structure is anywhere near 4 GiB.
    size_of_val(value) as libc::socklen_t
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
