//! Sends requests from a program without an async runtime.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, OwnedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::endpoint::Endpoint;
use crate::exchange::{Exchange, Expect};
use crate::protocol::{Protocol, TIMEOUT};

/// Blocking counterpart of [`crate::Socket`], with the same errors. A call waits at most
/// [`TIMEOUT`] for each datagram.
#[allow(clippy::missing_errors_doc)]
pub struct BlockingSocket<M> {
    endpoint: Endpoint,
    sequence: u32,
    protocol: PhantomData<fn(M) -> M>,
}

impl<M: Protocol> BlockingSocket<M> {
    /// Opens a socket in the network namespace of the process.
    pub fn open() -> io::Result<Self> {
        Ok(Self::over(Endpoint::open(M::NUMBER, 0)?))
    }

    /// Takes over a socket that another process opened, perhaps in another network
    /// namespace.
    ///
    /// # Errors
    ///
    /// EPROTOTYPE if the descriptor is not a netlink socket.
    pub fn inherit(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::over(Endpoint::inherit(fd)?))
    }

    fn over(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            sequence: 0,
            protocol: PhantomData,
        }
    }

    /// Creates an object that must not exist yet.
    pub fn create(&mut self, object: M) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.exchange(Expect::Acknowledgement, object, flags)?;
        Ok(())
    }

    /// Changes an object that exists.
    pub fn change(&mut self, object: M) -> io::Result<()> {
        self.exchange(Expect::Acknowledgement, object, 0)?;
        Ok(())
    }

    /// Returns one object.
    pub fn get(&mut self, request: M) -> io::Result<M> {
        self.exchange(Expect::Object, request, 0)?.into_object()
    }

    /// Returns all objects that match the request.
    pub fn dump(&mut self, request: M) -> io::Result<Vec<M>> {
        let answer = self.exchange(Expect::Dump, request, 0)?;
        Ok(answer.into_objects())
    }

    fn exchange(&mut self, expect: Expect, message: M, flags: u16) -> io::Result<Exchange<M>> {
        self.sequence = self.sequence.wrapping_add(1);
        let (mut exchange, request) = Exchange::new(self.sequence, expect, message, flags);
        self.endpoint.send(&request)?;
        while !exchange.accept(&self.receive()?)? {}
        Ok(exchange)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let limit = PollTimeout::try_from(TIMEOUT).unwrap_or(PollTimeout::MAX);
        loop {
            let mut fds = [PollFd::new(self.endpoint.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, limit) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(nix::Error::EINTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            match self.endpoint.receive() {
                Ok(Some(datagram)) => return Ok(datagram),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
