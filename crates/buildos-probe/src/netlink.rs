//! Requests to rtnetlink, one at a time (rtnetlink(7)).

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use socket2::{Domain, Protocol, Socket, Type};

/// The kernel answers before the call that asks returns, unless somebody else
/// holds its lock.
const PATIENCE: Duration = Duration::from_secs(5);
/// Larger than any answer to a question for one link.
const LARGEST: usize = 32 * 1024;

/// A socket for requests to the kernel, of some network namespace.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// In the namespace that we are in.
    pub(crate) fn here() -> io::Result<Self> {
        let domain = Domain::from(libc::AF_NETLINK);
        let protocol = Protocol::from(libc::NETLINK_ROUTE);
        Self::over(Socket::new(domain, Type::RAW, Some(protocol))?)
    }

    /// In the namespace of the socket that is our standard input.
    pub(crate) fn inherited() -> io::Result<Self> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let socket = Socket::from(socket);
        if socket.domain()? != Domain::from(libc::AF_NETLINK) {
            return Err(io::Error::from_raw_os_error(libc::EPROTOTYPE));
        }
        Self::over(socket)
    }

    fn over(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Numbers that an answer to somebody before us has not.
        let sequence = buildos_service::random::seed() as u32;
        Ok(Self { socket, sequence })
    }

    /// Makes something that must not exist yet.
    pub(crate) fn create(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.send(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)?;
        self.receive().map(drop)
    }

    /// Changes something that exists.
    pub(crate) fn change(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.send(message, NLM_F_ACK)?;
        self.receive().map(drop)
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        self.send(message, 0)?;
        self.receive()?
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes).map(drop)
    }

    /// The answer; [`None`] when it is an acknowledgement.
    fn receive(&mut self) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut buffer = vec![0; LARGEST];
        loop {
            let length = (&self.socket).read(&mut buffer)?;
            let bytes = buffer.get(..length).unwrap_or_default();
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if message.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(error) = message.payload {
                return match error.code {
                    None => Ok(None),
                    Some(_) => Err(error.to_io()),
                };
            }
            let NetlinkPayload::InnerMessage(answer) = message.payload else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            return Ok(Some(answer));
        }
    }
}
