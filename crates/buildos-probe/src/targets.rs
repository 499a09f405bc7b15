//! Runs step `outside`: reaches a target beyond the host's NAT.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use buildos_service::text;
use socket2::{Domain, Protocol, Socket, Type};

use crate::dns;
use crate::request::{Question, Target};
use crate::socket_error::{is_timeout, is_unreachable};

const TRIES: u16 = 3;
/// Time limit of each try.
const LIMIT: Duration = Duration::from_secs(1);

/// ICMP types (RFC 792).
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ICMP_HEADER: usize = 8;

/// No target answered. Contains the reason for each target.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub(crate) struct TargetsError(Vec<String>);

/// Returns the first target that answers, or [`None`] if there are no targets.
pub(crate) fn reach(targets: &[Target]) -> Result<Option<Target>, TargetsError> {
    let mut failed = Vec::new();
    for target in targets {
        match check(*target) {
            Ok(()) => return Ok(Some(*target)),
            Err(reason) => failed.push(reason),
        }
    }
    match failed.is_empty() {
        true => Ok(None),
        false => Err(TargetsError(failed)),
    }
}

fn check(target: Target) -> Result<(), String> {
    match target {
        Target::Echo(address) => match echo(address) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{address} does not answer echo requests")),
            Err(error) => Err(format!("cannot send {address} an echo request: {error}")),
        },
        Target::Tcp(address) => connect(address),
        Target::Dns(address) => {
            dns::resolve(address, &Question::RootServers).map_err(|error| text::chain(&error))
        }
    }
}

fn connect(address: SocketAddrV4) -> Result<(), String> {
    TcpStream::connect_timeout(&SocketAddr::V4(address), LIMIT * u32::from(TRIES))
        .map(drop)
        .map_err(|error| format!("{address} accepts no connection: {error}"))
}

fn echo(address: Ipv4Addr) -> io::Result<bool> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.connect(&SocketAddrV4::new(address, 0).into())?;
    let id = buildos_service::random::seed() as u16;
    for sequence in 0..TRIES {
        match socket.send(&echo_request(id, sequence)) {
            Ok(_) => {}
            // A router rejected the previous request.
            Err(error) if is_unreachable(&error) => {}
            Err(error) => return Err(error),
        }
        let end = Instant::now() + LIMIT;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut packet = [0; 256];
            match (&socket).read(&mut packet) {
                Ok(length) => {
                    if is_reply(packet.get(..length).unwrap_or_default(), id) {
                        return Ok(true);
                    }
                }
                Err(error) if is_timeout(&error) || is_unreachable(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(false)
}

fn echo_request(id: u16, sequence: u16) -> [u8; ICMP_HEADER] {
    let [i, d] = id.to_be_bytes();
    let [s, q] = sequence.to_be_bytes();
    let mut packet = [ECHO_REQUEST, 0, 0, 0, i, d, s, q];
    let [high, low] = checksum(&packet).to_be_bytes();
    (packet[2], packet[3]) = (high, low);
    packet
}

/// Returns true if an IPv4 packet is the reply to an echo request with this identifier.
fn is_reply(packet: &[u8], id: u16) -> bool {
    let Some(first) = packet.first() else {
        return false;
    };
    // The header's length is in units of four bytes (RFC 791, section 3.1).
    let header = usize::from(first & 0x0f) * 4;
    match packet.get(header..) {
        Some([ECHO_REPLY, 0, _, _, i, d, ..]) => [*i, *d] == id.to_be_bytes(),
        Some(_) | None => false,
    }
}

/// Returns the checksum of RFC 1071 over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| (u32::from(pair[0]) << 8) | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn echo_request_has_valid_checksum() {
        let packet = echo_request(0xabcd, 7);
        assert_eq!(checksum(&packet), 0);
        assert_eq!(packet[4..], [0xab, 0xcd, 0, 7]);
    }

    #[test]
    fn reply_with_another_identifier_is_ignored() {
        let mut packet = [[0; 20].as_slice(), &[ECHO_REPLY, 0, 0, 0, 0xab, 0xcd, 0, 1]].concat();
        packet[0] = 0x45;
        assert!(is_reply(&packet, 0xabcd));
        assert!(!is_reply(&packet, 0xabce));
        packet[20] = ECHO_REQUEST;
        assert!(!is_reply(&packet, 0xabcd));
        assert!(!is_reply(&packet[..22], 0xabcd));
    }

    proptest! {
        #[test]
        fn arbitrary_packet_is_a_reply_or_ignored(packet: Vec<u8>, id: u16) {
            let _ = is_reply(&packet, id);
        }
    }
}
