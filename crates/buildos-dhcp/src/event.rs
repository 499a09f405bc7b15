//! Defines the inputs and outputs of the state machine.

use std::net::Ipv4Addr;

use crate::lease::Lease;
use crate::message::MessageKind;
use crate::refusal::Refusal;
use buildos_types::{Escaped, MacAddress};

/// An input of the state machine.
#[derive(Debug)]
pub enum Input<'a> {
    /// Reports carrier: the client searches for a lease, or confirms the one it holds.
    Start,
    /// Ends the search or drops the lease, without a message.
    Stop,
    /// Reports carrier loss: the client keeps a lease until it expires, and sends no message
    /// before [`Input::Start`].
    Suspend,
    /// Delivers a UDP payload received on port 68.
    Packet(&'a [u8]),
    /// Reports that [`Client::deadline`](crate::Client::deadline) has passed.
    Timeout,
    /// Passes a lease saved by an earlier process, which the client asks the network to
    /// confirm. Accepted in INIT only.
    Resume(Box<Lease>),
    /// Permits one REQUEST for the OFFER held.
    Select,
    /// Extends the lease now, before T1.
    Renew,
    /// Reports that another host uses `address` (RFC 5227). The client declines the address
    /// if it is leased or offered, and if [`Client::may_decline`](crate::Client::may_decline)
    /// is true.
    Conflict {
        /// The address in conflict.
        address: Ipv4Addr,
        /// Hardware address of the other host.
        mac: MacAddress,
    },
    /// Returns the lease to the server and stops.
    Release,
}

/// An output of the state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A message to send.
    Transmit(Transmit),
    /// A change to act on.
    Event(Event),
}

/// A message to send from port 68 to port 67.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Message type, for logs.
    pub kind: MessageKind,
    /// Source address; 0.0.0.0 without a lease. Such a packet can leave through a packet
    /// socket only, see [`udp_packet::build`](crate::udp_packet::build).
    pub source: Ipv4Addr,
    /// 255.255.255.255, or the server of the lease.
    pub destination: Ipv4Addr,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

/// A change that the driver has to act on or log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The client holds a usable OFFER and waits for [`Input::Select`]. Emitted once per
    /// server, and again when the client returns to this OFFER after a failure.
    Offered {
        /// Server identifier (option 54).
        server: Ipv4Addr,
        /// The address offered.
        address: Ipv4Addr,
    },
    /// The client ignored an unusable OFFER or ACK.
    Refused {
        /// OFFER or ACK.
        kind: MessageKind,
        /// Server identifier (option 54), if the message has one.
        server: Option<Ipv4Addr>,
        /// The defect of the message.
        reason: Refusal,
    },
    /// The REQUEST permitted by [`Input::Select`] led to no lease. The next one needs
    /// another [`Input::Select`].
    RequestFailed {
        /// The server, which the client now avoids for a while.
        server: Ipv4Addr,
        /// The server's answer, or its absence.
        reason: RequestFailure,
    },
    /// A server granted a lease.
    Bound(Box<Lease>),
    /// A server extended or confirmed the lease. Its times and options might differ.
    Renewed(Box<Lease>),
    /// No server answered in REBOOTING. The client uses the lease until it expires
    /// (RFC 2131, section 3.2).
    Unconfirmed(Box<Lease>),
    /// The lease ended. Its address must not be used from now on.
    Lost {
        /// The former lease.
        lease: Box<Lease>,
        /// The cause.
        reason: LeaseLoss,
    },
}

/// The reason why a REQUEST led to no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// The server did not answer.
    #[error("{requests} REQUESTs unanswered")]
    Unanswered {
        /// Number of REQUESTs sent.
        requests: u32,
    },
    /// The server answered with a NAK.
    #[error("NAK{}", after_colon(.message))]
    Nak {
        /// Message of the server (option 56).
        message: Option<Escaped>,
    },
    /// The server's ACK is unusable.
    #[error("unusable ACK: {0}")]
    BadAck(Refusal),
    /// Another host has the address, which the client declined.
    #[error("address is in use by {mac}")]
    Conflict {
        /// Hardware address of the other host.
        mac: MacAddress,
    },
}

/// The reason why a lease ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseLoss {
    /// The lease expired before a server extended it.
    #[error("lease expired")]
    Expired,
    /// A server answered with a NAK.
    #[error("NAK{}{}", from_server(.server), after_colon(.message))]
    Nak {
        /// Server identifier (option 54), if the NAK has one.
        server: Option<Ipv4Addr>,
        /// Message of the server (option 56).
        message: Option<Escaped>,
    },
    /// Another host has the address, which the client declined.
    #[error("address is in use by {mac}")]
    Conflict {
        /// Hardware address of the other host.
        mac: MacAddress,
    },
    /// The lease passed with [`Input::Resume`] is unusable.
    #[error("saved lease is unusable: {0}")]
    Unusable(Refusal),
    /// The driver passed [`Input::Release`].
    #[error("released")]
    Released,
    /// The driver passed [`Input::Stop`].
    #[error("stopped")]
    Stopped,
}

fn from_server(server: &Option<Ipv4Addr>) -> String {
    server
        .map(|server| format!(" from {server}"))
        .unwrap_or_default()
}

fn after_colon(message: &Option<Escaped>) -> String {
    message
        .as_ref()
        .map(|message| format!(": {message}"))
        .unwrap_or_default()
}
