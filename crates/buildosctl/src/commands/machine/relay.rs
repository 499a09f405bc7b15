//! Relays bytes between standard input and output, or a client, and a socket of QEMU.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// The key that ends a connection: Ctrl-], as in telnet(1).
pub(super) const ESCAPE: u8 = 0x1d;
/// Silence after which a connection ends whose standard input has ended.
const SILENCE: Duration = Duration::from_secs(1);
const BUFFER: usize = 16 << 10;

/// A connection to QEMU.
#[derive(Debug)]
#[allow(missing_docs)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Unix(socket) => socket.try_clone().map(Self::Unix),
            Self::Tcp(socket) => socket.try_clone().map(Self::Tcp),
        }
    }

    fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.shutdown(Shutdown::Both),
            Self::Tcp(socket) => socket.shutdown(Shutdown::Both),
        }
    }

    fn set_read_timeout(&self, time: Duration) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.set_read_timeout(Some(time)),
            Self::Tcp(socket) => socket.set_read_timeout(Some(time)),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.read(buffer),
            Self::Tcp(socket) => socket.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.write_all(bytes),
            Self::Tcp(socket) => socket.write_all(bytes),
        }
    }
}

/// Relays standard input and output until the stream ends, the escape key arrives, or
/// nothing comes after the end of standard input.
///
/// # Errors
///
/// The stream fails.
pub(super) fn relay(stream: Stream, escape: Option<u8>) -> io::Result<()> {
    run(stream, io::stdin(), &mut io::stdout(), escape)
}

fn run(
    mut stream: Stream,
    input: impl Read + Send + 'static,
    output: &mut impl Write,
    escape: Option<u8>,
) -> io::Result<()> {
    stream.set_read_timeout(SILENCE)?;
    let sender = stream.try_clone()?;
    let has_ended = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&has_ended);
    // The thread ends with the process: it can wait for a key.
    thread::spawn(move || {
        if send(sender, input, escape).is_ok() {
            ended.store(true, Ordering::Release);
        }
    });
    let mut buffer = vec![0; BUFFER];
    loop {
        let was_ended = has_ended.load(Ordering::Acquire);
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if is_timeout(&error) && was_ended => return Ok(()),
            Err(error) if is_timeout(&error) => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        output.write_all(buffer.get(..count).unwrap_or_default())?;
        output.flush()?;
    }
}

/// Sends the input. Ends the connection at the escape key.
fn send(mut stream: Stream, mut input: impl Read, escape: Option<u8>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = input.read(&mut buffer)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        let end = bytes.iter().position(|byte| Some(*byte) == escape);
        stream.write_all(bytes.get(..end.unwrap_or(count)).unwrap_or_default())?;
        if end.is_some() {
            return stream.shutdown();
        }
        if count == 0 {
            return Ok(());
        }
    }
}

/// Relays between a client and a stream until one of them ends.
///
/// # Errors
///
/// A connection fails.
pub(super) fn join(client: TcpStream, mut stream: Stream) -> io::Result<()> {
    let mut sender = stream.try_clone()?;
    let mut receiver = client.try_clone()?;
    let upstream = thread::spawn(move || {
        let mut buffer = vec![0; BUFFER];
        while let Ok(count @ 1..) = receiver.read(&mut buffer) {
            let bytes = buffer.get(..count).unwrap_or_default();
            if sender.write_all(bytes).is_err() {
                break;
            }
        }
        let _ = sender.shutdown();
    });
    let mut client = client;
    let mut buffer = vec![0; BUFFER];
    let result = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                if let Err(error) = client.write_all(bytes) {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
    };
    let _ = client.shutdown(Shutdown::Both);
    let _ = upstream.join();
    result
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use std::net::TcpListener;

    /// Returns what the other end receives, and what is written to the output.
    fn relayed(
        input: &'static [u8],
        escape: Option<u8>,
        answer: &'static [u8],
    ) -> (Vec<u8>, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        let peer = thread::spawn(move || {
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).unwrap();
            received
        });
        let mut output = Vec::new();
        run(Stream::Unix(ours), Cursor::new(input), &mut output, escape).unwrap();
        (peer.join().unwrap(), output)
    }

    #[test]
    fn escape_key_ends_and_is_not_sent() {
        let (received, _) = relayed(b"ls\x1drm", Some(ESCAPE), b"");
        assert_eq!(received, b"ls");
    }

    #[test]
    fn answer_arrives_after_end_of_input() {
        let (received, output) = relayed(b"info\x1d\n", None, b"status\n");
        assert_eq!(received, b"info\x1d\n");
        assert_eq!(output, b"status\n");
    }

    #[test]
    fn client_and_stream_are_joined() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let joined = thread::spawn(move || join(accepted, Stream::Unix(ours)));
        qemu.write_all(b"RFB").unwrap();
        let mut greeting = [0; 3];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"RFB");
        client.write_all(b"key").unwrap();
        qemu.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"key");
        client.shutdown(Shutdown::Both).unwrap();
        joined.join().unwrap().unwrap();
    }
}
