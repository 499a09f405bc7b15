//! Transfers files by TFTP (RFC 1350) between agent and worker.
//!
//! # Limits
//!
//! - Octet mode, blocks of 512 bytes, no options.
//! - The agent serves one file to read and one to write.
//! - The agent answers from the port of the request. By RFC 1350 it would use a new port
//!   for each transfer, whose packets would bypass the redirection.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// TFTP file of the task.
pub const TASK_FILE: &str = "build/task.manifest";
/// TFTP file of the result.
pub const RESULT_FILE: &str = "build/result.manifest";
/// Length of a block in bytes; a shorter block is the last.
const BLOCK: usize = 512;
/// Maximum length of a file in bytes: block numbers have 16 bits and do not wrap.
const MAX_FILE: usize = BLOCK * 65_535 - 1;
/// Time after which a packet is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Time without an answer after which a transfer fails.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A TFTP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Read request (RRQ) for a file.
    Read(String),
    /// Write request (WRQ) for a file.
    Write(String),
    /// A block of a file; blocks are numbered from 1.
    Data(u16, Vec<u8>),
    /// Acknowledges a block; 0 accepts a write request.
    Ack(u16),
    /// Ends the transfer for this reason.
    Error(String),
}

/// A datagram is not a supported TFTP packet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a TFTP packet: {0}")]
pub struct PacketError(&'static str);

/// A transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The socket failed.
    #[error("cannot exchange packets")]
    Io(#[from] io::Error),
    /// The peer did not answer in time.
    #[error("no answer from {0}")]
    Timeout(SocketAddr),
    /// The peer sent an error.
    #[error("{0:?}")]
    Refused(String),
    /// The file is longer than the 16-bit block numbers allow.
    #[error("the file has {0} bytes, more than {MAX_FILE}")]
    TooLong(usize),
}

impl Packet {
    /// Parses a datagram.
    ///
    /// # Errors
    ///
    /// The datagram is not a supported TFTP packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        let [0, code, rest @ ..] = bytes else {
            return Err(PacketError("no code"));
        };
        let number = || match rest {
            [high, low, rest @ ..] => Ok((u16::from_be_bytes([*high, *low]), rest)),
            _ => Err(PacketError("no number")),
        };
        match code {
            1 | 2 => {
                let mut words = rest.split(|byte| *byte == 0);
                let mut word = || {
                    words
                        .next()
                        .and_then(|word| std::str::from_utf8(word).ok())
                        .filter(|word| !word.is_empty())
                };
                let (Some(file), Some(mode)) = (word(), word()) else {
                    return Err(PacketError("no file and mode"));
                };
                if !mode.eq_ignore_ascii_case("octet") {
                    return Err(PacketError("the mode is not octet"));
                }
                let file = file.to_owned();
                Ok(if *code == 1 {
                    Self::Read(file)
                } else {
                    Self::Write(file)
                })
            }
            3 => number().and_then(|(block, data)| {
                if data.len() <= BLOCK {
                    Ok(Self::Data(block, data.to_vec()))
                } else {
                    Err(PacketError("the block is too long"))
                }
            }),
            4 => number().map(|(block, _)| Self::Ack(block)),
            5 => number().map(|(_, text)| {
                let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
                Self::Error(String::from_utf8_lossy(text).into_owned())
            }),
            _ => Err(PacketError("unknown code")),
        }
    }

    /// Encodes the packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let request = |code: u8, file: &str| [&[0, code], file.as_bytes(), b"\0octet\0"].concat();
        match self {
            Self::Read(file) => request(1, file),
            Self::Write(file) => request(2, file),
            Self::Data(block, data) => [&[0, 3], &block.to_be_bytes()[..], data].concat(),
            Self::Ack(block) => [&[0, 4], &block.to_be_bytes()[..]].concat(),
            // Code 0: not defined, see the text.
            Self::Error(text) => [&[0, 5, 0, 0], text.as_bytes(), b"\0"].concat(),
        }
    }
}

/// Returns the blocks of a file.
fn blocks(file: &[u8]) -> Result<Vec<Packet>, TransferError> {
    if file.len() > MAX_FILE {
        return Err(TransferError::TooLong(file.len()));
    }
    let data = file.chunks(BLOCK).map(<[u8]>::to_vec);
    // After a last block of full length an empty one marks the end.
    let last = (file.len() % BLOCK == 0).then(Vec::new);
    let numbered = data.chain(last).zip(1..);
    Ok(numbered.map(|(data, n)| Packet::Data(n, data)).collect())
}

/// A transfer with one peer.
struct Peer<'a> {
    socket: &'a UdpSocket,
    address: SocketAddr,
}

impl Peer<'_> {
    /// Sends a packet, repeatedly, until `accept` returns a value for an answer.
    fn exchange<T>(
        &self,
        packet: &Packet,
        accept: impl Fn(Packet) -> Option<T>,
    ) -> Result<T, TransferError> {
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end {
            self.socket.send_to(&packet.encode(), self.address)?;
            let retry_at = Instant::now() + RETRY_AFTER;
            while let Some(remaining) = retry_at
                .checked_duration_since(Instant::now())
                .filter(|remaining| !remaining.is_zero())
            {
                match receive(self.socket, remaining)? {
                    Some((Packet::Error(text), from)) if from == self.address => {
                        return Err(TransferError::Refused(text));
                    }
                    Some((packet, from)) if from == self.address => {
                        if let Some(answer) = accept(packet) {
                            return Ok(answer);
                        }
                    }
                    Some(_) | None => {}
                }
            }
        }
        Err(TransferError::Timeout(self.address))
    }

    /// Sends a file.
    fn send(&self, file: &[u8]) -> Result<(), TransferError> {
        for block in blocks(file)? {
            let Packet::Data(number, _) = block else {
                continue;
            };
            self.exchange(&block, |answer| {
                (answer == Packet::Ack(number)).then_some(())
            })?;
        }
        Ok(())
    }

    /// Receives a file whose first block answers `first`.
    fn receive(&self, first: Packet) -> Result<Vec<u8>, TransferError> {
        let mut file = Vec::new();
        let mut packet = first;
        for expected in 1..=u16::MAX {
            let data = self.exchange(&packet, |answer| match answer {
                Packet::Data(number, data) if number == expected => Some(data),
                Packet::Data(..)
                | Packet::Read(_)
                | Packet::Write(_)
                | Packet::Ack(_)
                | Packet::Error(_) => None,
            })?;
            file.extend_from_slice(&data);
            packet = Packet::Ack(expected);
            if data.len() < BLOCK {
                break;
            }
        }
        self.socket.send_to(&packet.encode(), self.address)?;
        Ok(file)
    }
}

fn receive(
    socket: &UdpSocket,
    timeout: Duration,
) -> Result<Option<(Packet, SocketAddr)>, TransferError> {
    let mut buffer = [0; BLOCK + 5];
    socket.set_read_timeout(Some(timeout))?;
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => Ok(Packet::parse(&buffer[..length]).ok().map(|p| (p, from))),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads a file from a server.
///
/// # Errors
///
/// The server sends an error or does not answer.
pub fn get(server: SocketAddr, file: &str) -> Result<Vec<u8>, TransferError> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let peer = Peer {
        socket: &socket,
        address: server,
    };
    peer.receive(Packet::Read(file.to_owned()))
}

/// Writes a file to a server.
///
/// # Errors
///
/// As [`get`].
pub fn put(server: SocketAddr, file: &str, content: &[u8]) -> Result<(), TransferError> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let peer = Peer {
        socket: &socket,
        address: server,
    };
    let accepted = |answer| (answer == Packet::Ack(0)).then_some(());
    peer.exchange(&Packet::Write(file.to_owned()), accepted)?;
    peer.send(content)
}

/// Serves the file `get` (name and content) until a client has written the file `put`,
/// and returns its content. Returns `None` once `done` returns true.
///
/// # Errors
///
/// The socket failed. A client's invalid request is answered with an error packet.
pub fn serve(
    socket: &UdpSocket,
    get: (&str, &[u8]),
    put: &str,
    mut done: impl FnMut() -> bool,
) -> Result<Option<Vec<u8>>, TransferError> {
    while !done() {
        let Some((request, address)) = receive(socket, RETRY_AFTER)? else {
            continue;
        };
        let peer = Peer { socket, address };
        match request {
            Packet::Read(file) if file == get.0 => match peer.send(get.1) {
                // The client repeats its request, unless `done` returns true.
                Err(TransferError::Timeout(_) | TransferError::Refused(_)) | Ok(()) => {}
                Err(error) => return Err(error),
            },
            Packet::Write(file) if file == put => match peer.receive(Packet::Ack(0)) {
                Ok(content) => return Ok(Some(content)),
                Err(TransferError::Timeout(_) | TransferError::Refused(_)) => {}
                Err(error) => return Err(error),
            },
            Packet::Read(file) | Packet::Write(file) => {
                let text = format!("no file {file:?}");
                socket.send_to(&Packet::Error(text).encode(), address)?;
            }
            // Packets of an earlier transfer.
            Packet::Data(..) | Packet::Ack(_) | Packet::Error(_) => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::thread;

    fn server(task: &'static [u8]) -> (SocketAddr, thread::JoinHandle<Option<Vec<u8>>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let thread =
            thread::spawn(move || serve(&socket, ("task", task), "result", || false).unwrap());
        (address, thread)
    }

    #[test]
    fn server_sends_file_and_receives_result() {
        static TASK: [u8; 1024] = [7; 1024];
        let (address, thread) = server(&TASK);
        assert_eq!(get(address, "task").unwrap(), TASK);
        assert!(matches!(
            get(address, "other"),
            Err(TransferError::Refused(text)) if text == "no file \"other\""
        ));
        let result = vec![9; 1500];
        put(address, "result", &result).unwrap();
        assert_eq!(thread.join().unwrap(), Some(result));
    }

    #[test]
    fn server_returns_once_done() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let served = serve(&socket, ("task", b""), "result", || true);
        assert_eq!(served.unwrap(), None);
    }

    #[test]
    fn file_of_full_blocks_ends_with_an_empty_block() {
        let lengths = |n: usize| -> Vec<usize> {
            let data = blocks(&vec![0; n]).unwrap();
            data.iter()
                .map(|packet| packet.encode().len() - 4)
                .collect()
        };
        assert_eq!(lengths(0), [0]);
        assert_eq!(lengths(511), [511]);
        assert_eq!(lengths(512), [512, 0]);
        assert_eq!(lengths(513), [512, 1]);
        assert!(matches!(
            blocks(&vec![0; MAX_FILE + 1]),
            Err(TransferError::TooLong(_))
        ));
    }

    #[test]
    fn malformed_packets_are_rejected() {
        for invalid in [
            &b""[..],
            b"\0",
            b"\0\x06",
            b"\x01\x01a\0octet\0",
            b"\0\x01a",
            b"\0\x01\0octet\0",
            b"\0\x01a\0mail\0",
            b"\0\x01\xff\0octet\0",
            b"\0\x03\0",
            b"\0\x04",
        ] {
            assert!(Packet::parse(invalid).is_err(), "{invalid:?}");
        }
    }

    proptest! {
        #[test]
        fn parse_reverses_encode(file in "[a-z./]{1,40}", block: u16, data in proptest::collection::vec(any::<u8>(), 0..=BLOCK)) {
            for packet in [Packet::Read(file.clone()), Packet::Write(file.clone()), Packet::Data(block, data.clone()), Packet::Ack(block), Packet::Error(file.clone())] {
                prop_assert_eq!(Packet::parse(&packet.encode()), Ok(packet));
            }
        }

        #[test]
        fn any_datagram_is_parsed_or_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..600), code in 0u8..7) {
            let _ = Packet::parse(&bytes);
            let _ = Packet::parse(&[&[0, code], &bytes[..]].concat());
        }
    }
}
