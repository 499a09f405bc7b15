//! Between the race's clients and the network: which sockets are open, what
//! they send, what comes in.
//!
//! A client without an address in use has a packet socket on its NIC, or on
//! br0 when the NIC is br0's port (a bridge takes frames from its ports before
//! packet sockets see them). A bound client has a UDP socket on br0. Frames are
//! read by one task per socket and end in one bounded queue; when it is full,
//! frames are dropped, as a full socket would do.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;

use buildos_dhcp::Transmit;
use buildos_dhcp::frame::{self, SERVER_PORT};
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::mac::MacAddress;
use crate::socket::{self, PacketSocket};

/// Messages that may wait; a DHCP exchange is two of them.
const QUEUE: usize = 64;
/// Largest message that a UDP socket passes on.
const MESSAGE_SIZE: usize = 2048;

/// How a client listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// On a link of this index, without an address, for this hardware address.
    Packet(u32, MacAddress),
    /// By the device of this name, with an address.
    Udp(String),
}

/// A DHCP message for the client of a link.
#[derive(Debug)]
pub struct Incoming {
    /// Index of the client's link.
    pub client: u32,
    /// The message.
    pub payload: Vec<u8>,
}

/// The open sockets.
pub struct Wire {
    open: HashMap<u32, Open>,
    sender: mpsc::Sender<Incoming>,
    receiver: mpsc::Receiver<Incoming>,
}

struct Open {
    listen: Listen,
    socket: Socket,
    reader: JoinHandle<()>,
}

enum Socket {
    Packet(Arc<PacketSocket>),
    Udp(Arc<UdpSocket>),
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Default for Wire {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self {
            open: HashMap::new(),
            sender,
            receiver,
        }
    }
}

impl Wire {
    /// Opens and closes sockets so that exactly the given clients listen, each
    /// in the given way. Returns the clients whose socket could not be opened.
    pub fn listen(&mut self, wanted: &[(u32, Listen)]) -> Vec<(u32, io::Error)> {
        self.open.retain(|client, open| {
            // A reader ends when its link goes down; it is opened anew.
            !open.reader.is_finished()
                && wanted
                    .iter()
                    .any(|(c, listen)| c == client && *listen == open.listen)
        });
        let mut failed = Vec::new();
        for (client, listen) in wanted {
            if !self.open.contains_key(client) {
                match Open::new(*client, listen, self.sender.clone()) {
                    Ok(open) => {
                        self.open.insert(*client, open);
                    }
                    Err(error) => failed.push((*client, error)),
                }
            }
        }
        failed
    }

    /// Sends a message of a client.
    ///
    /// # Errors
    ///
    /// The client does not listen, or the network refuses. The client sends
    /// again in its own time.
    pub fn send(&self, client: u32, transmit: &Transmit) -> io::Result<()> {
        let open = self.open.get(&client).ok_or(io::ErrorKind::NotConnected)?;
        match &open.socket {
            Socket::Packet(socket) => {
                let packet = frame::build(transmit.source, transmit.destination, &transmit.payload);
                socket.broadcast(&packet.map_err(io::Error::other)?)
            }
            Socket::Udp(socket) => {
                // Not by tokio, which refuses to send before it has seen the
                // socket's readiness once.
                let to = SocketAddrV4::new(transmit.destination, SERVER_PORT);
                SockRef::from(socket.as_ref())
                    .send_to(&transmit.payload, &to.into())
                    .map(|_| ())
            }
        }
    }

    /// Waits for the next message. Cancel-safe.
    pub async fn receive(&mut self) -> Incoming {
        match self.receiver.recv().await {
            Some(incoming) => incoming,
            // Not reached: `self.sender` keeps the channel open.
            None => std::future::pending().await,
        }
    }
}

impl Open {
    fn new(client: u32, listen: &Listen, sender: mpsc::Sender<Incoming>) -> io::Result<Self> {
        let (socket, reader) = match listen {
            Listen::Packet(index, mac) => {
                let socket = Arc::new(PacketSocket::open(*index, *mac)?);
                let reader = tokio::spawn(read_packets(client, socket.clone(), sender));
                (Socket::Packet(socket), reader)
            }
            Listen::Udp(device) => {
                let socket = Arc::new(socket::udp(device)?);
                let reader = tokio::spawn(read_udp(client, socket.clone(), sender));
                (Socket::Udp(socket), reader)
            }
        };
        Ok(Self {
            listen: listen.clone(),
            socket,
            reader,
        })
    }
}

async fn read_packets(client: u32, socket: Arc<PacketSocket>, sender: mpsc::Sender<Incoming>) {
    loop {
        let received = match socket.receive().await {
            Ok(received) => received,
            // Reported once when a link goes down; the socket works on.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
            Err(error) => {
                tracing::debug!(client, %error, "packet socket closed");
                return;
            }
        };
        match frame::parse(&received.packet, received.checksum_ready) {
            Ok(datagram) => pass_on(&sender, client, datagram.payload),
            Err(error) => tracing::trace!(client, %error, "packet dropped"),
        }
    }
}

async fn read_udp(client: u32, socket: Arc<UdpSocket>, sender: mpsc::Sender<Incoming>) {
    let mut buffer = vec![0; MESSAGE_SIZE];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) => pass_on(&sender, client, &buffer[..length]),
            // An ICMP error about an earlier message; the machine's timers deal with silence.
            Err(error) => tracing::debug!(client, %error, "UDP socket reports an error"),
        }
    }
}

fn pass_on(sender: &mpsc::Sender<Incoming>, client: u32, payload: &[u8]) {
    if sender
        .try_send(Incoming {
            client,
            payload: payload.to_vec(),
        })
        .is_err()
    {
        tracing::debug!(client, "too many DHCP messages at once, one dropped");
    }
}
