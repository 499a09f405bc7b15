//! Implements a DHCPv4 client (RFC 2131) as a pure state machine.
//!
//! The crate opens no socket, reads no clock and draws no random numbers.
//! The driver passes inputs with the time to [`Client::handle`], then drains
//! [`Client::poll_output`], and calls again at [`Client::deadline`] at the latest:
//!
//! ```
//! use buildos_dhcp::{Client, Config, Event, Input, Output};
//! # fn send(_: buildos_dhcp::Transmit) {}
//! # fn act(_: Event) {}
//! # let (now, seed) = (std::time::Duration::from_secs(1), 42);
//! # let mac = buildos_types::MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
//! let mut client = Client::new(Config::new(mac), seed);
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
//! netd runs one client on every NIC with carrier. An OFFER costs a network
//! nothing, a lease costs it an address. A client therefore stays in SELECTING with
//! its OFFERs until the driver passes [`Input::Select`].
//!
//! Each `Select` permits one exchange with one server. When that exchange fails
//! ([`Event::RequestFailed`]), the client avoids the server for a while and
//! announces the next OFFER that it holds.
//!
//! # Limits
//!
//! - No Rapid Commit (RFC 4039): it takes a lease without `Select`.
//! - No IPv6-only preferred (option 108, RFC 8925): the machines of a build host
//!   need IPv4 behind its NAT.
//! - No DHCPINFORM, FORCERENEW or authentication (RFC 3118): servers on the networks
//!   of build hosts neither send nor expect them.

pub mod address_conflict;
pub mod arp;
mod client;
mod client_name;
mod config;
mod event;
mod failed_servers;
mod identity;
mod lease;
mod message;
mod offers;
mod options;
mod proxy_arp;
mod random;
mod refusal;
mod retransmission;
mod routes;
pub mod socket_filter;
mod state;
mod text;
mod time;
pub mod udp_packet;

pub use client::{Client, Counters};
pub use client_name::ClientName;
pub use config::Config;
pub use event::{Event, Input, LeaseLoss, Output, RequestFailure, Transmit};
pub use identity::{ClassName, ClientId, Identity, IdentityError};
pub use lease::{Lease, Term};
pub use message::{DecodeError, MessageKind, ServerMessage, decode};
pub use options::{Options, OptionsError};
pub use refusal::Refusal;
pub use state::State;
pub use time::Instant;
