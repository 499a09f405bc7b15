//! The step that takes a lease, and the one that gives it back.
//!
//! An ordinary UDP socket is enough: with the broadcast flag set, the server
//! answers to everybody (RFC 2131, section 4.1), also before there is an
//! address.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use buildos_dhcp::{Client, Config, Event, Input, Lease, MessageKind, Output, Transmit};
use socket2::{Domain, Socket, Type};

use crate::dns::is_timeout;
use crate::{MAC, link};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// dnsmasq answers at once; it may just be restarting.
const PATIENCE: Duration = Duration::from_secs(8);
/// Where the flags are in a message, and the one that asks for a broadcast
/// (RFC 2131, section 2, figures 1 and 2).
const FLAGS: usize = 10;
const BROADCAST: u8 = 0x80;
/// Larger than any frame.
const LARGEST: usize = 2048;

/// No lease, or one that a machine could not use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("cannot ask for an address")]
    Socket(#[source] io::Error),
    #[error("{server} does not answer DHCP within {} s", PATIENCE.as_secs())]
    Silent { server: Ipv4Addr },
    #[error("{server} gives no address: {why}")]
    Refused { server: Ipv4Addr, why: String },
    #[error("{server} names no gateway")]
    NoGateway { server: Ipv4Addr },
    #[error("the lease names {gateway} as gateway and not {server}; does a machine play host?")]
    OtherGateway { server: Ipv4Addr, gateway: Ipv4Addr },
}

/// A lease that was taken.
pub(crate) struct Holding {
    client: Client,
    socket: UdpSocket,
    started: Instant,
    /// What was granted.
    pub(crate) lease: Lease,
    /// The way out that it names.
    pub(crate) gateway: Ipv4Addr,
}

/// Takes a lease from the server, and from no other one.
pub(crate) fn take(server: Ipv4Addr) -> Result<Holding, LeaseError> {
    let socket = socket().map_err(LeaseError::Socket)?;
    let mut config = Config::new(MAC);
    config.allowed_servers.push(server);
    let mut client = Client::new(config, buildos_service::random::seed());
    let started = Instant::now();
    let mut why = None;
    client.handle(Duration::ZERO, Input::Start);
    while started.elapsed() < PATIENCE {
        while let Some(output) = client.poll_output() {
            match output {
                Output::Transmit(transmit) => {
                    send(&socket, transmit).map_err(LeaseError::Socket)?;
                }
                Output::Event(Event::Offered { .. }) => {
                    client.handle(started.elapsed(), Input::Select);
                }
                Output::Event(Event::Bound(lease)) => {
                    let gateway = lease.gateway().ok_or(LeaseError::NoGateway { server })?;
                    if gateway != server {
                        return Err(LeaseError::OtherGateway { server, gateway });
                    }
                    return Ok(Holding {
                        client,
                        socket,
                        started,
                        lease: *lease,
                        gateway,
                    });
                }
                Output::Event(Event::RequestFailed {
                    reason: failure, ..
                }) => {
                    why = Some(failure.to_string());
                }
                Output::Event(Event::Refused {
                    reason: refusal, ..
                }) => {
                    why = Some(refusal.to_string());
                }
                Output::Event(_) => {}
            }
        }
        let until = client.deadline().unwrap_or(PATIENCE).min(PATIENCE);
        let left = until.saturating_sub(started.elapsed());
        let received = receive(&socket, left).map_err(LeaseError::Socket)?;
        let now = started.elapsed();
        match received {
            Some(payload) => client.handle(now, Input::Packet(&payload)),
            None => client.handle(now, Input::Timeout),
        }
    }
    Err(match why {
        Some(why) => LeaseError::Refused { server, why },
        None => LeaseError::Silent { server },
    })
}

impl Holding {
    /// Gives the lease back; if that is lost the server keeps it for us until
    /// we come again.
    pub(crate) fn release(mut self) {
        self.client.handle(self.started.elapsed(), Input::Release);
        while let Some(output) = self.client.poll_output() {
            if let Output::Transmit(transmit) = output {
                let _ = send(&self.socket, transmit);
            }
        }
    }
}

fn socket() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // Without an address there is no route that would tell.
    socket.bind_device(Some(link::HERE.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT).into())?;
    Ok(socket.into())
}

fn send(socket: &UdpSocket, transmit: Transmit) -> io::Result<()> {
    let mut payload = transmit.payload;
    // Nobody answers a RELEASE.
    if transmit.kind != MessageKind::Release {
        if let Some(flags) = payload.get_mut(FLAGS) {
            *flags |= BROADCAST;
        }
    }
    let to = SocketAddrV4::new(transmit.destination, SERVER_PORT);
    socket.send_to(&payload, to).map(drop)
}

/// [`None`] when nothing comes in time.
fn receive(socket: &UdpSocket, time: Duration) -> io::Result<Option<Vec<u8>>> {
    // No time at all would mean for ever.
    socket.set_read_timeout(Some(time.max(Duration::from_millis(1))))?;
    let mut buffer = vec![0; LARGEST];
    match socket.recv(&mut buffer) {
        Ok(length) => {
            buffer.truncate(length);
            Ok(Some(buffer))
        }
        Err(error) if is_timeout(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
