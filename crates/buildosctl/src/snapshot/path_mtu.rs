//! Measures whether full-size packets reach a controller.
//!
//! A router that drops them without an ICMP message (RFC 2923, section 2.1) lets small
//! requests pass, and results hang. The measurement sends the beginning of a request that
//! never ends, so the controller answers nothing, and waits until the kernel of the
//! controller has acknowledged it. /proc/net/tcp has the bytes without acknowledgement.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// Bytes that fit into the smallest packet that every network passes (576 bytes, RFC 791).
const SMALL: usize = 64;

/// Bytes that make several full-size segments, and fit into the first window of TCP
/// (10 segments, RFC 6928) and into the request line that web servers accept.
const LARGE: usize = 4096;

/// Limit for an acknowledgement: four retransmissions (RFC 6298).
const LIMIT: Duration = Duration::from_secs(4);

/// Returns the fault of the path of a connection that has carried no data yet.
///
/// # Errors
///
/// Packets do not arrive.
pub(crate) async fn check(stream: &mut TcpStream, tls: bool) -> Result<(), String> {
    let (Ok(local), Ok(remote)) = (stream.local_addr(), stream.peer_addr()) else {
        return Ok(());
    };
    let head: &[u8] = if tls { &TLS_RECORD } else { &[] };
    if !arrives(stream, local, &padded(head, SMALL)).await {
        return Err(format!("{remote} accepts connections, and no data"));
    }
    if !arrives(stream, local, &padded(&[], LARGE)).await {
        return Err(format!(
            "small packets reach {remote}, full-size packets do not (path MTU)"
        ));
    }
    Ok(())
}

/// Header of a TLS record of handshake messages, 16,384 bytes long (RFC 8446, section 5.1).
const TLS_RECORD: [u8; 5] = [0x16, 3, 1, 0x40, 0];

fn padded(head: &[u8], length: usize) -> Vec<u8> {
    let mut data = head.to_vec();
    data.resize(length, b'A');
    data
}

/// Sends data, and returns true if the other side has acknowledged it within the limit, or
/// has ended the connection.
async fn arrives(stream: &mut TcpStream, local: SocketAddr, data: &[u8]) -> bool {
    if stream.write_all(data).await.is_err() {
        return true;
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
        let tables = tables.into_iter().filter_map(Result::ok);
        let waiting = tables
            .filter_map(|table| unacknowledged(&table, local.port()))
            .max();
        if waiting.unwrap_or(0) == 0 {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the bytes without acknowledgement of the established connection with this local
/// port, from /proc/net/tcp (proc_pid_net(5), `tx_queue`).
fn unacknowledged(table: &str, port: u16) -> Option<u64> {
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (_, local_port) = fields.next()?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let (tx, _) = fields.next()?.split_once(':')?;
        let matches = u16::from_str_radix(local_port, 16) == Ok(port) && state == "01";
        matches.then(|| u64::from_str_radix(tx, 16).ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 070000C0:9C40 010000C0:1F90 01 00000FA0:00000000 01:00000019 00000002     0        0 2 2
";

    #[test]
    fn unacknowledged_bytes_are_those_of_the_connection() {
        assert_eq!(unacknowledged(TABLE, 0x9C40), Some(4000));
        assert_eq!(unacknowledged(TABLE, 0x1F90), None);
        assert_eq!(unacknowledged("", 1), None);
    }

    #[tokio::test]
    async fn path_to_silent_listener_is_intact() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        assert_eq!(check(&mut stream, true).await, Ok(()));
    }
}
