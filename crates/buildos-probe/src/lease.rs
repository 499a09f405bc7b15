//! Runs step `lease`: takes a lease, and releases it at the end.
//!
//! A UDP socket suffices, although the probe has no address yet. With the broadcast flag
//! set, the server broadcasts its answers (RFC 2131, section 4.1).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use buildos_dhcp::{Client, Config, Event, Input, Lease, MessageKind, Output, Transmit};
use socket2::{Domain, Socket, Type};

use crate::identity::{MAC, PROBE_END};
use crate::socket_error::is_timeout;

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// Time limit. dnsmasq answers at once, unless it is restarting.
const LIMIT: Duration = Duration::from_secs(8);
/// Offset of the flags in a message, and the broadcast flag (RFC 2131, section 2,
/// figures 1 and 2).
const FLAGS: usize = 10;
const BROADCAST: u8 = 0x80;
/// Size of the receive buffer in bytes: larger than any DHCP message of dnsmasq.
const BUFFER: usize = 2048;

/// There is no lease, or a machine could not use it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("cannot send DHCP messages")]
    Socket(#[source] io::Error),
    #[error("{server} does not answer DHCP within {} s", LIMIT.as_secs())]
    NoAnswer { server: Ipv4Addr },
    #[error("{server} assigns no address: {reason}")]
    Refused { server: Ipv4Addr, reason: String },
    #[error("the lease of {server} has no gateway")]
    NoGateway { server: Ipv4Addr },
    #[error(
        "the lease names {gateway} as gateway and not {server}; is there another DHCP server on the bridge?"
    )]
    OtherGateway { server: Ipv4Addr, gateway: Ipv4Addr },
}

/// A lease, and the client that holds it.
pub(crate) struct HeldLease {
    client: Client,
    socket: UdpSocket,
    started: Instant,
    pub(crate) lease: Lease,
    /// Gateway of the lease.
    pub(crate) gateway: Ipv4Addr,
}

/// Takes a lease from this server only.
pub(crate) fn acquire(server: Ipv4Addr) -> Result<HeldLease, LeaseError> {
    let socket = socket().map_err(LeaseError::Socket)?;
    let mut config = Config::new(MAC);
    config.allowed_servers.push(server);
    let mut client = Client::new(config, buildos_service::random::seed());
    let started = Instant::now();
    let mut refusal = None;
    client.handle(Duration::ZERO, Input::Start);
    while started.elapsed() < LIMIT {
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
                    return Ok(HeldLease {
                        client,
                        socket,
                        started,
                        lease: *lease,
                        gateway,
                    });
                }
                Output::Event(Event::RequestFailed { reason, .. }) => {
                    refusal = Some(reason.to_string());
                }
                Output::Event(Event::Refused { reason, .. }) => {
                    refusal = Some(reason.to_string());
                }
                Output::Event(_) => {}
            }
        }
        let until = client.deadline().unwrap_or(LIMIT).min(LIMIT);
        let left = until.saturating_sub(started.elapsed());
        let received = receive(&socket, left).map_err(LeaseError::Socket)?;
        let now = started.elapsed();
        match received {
            Some(payload) => client.handle(now, Input::Packet(&payload)),
            None => client.handle(now, Input::Timeout),
        }
    }
    Err(match refusal {
        Some(reason) => LeaseError::Refused { server, reason },
        None => LeaseError::NoAnswer { server },
    })
}

impl HeldLease {
    /// Sends a RELEASE, without waiting. If it is lost, the server keeps the lease for
    /// the next probe.
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
    // Without an address there is no route that selects the interface.
    socket.bind_device(Some(PROBE_END.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT).into())?;
    Ok(socket.into())
}

fn send(socket: &UdpSocket, transmit: Transmit) -> io::Result<()> {
    let mut payload = transmit.payload;
    // A RELEASE has no answer.
    if transmit.kind != MessageKind::Release {
        if let Some(flags) = payload.get_mut(FLAGS) {
            *flags |= BROADCAST;
        }
    }
    let to = SocketAddrV4::new(transmit.destination, SERVER_PORT);
    socket.send_to(&payload, to).map(drop)
}

/// Returns the next datagram, or [`None`] after the time limit.
fn receive(socket: &UdpSocket, limit: Duration) -> io::Result<Option<Vec<u8>>> {
    // A timeout of 0 is an error.
    socket.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
    let mut buffer = vec![0; BUFFER];
    match socket.recv(&mut buffer) {
        Ok(length) => {
            buffer.truncate(length);
            Ok(Some(buffer))
        }
        Err(error) if is_timeout(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
