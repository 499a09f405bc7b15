//! Talks to the kernel over netlink (netlink(7)): requests, and notifications of
//! changes.
//!
//! | type | speaks | used by |
//! |---|---|---|
//! | [`Socket`] | rtnetlink or nfnetlink, asynchronously | natd |
//! | [`BlockingSocket`] | the same, in a program without a runtime | the probe |
//! | [`Monitor`] | multicast groups of either | netd, natd |
//!
//! A socket carries one type of message: [`RouteNetlinkMessage`] for links, addresses
//! and routes, [`NetfilterMessage`] for nf_tables. Datagrams that the kernel did not
//! send are dropped, as every process may send to a netlink socket.
//!
//! # Limits
//!
//! A socket has one request under way at a time.

mod blocking;
pub mod bridge;
mod endpoint;
mod exchange;
mod frame;
mod monitor;
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
