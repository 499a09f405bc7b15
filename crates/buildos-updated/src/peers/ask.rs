//! Asks the hosts of the link of br0 for pieces ([`buildos_channel::query`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use buildos_channel::Digest;
use buildos_channel::query::{Cookie, LONGEST, PORT, Query, State};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};

/// The link on which hosts ask and answer.
pub const LINK: &str = "br0";
/// Answers that are read after one question at most.
const MOST: usize = 256;

/// A socket for questions.
#[derive(Debug)]
pub struct Asker {
    socket: UdpSocket,
    cookie: Cookie,
    targets: Vec<SocketAddr>,
}

impl Asker {
    /// Opens the socket of a host with this cookie.
    ///
    /// # Errors
    ///
    /// There is no br0.
    pub fn new(root: &Path, cookie: Cookie) -> io::Result<Self> {
        let broadcast = Ipv4Addr::BROADCAST;
        // One socket for both protocols, unless the kernel has no IPv6.
        let (socket, targets) = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
            Ok(socket) => {
                let path = root.join("sys/class/net").join(LINK).join("ifindex");
                let index = std::fs::read_to_string(path)?;
                let index = index.trim().parse().map_err(io::Error::other)?;
                // All nodes of the link (RFC 4291): no group has to be joined.
                let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                let targets = vec![
                    (broadcast.to_ipv6_mapped(), PORT).into(),
                    SocketAddrV6::new(all, PORT, 0, index).into(),
                ];
                (socket, targets)
            }
            Err(_) => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                (socket, vec![(broadcast, PORT).into()])
            }
        };
        setsockopt(&socket, BindToDevice, &LINK.into())?;
        socket.set_broadcast(true)?;
        Ok(Self {
            socket,
            cookie,
            targets,
        })
    }

    /// Sends a question, and passes on answers until the time is over or `take` returns true.
    /// Answers that came before are read, too.
    pub fn ask(
        &mut self,
        wanted: &[Digest],
        wait: Duration,
        mut take: impl FnMut(IpAddr, &Query) -> bool,
    ) {
        let pieces = wanted.iter().map(|sha256| (State::Want, *sha256)).collect();
        let question = Query {
            cookie: self.cookie,
            pieces,
        };
        let text = question.text();
        for target in &self.targets {
            // A link without an address cannot send: then there are no answers.
            let _ = self.socket.send_to(text.as_bytes(), target);
        }
        // DHCP can change them between two questions.
        let subnets = subnets();
        let end = Instant::now() + wait;
        let mut buffer = [0; LONGEST + 1];
        for _ in 0..MOST {
            let left = end.saturating_duration_since(Instant::now());
            // Zero would mean to wait without a limit.
            let left = left.max(Duration::from_millis(1));
            if self.socket.set_read_timeout(Some(left)).is_err() {
                return;
            }
            let Ok((length, from)) = self.socket.recv_from(&mut buffer) else {
                return;
            };
            let answer = buffer.get(..length).and_then(Query::parse);
            let (Some(answer), Some(from)) = (answer, peer(from)) else {
                continue;
            };
            if !is_on_link(from, &subnets) {
                continue;
            }
            if take(from, &answer) {
                return;
            }
        }
    }
}

/// Returns the IPv4 addresses of the link with their netmasks, or nothing if they cannot be read.
fn subnets() -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let addresses = getifaddrs().into_iter().flatten();
    let of_link = addresses.filter(|found| found.interface_name == LINK);
    let subnets = of_link.filter_map(|found| {
        let (address, mask) = (found.address?, found.netmask?);
        Some((address.as_sockaddr_in()?.ip(), mask.as_sockaddr_in()?.ip()))
    });
    subnets.collect()
}

/// Returns true if this host reaches an address of [`peer`] without a router.
fn is_on_link(peer: IpAddr, subnets: &[(Ipv4Addr, Ipv4Addr)]) -> bool {
    let IpAddr::V4(peer) = peer else {
        return true;
    };
    let mut subnets = subnets.iter();
    subnets.any(|(own, mask)| peer.to_bits() & mask.to_bits() == own.to_bits() & mask.to_bits())
}

/// Returns the address of a host of the link: IPv4, or link-local IPv6.
pub(super) fn peer(from: SocketAddr) -> Option<IpAddr> {
    match from.ip().to_canonical() {
        IpAddr::V4(address) => {
            let is_host = !address.is_multicast() && !address.is_unspecified();
            (is_host && !address.is_broadcast() && !address.is_loopback()).then_some(address.into())
        }
        IpAddr::V6(address) => address.is_unicast_link_local().then_some(address.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_the_link_are_peers() {
        let found = |text: &str| peer(SocketAddr::new(text.parse().unwrap(), 1));
        for good in ["192.0.2.7", "fe80::7"] {
            assert_eq!(found(good), Some(good.parse().unwrap()));
        }
        assert_eq!(
            found("::ffff:192.0.2.7"),
            Some("192.0.2.7".parse().unwrap())
        );
        for bad in [
            "2001:db8::1",
            "ff02::1",
            "127.0.0.1",
            "224.0.0.1",
            "0.0.0.0",
            "::1",
        ] {
            assert_eq!(found(bad), None, "{bad}");
        }
    }

    #[test]
    fn peer_of_ipv4_is_in_a_subnet_of_the_link() {
        let subnets = [("192.0.2.7", "255.255.255.128"), ("10.1.2.3", "255.0.0.0")];
        let subnets = subnets.map(|(own, mask)| (own.parse().unwrap(), mask.parse().unwrap()));
        let found = |text: &str, count| is_on_link(text.parse().unwrap(), &subnets[..count]);
        assert!(found("192.0.2.1", 2) && found("10.9.9.9", 2));
        assert!(!found("192.0.2.200", 2) && !found("198.51.100.1", 2));
        assert!(found("fe80::7", 0) && !found("192.0.2.1", 0));
    }
}
