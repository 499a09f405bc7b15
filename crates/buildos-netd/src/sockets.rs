//! Between the race's clients and the network: which sockets are open, what
//! they send, what comes in.
//!
//! Messages from 0.0.0.0 and ARP leave by one packet socket for all links. A client
//! without an address in use receives by a packet socket on its NIC, or on br0 when
//! the NIC is br0's port (a bridge takes frames from its ports before packet
//! sockets see them). A bound client has a UDP socket on br0, for both ways. Frames
//! are read by one task per socket and end in one bounded queue; when it is full,
//! frames are dropped, as a full socket would do.

pub mod packet;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use buildos_dhcp::udp_packet::{self, SERVER_PORT};
use buildos_dhcp::{Transmit, arp, socket_filter};
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::mac::MacAddress;
use crate::sockets::packet::{self, EtherType, PacketReceiver, PacketSender};

/// Messages that may wait; a DHCP exchange is two of them.
const QUEUE: usize = 64;
/// Largest message that a UDP socket passes on.
const MESSAGE_SIZE: usize = 2048;

/// What a client listens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// DHCP messages to this hardware address on the link of this index, without
    /// an address.
    Replies(u32, MacAddress),
    /// DHCP messages that the bridge of this index and name receives, with an address.
    /// A bridge that was made anew is another one, whatever its name.
    Udp(u32, &'static str),
    /// ARP on the link of this index in which others than this hardware address
    /// claim the address.
    Claims(u32, Ipv4Addr, MacAddress),
}

/// Something for the client of a link.
#[derive(Debug)]
pub struct Incoming {
    /// Index of the client's link.
    pub client: u32,
    /// What came in.
    pub message: Message,
}

/// What comes in.
#[derive(Debug)]
pub enum Message {
    /// The UDP payload of a DHCP message.
    Dhcp(Vec<u8>),
    /// An ARP packet.
    Arp(arp::Packet),
}

/// The open sockets.
pub struct Wire {
    packets: PacketSender,
    open: Vec<Open>,
    sender: mpsc::Sender<Incoming>,
    receiver: mpsc::Receiver<Incoming>,
}

struct Open {
    client: u32,
    listen: Listen,
    /// The socket, where it also sends.
    udp: Option<Arc<UdpSocket>>,
    reader: JoinHandle<()>,
}

impl Open {
    fn is(&self, client: u32, listen: &Listen) -> bool {
        // A reader ends when its link goes; the socket is opened anew then.
        self.client == client && self.listen == *listen && !self.reader.is_finished()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Wire {
    /// Nobody listens yet.
    ///
    /// # Errors
    ///
    /// No permission for packet sockets (CAP_NET_RAW).
    pub fn open() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Ok(Self {
            packets: PacketSender::open()?,
            open: Vec::new(),
            sender,
            receiver,
        })
    }

    /// Opens the sockets with which the given clients listen in the given ways, in
    /// addition to those that are open. Returns the clients for which that failed.
    pub fn listen(&mut self, wanted: &[(u32, Listen)]) -> Vec<(u32, io::Error)> {
        let mut failed = Vec::new();
        for (client, listen) in wanted {
            if !self.open.iter().any(|open| open.is(*client, listen)) {
                match Open::new(*client, listen, self.sender.clone()) {
                    Ok(open) => self.open.push(open),
                    Err(error) => failed.push((*client, error)),
                }
            }
        }
        failed
    }

    /// Closes the sockets that are not wanted.
    pub fn close_others(&mut self, wanted: &[(u32, Listen)]) {
        self.open.retain(|open| {
            wanted
                .iter()
                .any(|(client, listen)| open.is(*client, listen))
        });
    }

    /// Sends a message of a client by the link of this index.
    ///
    /// # Errors
    ///
    /// The client has no socket with an address and needs one, or the network
    /// refuses. The client sends again in its own time.
    pub fn send(&self, client: u32, link: u32, transmit: &Transmit) -> io::Result<()> {
        if transmit.source.is_unspecified() {
            let packet =
                udp_packet::build(transmit.source, transmit.destination, &transmit.payload);
            let packet = packet.map_err(io::Error::other)?;
            return self.packets.broadcast(link, EtherType::Ipv4, &packet);
        }
        let mut sockets = self.open.iter().filter(|open| open.client == client);
        let socket = sockets
            .find_map(|open| open.udp.as_ref())
            .ok_or(io::ErrorKind::NotConnected)?;
        // Not by tokio, which refuses to send before it has seen the
        // socket's readiness once.
        let to = SocketAddrV4::new(transmit.destination, SERVER_PORT);
        SockRef::from(socket.as_ref())
            .send_to(&transmit.payload, &to.into())
            .map(|_| ())
    }

    /// Broadcasts an ARP packet on the link of this index.
    ///
    /// # Errors
    ///
    /// The link is down or gone.
    pub fn send_arp(&self, link: u32, packet: &arp::Packet) -> io::Result<()> {
        self.packets
            .broadcast(link, EtherType::Arp, &packet.encode())
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
        let inbox = Inbox { client, sender };
        let (udp, reader) = match listen {
            Listen::Replies(link, mac) => {
                let filter = socket_filter::dhcp_replies(*mac);
                let socket = PacketReceiver::open(*link, EtherType::Ipv4, &filter)?;
                (None, tokio::spawn(read_packets(inbox, socket, reply)))
            }
            Listen::Claims(link, address, mac) => {
                let filter = socket_filter::address_claims(*address, *mac);
                let socket = PacketReceiver::open(*link, EtherType::Arp, &filter)?;
                (None, tokio::spawn(read_packets(inbox, socket, claim)))
            }
            Listen::Udp(_, device) => {
                let socket = Arc::new(packet::udp(device)?);
                let reader = tokio::spawn(read_udp(inbox, socket.clone()));
                (Some(socket), reader)
            }
        };
        Ok(Self {
            client,
            listen: listen.clone(),
            udp,
            reader,
        })
    }
}

/// Where a reader puts what is for its client.
struct Inbox {
    client: u32,
    sender: mpsc::Sender<Incoming>,
}

impl Inbox {
    fn put(&self, message: Message) {
        let client = self.client;
        if self.sender.try_send(Incoming { client, message }).is_err() {
            tracing::debug!(client, "too many messages at once, one dropped");
        }
    }
}

/// Takes a packet apart, or says why it is none.
type Parse = fn(&packet::Received) -> Result<Message, String>;

fn reply(received: &packet::Received) -> Result<Message, String> {
    frame::parse(&received.packet, received.checksum_ready)
        .map(|datagram| Message::Dhcp(datagram.payload.to_vec()))
        .map_err(|error| error.to_string())
}

fn claim(received: &packet::Received) -> Result<Message, String> {
    arp::Packet::parse(&received.packet)
        .map(Message::Arp)
        .map_err(|error| error.to_string())
}

async fn read_packets(inbox: Inbox, socket: PacketReceiver, parse: Parse) {
    let client = inbox.client;
    loop {
        match socket.receive().await.map(|received| parse(&received)) {
            Ok(Ok(message)) => inbox.put(message),
            Ok(Err(error)) => tracing::trace!(client, error, "packet dropped"),
            // Reported once when a link goes down; the socket works on.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => {
                tracing::debug!(client, %error, "packet socket closed");
                return;
            }
        }
    }
}

async fn read_udp(inbox: Inbox, socket: Arc<UdpSocket>) {
    let client = inbox.client;
    let mut buffer = vec![0; MESSAGE_SIZE];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) => inbox.put(Message::Dhcp(buffer[..length].to_vec())),
            // An ICMP error about an earlier message; the machine's timers deal with silence.
            Err(error) => tracing::debug!(client, %error, "UDP socket reports an error"),
        }
    }
}
