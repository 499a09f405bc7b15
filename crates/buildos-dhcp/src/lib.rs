//! A DHCPv4 client (RFC 2131) as a pure state machine.
//!
//! Nothing in this crate opens a socket, reads a clock or rolls dice. A
//! [`Client`] is told what happened and at what time ([`Client::handle`]), is
//! then asked what to do about it ([`Client::poll_output`]: packets to send and
//! events to act on) and when it wants to be called again at the latest
//! ([`Client::deadline`]). The whole driver is:
//!
//! ```
//! use buildos_dhcp::{Client, Config, Event, Input, Output};
//! # fn send(_: buildos_dhcp::Transmit) {}
//! # fn act(_: Event) {}
//! # let (now, seed) = (std::time::Duration::from_secs(1), 42);
//! let mut client = Client::new(Config::new([0x52, 0x54, 0, 0x12, 0x34, 0x56]), seed);
//! client.handle(now, Input::Start);
//! loop {
//!     while let Some(output) = client.poll_output() {
//!         match output {
//!             Output::Transmit(transmit) => send(transmit),
//!             Output::Event(Event::Offered { .. }) => client.handle(now, Input::Select),
//!             Output::Event(event) => act(event),
//!         }
//!     }
//!     // Wait for a packet or for `client.deadline()`, then call `handle` with
//!     // `Input::Packet` or `Input::Timeout`.
//!     # break;
//! }
//! ```
//!
//! # One client per NIC, one REQUEST at a time
//!
//! buildos runs one client on every NIC that has carrier. To ask several
//! networks what they offer costs nothing, to take a lease from all of them
//! would. So a client that holds a usable OFFER stays in SELECTING, goes on
//! collecting alternatives, and sends its REQUEST only when it is told
//! [`Input::Select`]. Each `Select` permits one exchange with one server; when
//! that fails ([`Event::RequestFailed`]) the permission is spent, the server is
//! shunned for a while, and the next OFFER held is announced.
//!
//! # What is left out on purpose
//!
//! - Rapid Commit (RFC 4039): it takes a lease without `Select`.
//! - IPv6-only preferred (option 108, RFC 8925): not requested, ignored when it
//!   comes. The machines of a build host need IPv4 behind its NAT.
//! - DHCPINFORM, FORCERENEW and authentication (RFC 3118): nobody on such
//!   networks sends or expects them.

pub mod address_conflict;
pub mod arp;
mod client;
mod event;
mod lease;
mod message;
mod offers;
mod options;
mod refusal;
mod retransmission;
mod routes;
pub mod socket_filter;
mod text;
pub mod udp_packet;

pub use client::{Client, Config, Counters, Name};
pub use event::{Event, Failure, Input, Loss, Output, State, Transmit};
pub use lease::{Lease, Term};
pub use message::{DecodeError, MessageKind, ServerMessage, decode};
pub use options::{Options, OptionsError};
pub use refusal::Refusal;
pub use routes::Route;

/// A point in time: how long ago some arbitrary epoch was, on a clock that
/// never jumps and goes on while the machine sleeps (CLOCK_BOOTTIME).
pub type Instant = core::time::Duration;

/// An Ethernet hardware address.
pub type Mac = [u8; 6];
