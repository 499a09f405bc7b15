//! Maps types of messages to netlink protocols.

use std::time::Duration;

use netlink_packet_core::{NetlinkDeserializable, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::SockProtocol;

use crate::netfilter::NetfilterMessage;

/// Time limit for each datagram of an answer. The kernel answers within the call that
/// sends the request, unless another process holds the lock that it needs.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// A type of message, and the netlink protocol that carries it.
pub trait Protocol: NetlinkSerializable + NetlinkDeserializable {
    /// The protocol's number (`NETLINK_*`, linux/netlink.h).
    const NUMBER: SockProtocol;
}

impl Protocol for RouteNetlinkMessage {
    const NUMBER: SockProtocol = SockProtocol::NetlinkRoute;
}

impl Protocol for NetfilterMessage {
    const NUMBER: SockProtocol = SockProtocol::NetlinkNetFilter;
}
