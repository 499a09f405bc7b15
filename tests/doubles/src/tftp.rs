//! TFTP (RFC 1350) as agent and worker use it: octet mode, blocks of 512 bytes,
//! no options.
//!
//! The agent serves one file to get and one to put, and answers from the port that
//! it is asked on. RFC 1350 has a server take a new port for each transfer; behind
//! the redirection that would be an address that the worker never asked.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Bytes of a block; a shorter one is the last.
const BLOCK: usize = 512;
/// The longest file, bytes: block numbers have 16 bits and are not wrapped.
const MAX_FILE: usize = BLOCK * 65_535 - 1;
/// When a packet is sent again.
const RETRY: Duration = Duration::from_millis(500);
/// How long a peer may say nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// A wish to read the file.
    Read(String),
    /// A wish to write the file.
    Write(String),
    /// A block of a file, numbered from 1.
    Data(u16, Vec<u8>),
    /// A block has arrived; 0 grants a wish to write.
    Ack(u16),
    /// The transfer has ended, for this reason.
    Error(String),
}

/// A datagram is no packet of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a TFTP packet: {0}")]
pub struct PacketError(&'static str);

/// A file was not transferred.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The network.
    #[error("cannot exchange packets")]
    Io(#[from] io::Error),
    /// The peer said nothing any more.
    #[error("no answer from {0}")]
    Silence(SocketAddr),
    /// The peer refused.
    #[error("{0:?}")]
    Refused(String),
    /// The file does not fit.
    #[error("the file has {0} bytes, more than {MAX_FILE}")]
    TooLong(usize),
}

impl Packet {
    /// Reads a datagram.
    ///
    /// # Errors
    ///
    /// It is not one of these packets.
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

    /// The datagram.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let request = |code: u8, file: &str| [&[0, code], file.as_bytes(), b"\0octet\0"].concat();
        match self {
            Self::Read(file) => request(1, file),
            Self::Write(file) => request(2, file),
            Self::Data(block, data) => [&[0, 3], &block.to_be_bytes()[..], data].concat(),
            Self::Ack(block) => [&[0, 4], &block.to_be_bytes()[..]].concat(),
            // Code 0: see the text.
            Self::Error(text) => [&[0, 5, 0, 0], text.as_bytes(), b"\0"].concat(),
        }
    }
}

/// The blocks of a file, numbered from 1.
fn blocks(file: &[u8]) -> Result<Vec<Packet>, TransferError> {
    if file.len() > MAX_FILE {
        return Err(TransferError::TooLong(file.len()));
    }
    let data = file.chunks(BLOCK).map(<[u8]>::to_vec);
    // A file of whole blocks ends with an empty one.
    let last = (file.len() % BLOCK == 0).then(Vec::new);
    let numbered = data.chain(last).zip(1..);
    Ok(numbered.map(|(data, n)| Packet::Data(n, data)).collect())
}

/// A conversation with one peer.
struct Peer<'a> {
    socket: &'a UdpSocket,
    address: SocketAddr,
}

impl Peer<'_> {
    /// Sends a packet until an answer comes that `take` takes.
    fn ask<T>(
        &self,
        packet: &Packet,
        take: impl Fn(Packet) -> Option<T>,
    ) -> Result<T, TransferError> {
        let end = Instant::now() + SILENCE;
        while Instant::now() < end {
            self.socket.send_to(&packet.bytes(), self.address)?;
            let again = Instant::now() + RETRY;
            while let Some(left) = again
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            {
                match receive(self.socket, left)? {
                    Some((Packet::Error(text), from)) if from == self.address => {
                        return Err(TransferError::Refused(text));
                    }
                    Some((packet, from)) if from == self.address => {
                        if let Some(answer) = take(packet) {
                            return Ok(answer);
                        }
                    }
                    Some(_) | None => {}
                }
            }
        }
        Err(TransferError::Silence(self.address))
    }

    /// Sends a file, after `granted`.
    fn send(&self, file: &[u8]) -> Result<(), TransferError> {
        for block in blocks(file)? {
            let Packet::Data(number, _) = block else {
                continue;
            };
            self.ask(&block, |answer| {
                (answer == Packet::Ack(number)).then_some(())
            })?;
        }
        Ok(())
    }

    /// Receives a file, whose first block is the answer to `first`.
    fn receive(&self, first: Packet) -> Result<Vec<u8>, TransferError> {
        let mut file = Vec::new();
        let mut packet = first;
        for expected in 1..=u16::MAX {
            let data = self.ask(&packet, |answer| match answer {
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
        self.socket.send_to(&packet.bytes(), self.address)?;
        Ok(file)
    }
}

fn receive(
    socket: &UdpSocket,
    patience: Duration,
) -> Result<Option<(Packet, SocketAddr)>, TransferError> {
    let mut buffer = [0; BLOCK + 5];
    socket.set_read_timeout(Some(patience))?;
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

/// Gets a file.
///
/// # Errors
///
/// The server refuses or does not answer.
pub fn get(server: SocketAddr, file: &str) -> Result<Vec<u8>, TransferError> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let peer = Peer {
        socket: &socket,
        address: server,
    };
    peer.receive(Packet::Read(file.to_owned()))
}

/// Puts a file.
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
    let granted = |answer| (answer == Packet::Ack(0)).then_some(());
    peer.ask(&Packet::Write(file.to_owned()), granted)?;
    peer.send(content)
}

/// Serves `get`, a name and its content, until `put` has been put, or `done` says
/// that nobody will; returns what was put.
///
/// # Errors
///
/// The network. A client that does wrong is told so.
pub fn serve(
    socket: &UdpSocket,
    get: (&str, &[u8]),
    put: &str,
    mut done: impl FnMut() -> bool,
) -> Result<Option<Vec<u8>>, TransferError> {
    while !done() {
        let Some((request, address)) = receive(socket, RETRY)? else {
            continue;
        };
        let peer = Peer { socket, address };
        match request {
            Packet::Read(file) if file == get.0 => match peer.send(get.1) {
                // It will ask again, or `done` knows.
                Err(TransferError::Silence(_) | TransferError::Refused(_)) | Ok(()) => {}
                Err(error) => return Err(error),
            },
            Packet::Write(file) if file == put => match peer.receive(Packet::Ack(0)) {
                Ok(content) => return Ok(Some(content)),
                Err(TransferError::Silence(_) | TransferError::Refused(_)) => {}
                Err(error) => return Err(error),
            },
            Packet::Read(file) | Packet::Write(file) => {
                let text = format!("no file {file:?}");
                socket.send_to(&Packet::Error(text).bytes(), address)?;
            }
            // Of a transfer that is over.
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
    fn a_task_is_got_and_a_result_is_put() {
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
    fn a_server_whose_machine_is_gone_ends() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let served = serve(&socket, ("task", b""), "result", || true);
        assert_eq!(served.unwrap(), None);
    }

    #[test]
    fn files_of_whole_blocks_end_with_an_empty_one() {
        let lengths = |n: usize| -> Vec<usize> {
            let data = blocks(&vec![0; n]).unwrap();
            data.iter().map(|packet| packet.bytes().len() - 4).collect()
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
    fn what_is_no_packet() {
        for bad in [
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
            assert!(Packet::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_packet_is_read_as_it_was_written(file in "[a-z./]{1,40}", block: u16, data in proptest::collection::vec(any::<u8>(), 0..=BLOCK)) {
            for packet in [Packet::Read(file.clone()), Packet::Write(file.clone()), Packet::Data(block, data.clone()), Packet::Ack(block), Packet::Error(file.clone())] {
                prop_assert_eq!(Packet::parse(&packet.bytes()), Ok(packet));
            }
        }

        #[test]
        fn no_datagram_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..600), code in 0u8..7) {
            let _ = Packet::parse(&bytes);
            let _ = Packet::parse(&[&[0, code], &bytes[..]].concat());
        }
    }
}
