//! Sends and receives for the DHCP clients. One task per socket reads messages into one
//! bounded queue.
//!
//! | direction | client without an address | client with an address |
//! |---|---|---|
//! | out | one packet socket for all links | UDP socket on br0 |
//! | in | packet socket on its NIC or on br0 | UDP socket on br0 |
//!
//! ARP uses packet sockets both ways. [`crate::uplink::listeners`] decides which sockets are
//! open.
//!
//! # Limits
//!
//! While the queue is full, messages are dropped, as by a full socket.

mod auxdata;
pub mod packet;

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use buildos_dhcp::udp_packet::{self, SERVER_PORT};
use buildos_dhcp::{Transmit, arp, socket_filter};
use buildos_types::LinkIndex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::packet::{EtherType, PacketReceiver, PacketSender};
use crate::lldp;
use crate::uplink::gateway::Request;
use crate::uplink::listeners::Listen;

/// Capacity of the queue. A DHCP exchange is two messages.
const QUEUE: usize = 64;
/// Limit of a message from a UDP socket, in bytes.
const MESSAGE_SIZE: usize = 2048;

/// Delay of LLDP after the start of netd. With it from the start, the first poll of an agent in QEMU
/// came a second later.
const LLDP_DELAY: Duration = Duration::from_secs(10);
/// Shortest time between two LLDP frames of a NIC.
const LLDP_INTERVAL: Duration = Duration::from_secs(1);

/// A received message.
#[derive(Debug)]
pub struct Incoming {
    /// Index of the NIC of the client.
    pub client: LinkIndex,
    #[allow(missing_docs)]
    pub message: Message,
}

/// A received message, without its headers.
#[derive(Debug)]
pub enum Message {
    /// The UDP payload of a DHCP message.
    Dhcp(Vec<u8>),
    /// An ARP packet.
    Arp(arp::Packet),
    /// An LLDP frame.
    Lldp(lldp::Frame),
}

/// The open sockets.
pub struct Sockets {
    packets: PacketSender,
    /// Time from which sockets for LLDP are opened.
    lldp_at: Instant,
    open: Vec<Open>,
    sender: mpsc::Sender<Incoming>,
    receiver: mpsc::Receiver<Incoming>,
}

struct Open {
    client: LinkIndex,
    listen: Listen,
    /// The socket, if the client also sends with it.
    udp: Option<Arc<AsyncFd<UdpSocket>>>,
    /// The socket, if it receives the answers to a search.
    replies: Option<Arc<PacketReceiver>>,
    reader: JoinHandle<()>,
}

impl Open {
    fn serves(&self, client: LinkIndex, listen: &Listen) -> bool {
        // A reader ends when its link is removed. Its socket is reopened then.
        self.client == client && self.listen == *listen && !self.reader.is_finished()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Sockets {
    /// Opens the socket for sending.
    ///
    /// # Errors
    ///
    /// Packet sockets are not permitted (CAP_NET_RAW).
    pub fn open() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Ok(Self {
            packets: PacketSender::open()?,
            lldp_at: Instant::now() + LLDP_DELAY,
            open: Vec::new(),
            sender,
            receiver,
        })
    }

    /// Opens the given sockets in addition to the open ones. Returns the failures.
    pub fn listen(&mut self, wanted: &[(LinkIndex, Listen)]) -> Vec<(LinkIndex, io::Error)> {
        let mut failed = Vec::new();
        for (client, listen) in wanted {
            if !self.open.iter().any(|open| open.serves(*client, listen)) {
                match Open::new(*client, listen, self.sender.clone(), self.lldp_at) {
                    Ok(open) => self.open.push(open),
                    Err(error) => failed.push((*client, error)),
                }
            }
        }
        failed
    }

    /// Closes all sockets but the given ones.
    pub fn close_others(&mut self, wanted: &[(LinkIndex, Listen)]) {
        self.open.retain(|open| {
            wanted
                .iter()
                .any(|(client, listen)| open.serves(*client, listen))
        });
    }

    /// Sends a message of a client by its NIC.
    ///
    /// # Errors
    ///
    /// The client has an address but no UDP socket, or the kernel refuses. The client sends
    /// again when its timer expires.
    pub fn send(&self, client: LinkIndex, transmit: &Transmit) -> io::Result<()> {
        if transmit.source.is_unspecified() {
            let packet =
                udp_packet::build(transmit.source, transmit.destination, &transmit.payload);
            let packet = packet.map_err(io::Error::other)?;
            return self.packets.broadcast(client, EtherType::Ipv4, &packet);
        }
        let mut sockets = self.open.iter().filter(|open| open.client == client);
        let socket = sockets
            .find_map(|open| open.udp.as_ref())
            .ok_or(io::ErrorKind::NotConnected)?;
        let to = SocketAddrV4::new(transmit.destination, SERVER_PORT);
        let sent = socket.get_ref().send_to(&transmit.payload, to);
        sent.map(|_| ())
    }

    /// Broadcasts an ARP packet on a link.
    ///
    /// # Errors
    ///
    /// The link is down or removed.
    pub fn send_arp(&self, link: LinkIndex, packet: &arp::Packet) -> io::Result<()> {
        self.packets
            .broadcast(link, EtherType::Arp, &packet.encode())
    }

    /// Sends an ARP request to a gateway.
    ///
    /// # Errors
    ///
    /// The link is down or removed.
    pub fn ask_gateway(&self, link: LinkIndex, request: &Request) -> io::Result<()> {
        let packet = request.packet.encode();
        match request.to {
            None => self.packets.broadcast(link, EtherType::Arp, &packet),
            Some(mac) => self.packets.send(link, EtherType::Arp, mac, &packet),
        }
    }

    /// Returns the next message if there is one. It asks the kernel for answers to a search:
    /// the task of a socket does not run while netd is busy.
    pub fn try_receive(&mut self) -> Option<Incoming> {
        let queued = self.receiver.try_recv().ok();
        queued.or_else(|| self.open.iter().find_map(Open::try_receive_reply))
    }

    /// Waits for the next message. Cancel-safe.
    pub async fn receive(&mut self) -> Incoming {
        match self.receiver.recv().await {
            Some(incoming) => incoming,
            // Unreachable: `self.sender` keeps the channel open.
            None => std::future::pending().await,
        }
    }
}

impl Open {
    /// Returns the next answer in the socket. Drops malformed packets before it.
    fn try_receive_reply(&self) -> Option<Incoming> {
        let socket = self.replies.as_ref()?;
        let mut packets = std::iter::from_fn(|| socket.try_receive()).take(QUEUE);
        let message = packets.find_map(|packet| reply(&packet).ok())?;
        let client = self.client;
        Some(Incoming { client, message })
    }

    fn new(
        client: LinkIndex,
        listen: &Listen,
        sender: mpsc::Sender<Incoming>,
        lldp_at: Instant,
    ) -> io::Result<Self> {
        let inbox = Inbox { client, sender };
        let (mut udp, mut replies) = (None, None);
        let reader = match listen {
            Listen::Replies(link, mac) => {
                let filter = socket_filter::dhcp_replies(*mac);
                let socket = PacketReceiver::open(*link, EtherType::Ipv4, &filter)?;
                let socket = Arc::new(socket);
                replies = Some(socket.clone());
                tokio::spawn(read_packets(inbox, socket, reply))
            }
            Listen::Claims {
                link,
                tap,
                addresses,
                mac,
            } => {
                let filter = socket_filter::address_claims(addresses, *mac);
                let frames = if *tap { EtherType::Tap } else { EtherType::Arp };
                let socket = PacketReceiver::open(*link, frames, &filter)?;
                tokio::spawn(read_packets(inbox, Arc::new(socket), claim))
            }
            Listen::Gateway(link, gateway, address) => {
                let filter = socket_filter::arp_between(*gateway, *address);
                let socket = PacketReceiver::open(*link, EtherType::Arp, &filter)?;
                tokio::spawn(read_packets(inbox, Arc::new(socket), claim))
            }
            Listen::Lldp(link) => tokio::spawn(read_lldp(inbox, *link, lldp_at)),
            Listen::Udp(_, device, mac) => {
                let filter = socket_filter::dhcp_datagrams(*mac);
                let socket = Arc::new(packet::udp(device, &filter)?);
                udp = Some(socket.clone());
                tokio::spawn(read_udp(inbox, socket))
            }
        };
        Ok(Self {
            client,
            listen: listen.clone(),
            udp,
            replies,
            reader,
        })
    }
}

/// The queue, for the reader of one client.
struct Inbox {
    client: LinkIndex,
    sender: mpsc::Sender<Incoming>,
}

impl Inbox {
    fn put(&self, message: Message) {
        let client = self.client;
        if self.sender.try_send(Incoming { client, message }).is_err() {
            tracing::debug!(client = client.get(), "queue full, message dropped");
        }
    }
}

/// Parses a packet. An error is the reason why the packet is malformed.
type Parse = fn(&packet::Received) -> Result<Message, String>;

fn reply(received: &packet::Received) -> Result<Message, String> {
    udp_packet::parse(&received.packet, received.checksum_ready)
        .map(|datagram| Message::Dhcp(datagram.payload.to_vec()))
        .map_err(|error| error.to_string())
}

fn claim(received: &packet::Received) -> Result<Message, String> {
    arp::Packet::parse(&received.packet)
        .map(Message::Arp)
        .map_err(|error| error.to_string())
}

async fn read_packets(inbox: Inbox, socket: Arc<PacketReceiver>, parse: Parse) {
    let client = inbox.client.get();
    loop {
        match socket.receive().await.map(|received| parse(&received)) {
            Ok(Ok(message)) => inbox.put(message),
            Ok(Err(error)) => tracing::trace!(client, error, "packet dropped"),
            // The kernel reports a link that goes down once. The socket remains usable.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => {
                tracing::debug!(client, %error, "packet socket closed");
                return;
            }
        }
    }
}

/// Reads LLDP frames, one a second at most: a device sends one in 30 s, and five in a row after a
/// change (IEEE 802.1AB-2016, clause 9.2). The kernel drops a flood.
async fn read_lldp(inbox: Inbox, link: LinkIndex, lldp_at: Instant) {
    let client = inbox.client.get();
    tokio::time::sleep_until(lldp_at).await;
    let filter = socket_filter::multicast(packet::LLDP_GROUP);
    let socket = match PacketReceiver::open(link, EtherType::Lldp, &filter) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(client, %error, "cannot listen");
            return;
        }
    };
    loop {
        match socket.receive().await {
            Ok(received) => match lldp::frame::parse(&received.packet) {
                Ok(frame) => inbox.put(Message::Lldp(frame)),
                Err(error) => tracing::trace!(client, %error, "LLDP frame dropped"),
            },
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => {
                tracing::debug!(client, %error, "packet socket closed");
                return;
            }
        }
        tokio::time::sleep(LLDP_INTERVAL).await;
    }
}

async fn read_udp(inbox: Inbox, socket: Arc<AsyncFd<UdpSocket>>) {
    let client = inbox.client.get();
    let mut buffer = vec![0; MESSAGE_SIZE];
    loop {
        let receive = |socket: &UdpSocket| socket.recv(&mut buffer);
        match socket.async_io(Interest::READABLE, receive).await {
            Ok(length) => inbox.put(Message::Dhcp(buffer[..length].to_vec())),
            // An ICMP error about an earlier message. The client's timers handle lost messages.
            Err(error) => tracing::debug!(client, %error, "UDP socket reports an error"),
        }
    }
}
