//! Sends requests to the kernel over netlink(7), and receives notifications of changes.
//!
//! | type | protocol | used by |
//! |---|---|---|
//! | [`Socket`] | rtnetlink or nfnetlink, asynchronously | netd, natd |
//! | [`BlockingSocket`] | the same, blocking | the probe |
//! | [`Monitor`] | multicast groups of either | netd, natd |
//!
//! A socket carries one type of message: [`RouteNetlinkMessage`] for links, addresses and
//! routes, [`NetfilterMessage`] for nf_tables. Datagrams from other senders than the
//! kernel are dropped, because any process can send to a netlink socket.
//!
//! # Limits
//!
//! A socket handles one request at a time.

mod blocking;
pub mod bridge;
mod endpoint;
mod exchange;
mod frame;
mod monitor;
pub mod namespace;
mod netfilter;
mod protocol;
mod socket;

pub use blocking::BlockingSocket;
pub use frame::Message;
pub use monitor::{Change, Monitor, Notification};
pub use netfilter::NetfilterMessage;
pub use netlink_packet_route::RouteNetlinkMessage;
pub use protocol::{Protocol, TIMEOUT};
pub use socket::{BatchError, Socket};
