//! Opens the sockets of a DHCP client.
//!
//! [`PacketReceiver`] and [`PacketSender`] need no address on the link (packet(7)). Both
//! are created with protocol 0: the receiver receives nothing until its filter is
//! attached and it is bound, and the sender never receives anything.
//!
//! [`udp`] returns an ordinary socket for a client with an address. The kernel resolves the
//! server's hardware address for it, and does not answer the server with ICMP "port
//! unreachable" while it exists.
//!
//! # Safety
//!
//! Invariant of every `unsafe` block: pointers and lengths passed to the kernel describe live
//! local values for the duration of the call.

#![allow(unsafe_code)] // socket options, sockaddr_ll and recvmsg have no safe wrapper.

use std::io;
use std::mem::{size_of_val, zeroed};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};

use buildos_dhcp::socket_filter::Instruction;
use buildos_dhcp::udp_packet::CLIENT_PORT;
use buildos_types::{LinkIndex, MacAddress};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::auxdata;

/// Largest packet in bytes; only jumbo frames are larger. DHCP messages over 1500 bytes
/// are fragments, which the filter drops.
const RECEIVE_SIZE: usize = 2048;
/// Size of the socket's buffer in bytes. It bounds the memory that a flood can use.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// "Nearest bridge", the destination of LLDP frames, which no bridge forwards (IEEE
/// 802.1AB-2016, table 7-1).
pub const LLDP_GROUP: MacAddress = MacAddress([0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e]);

/// packet(7); not in the crate libc.
const PACKET_IGNORE_OUTGOING: i32 = 23;

/// Protocol behind the Ethernet header.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtherType {
    Ipv4,
    Arp,
    /// LLDP (IEEE 802.1AB). A socket joins its multicast group.
    Lldp,
    /// Every protocol. The socket sees received frames before a bridge takes them.
    Tap,
}

impl EtherType {
    /// Returns the number in network byte order, as in sockaddr_ll.
    fn network_order(self) -> u16 {
        let number = match self {
            Self::Ipv4 => libc::ETH_P_IP,
            Self::Arp => libc::ETH_P_ARP,
            Self::Lldp => libc::ETH_P_LLDP,
            Self::Tap => libc::ETH_P_ALL,
        };
        (number as u16).to_be()
    }
}

/// A packet socket that receives the packets of one link that pass its filter.
pub struct PacketReceiver(AsyncFd<OwnedFd>);

/// A received packet.
pub struct Received {
    /// The packet, without its Ethernet header.
    pub packet: Vec<u8>,
    /// True if the UDP checksum is filled in. A sender on the same machine leaves that to
    /// hardware, which the packet never reaches (`TP_STATUS_CSUMNOTREADY`).
    pub checksum_ready: bool,
}

/// A packet socket that sends on any link.
pub struct PacketSender(OwnedFd);

impl PacketSender {
    /// Opens the socket.
    ///
    /// # Errors
    ///
    /// Packet sockets are not permitted (CAP_NET_RAW).
    pub fn open() -> io::Result<Self> {
        packet_socket().map(Self)
    }

    /// Broadcasts a packet on a link.
    ///
    /// # Errors
    ///
    /// The link is down or removed, or its queue is full.
    pub fn broadcast(&self, link: LinkIndex, kind: EtherType, packet: &[u8]) -> io::Result<()> {
        self.send(link, kind, MacAddress([0xff; 6]), packet)
    }

    /// Sends a packet to a hardware address on a link.
    ///
    /// # Errors
    ///
    /// As [`PacketSender::broadcast`].
    pub fn send(
        &self,
        link: LinkIndex,
        kind: EtherType,
        to: MacAddress,
        packet: &[u8],
    ) -> io::Result<()> {
        let address = link_address(link, kind, to.0)?;
        // SAFETY: see the module.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
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
}

impl PacketReceiver {
    /// Opens a socket on a link with a filter ([`buildos_dhcp::socket_filter`]).
    ///
    /// # Errors
    ///
    /// Packet sockets are not permitted (CAP_NET_RAW), or the link is removed.
    pub fn open(link: LinkIndex, kind: EtherType, program: &[Instruction]) -> io::Result<Self> {
        let fd = packet_socket()?;
        attach_filter(fd.as_raw_fd(), program)?;
        set(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        // Without it, the kernel copies each frame that the link sends for a tap.
        set(fd.as_raw_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        set(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            i32::try_from(RECEIVE_BUFFER).unwrap_or(i32::MAX),
        )?;
        let address = link_address(link, kind, [0; 6])?;
        // SAFETY: see the module.
        check(unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                length_of(&address),
            )
        })?;
        if kind == EtherType::Lldp {
            join(fd.as_raw_fd(), link, LLDP_GROUP)?;
        }
        // SAFETY: an OwnedFd returns the same open descriptor until it is
        // dropped, and the AsyncFd owns it.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)?;
        Ok(Self(fd))
    }

    /// Returns the next packet if there is one.
    pub fn try_receive(&self) -> Option<Received> {
        receive(self.0.as_raw_fd()).ok()
    }

    /// Waits for the next packet. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The link went down or is removed.
    pub async fn receive(&self) -> io::Result<Received> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(received) = ready.try_io(|fd| receive(fd.as_raw_fd())) {
                return received;
            }
        }
    }
}

/// Opens a UDP socket on the client port that sends and receives by one device, broadcasts
/// included, and receives the datagrams that pass its filter. tokio watches for datagrams only:
/// each sent one would wake a socket of its own type.
///
/// # Errors
///
/// The socket is not permitted (CAP_NET_RAW, CAP_NET_BIND_SERVICE), or the device is missing.
pub fn udp(device: &str, program: &[Instruction]) -> io::Result<AsyncFd<UdpSocket>> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    attach_filter(socket.as_raw_fd(), program)?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.bind(&SockAddr::from(std::net::SocketAddrV4::new(
        Ipv4Addr::UNSPECIFIED,
        CLIENT_PORT,
    )))?;
    // SAFETY: a UdpSocket returns the same open descriptor until it is dropped, and the AsyncFd
    // owns it.
    let socket = unsafe { AsyncFd::register_with_interest(socket.into(), Interest::READABLE) };
    socket.map_err(io::Error::from)
}

fn receive(fd: RawFd) -> io::Result<Received> {
    let mut packet = vec![0u8; RECEIVE_SIZE];
    let mut control = [0u8; auxdata::SIZE];
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
    let control = control.get(..message.msg_controllen).unwrap_or_default();
    Ok(Received {
        packet,
        checksum_ready: auxdata::checksum_ready(control),
    })
}

/// Opens a packet socket without a protocol, which receives nothing until it is bound.
fn packet_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the NIC receive frames to a multicast address while the socket is open.
fn join(fd: RawFd, link: LinkIndex, group: MacAddress) -> io::Result<()> {
    // SAFETY: a packet_mreq of zeroes is valid.
    let mut request: libc::packet_mreq = unsafe { zeroed() };
    request.mr_ifindex = i32::try_from(link.get()).map_err(io::Error::other)?;
    request.mr_type = libc::PACKET_MR_MULTICAST as u16;
    request.mr_alen = 6;
    for (byte, value) in request.mr_address.iter_mut().zip(group.0) {
        *byte = value;
    }
    let (level, name) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);
    // SAFETY: see the module.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const request).cast(),
            length_of(&request),
        )
    };
    check(result).map(|_| ())
}

fn attach_filter(fd: RawFd, program: &[Instruction]) -> io::Result<()> {
    let mut instructions: Vec<libc::sock_filter> = program
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

fn link_address(link: LinkIndex, kind: EtherType, mac: [u8; 6]) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: a sockaddr_ll of zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = kind.network_order();
    address.sll_ifindex = i32::try_from(link.get()).map_err(io::Error::other)?;
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&mac);
    Ok(address)
}

fn length_of<T>(value: &T) -> libc::socklen_t {
    // Socket structures are far smaller than 4 GiB.
    size_of_val(value) as libc::socklen_t
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
