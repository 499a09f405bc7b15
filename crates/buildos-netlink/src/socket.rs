//! Sends requests from a program with tokio.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLMSG_OVERRUN};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::endpoint::Endpoint;
use crate::exchange::{Exchange, Expect};
use crate::frame::{self, malformed, messages};
use crate::netfilter::NetfilterMessage;
use crate::protocol::{Protocol, TIMEOUT};

/// A socket that sends one request at a time.
///
/// Errors of its methods are the kernel's, or
/// - [`io::ErrorKind::TimedOut`]: no answer within [`TIMEOUT`],
/// - [`io::ErrorKind::InvalidData`]: a malformed answer,
/// - [`io::ErrorKind::Interrupted`]: the objects changed during a dump.
#[allow(clippy::missing_errors_doc)]
pub struct Socket<M> {
    endpoint: AsyncFd<Endpoint>,
    sequence: u32,
    protocol: PhantomData<fn(M) -> M>,
}

impl<M: Protocol> Socket<M> {
    /// Opens a socket in the network namespace of the process.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            endpoint: Endpoint::open(M::NUMBER, 0)?.register()?,
            sequence: 0,
            protocol: PhantomData,
        })
    }

    /// Creates an object that must not exist yet.
    pub async fn create(&mut self, object: M) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.exchange(Expect::Acknowledgement, object, flags)
            .await?;
        Ok(())
    }

    /// Creates an object, or changes the one that exists.
    pub async fn replace(&mut self, object: M) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.exchange(Expect::Acknowledgement, object, flags)
            .await?;
        Ok(())
    }

    /// Changes or removes an object that exists.
    pub async fn change(&mut self, object: M) -> io::Result<()> {
        self.exchange(Expect::Acknowledgement, object, 0).await?;
        Ok(())
    }

    /// Returns one object.
    pub async fn get(&mut self, request: M) -> io::Result<M> {
        let answer = self.exchange(Expect::Object, request, 0).await?;
        answer.into_object()
    }

    /// Returns all objects that match the request.
    pub async fn dump(&mut self, request: M) -> io::Result<Vec<M>> {
        let answer = self.exchange(Expect::Dump, request, 0).await?;
        Ok(answer.into_objects())
    }

    /// Returns the objects that match the request, without those that cannot be decoded. If
    /// objects changed meanwhile, some can be missing: read again after the notification.
    pub async fn readable(&mut self, request: M) -> io::Result<Vec<M>> {
        let answer = self.exchange(Expect::Readable, request, 0).await?;
        Ok(answer.into_objects())
    }

    /// Returns the netlink port of the socket, which notifications of its changes carry. It is
    /// the number of the process, if no other socket of it has that.
    pub fn port(&self) -> io::Result<u32> {
        self.endpoint.get_ref().port()
    }

    async fn exchange(
        &mut self,
        expect: Expect,
        message: M,
        flags: u16,
    ) -> io::Result<Exchange<M>> {
        self.sequence = self.sequence.wrapping_add(1);
        let (mut exchange, request) = Exchange::new(self.sequence, expect, message, flags);
        self.endpoint.get_ref().send(&request)?;
        while !exchange.accept(&self.receive().await?)? {}
        Ok(exchange)
    }

    async fn receive(&self) -> io::Result<Vec<u8>> {
        let received = timeout(TIMEOUT, receive(&self.endpoint)).await;
        received.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// The kernel did not commit a batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The kernel refused one message, and with it the whole batch.
    #[error("message {sequence} refused")]
    Refused {
        /// Sequence number of the message.
        sequence: u32,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The socket failed, as described at [`Socket`].
    #[error("no answer to a batch")]
    Failed(#[from] io::Error),
}

impl Socket<NetfilterMessage> {
    /// Sends a batch of nf_tables, and waits until the kernel has acknowledged each
    /// message. The caller frames the batch and numbers its messages with `sequence`.
    ///
    /// # Errors
    ///
    /// [`BatchError`]; the kernel committed nothing.
    pub async fn commit(&mut self, batch: &[u8], sequence: Range<u32>) -> Result<(), BatchError> {
        self.endpoint.get_ref().send(batch)?;
        let mut missing = sequence.len();
        while missing > 0 {
            let datagram = self.receive().await?;
            missing = missing.saturating_sub(acknowledged(&datagram, &sequence)?);
        }
        Ok(())
    }
}

/// Returns how many messages of a batch the datagram acknowledges.
fn acknowledged(datagram: &[u8], batch: &Range<u32>) -> Result<usize, BatchError> {
    let mut count = 0;
    for message in messages(datagram) {
        let message = message.map_err(malformed)?;
        let sequence = message.sequence_number();
        if !batch.contains(&sequence) {
            continue;
        }
        if message.message_type() == NLMSG_OVERRUN {
            return Err(io::Error::from(io::ErrorKind::Interrupted).into());
        }
        if let Some(source) = frame::error(&message).map_err(malformed)? {
            return Err(BatchError::Refused { sequence, source });
        }
        count += 1;
    }
    Ok(count)
}

/// Waits for the kernel's next datagram. Cancel-safe.
pub(crate) async fn receive(endpoint: &AsyncFd<Endpoint>) -> io::Result<Vec<u8>> {
    loop {
        let received = endpoint.async_io(Interest::READABLE, Endpoint::receive);
        if let Some(datagram) = received.await? {
            return Ok(datagram);
        }
    }
}
