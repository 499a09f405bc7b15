//! What goes into the machine and what comes out of it.

use std::fmt;
use std::net::Ipv4Addr;

use crate::{Lease, Mac, MessageKind, Refusal, text};

/// The states of RFC 2131, figure 5, by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Stopped, or waiting before the next attempt.
    Init,
    /// DISCOVER sent; OFFERs are collected until one may be requested.
    Selecting,
    /// REQUEST for an OFFER sent.
    Requesting,
    /// Holds a lease whose T1 is still to come.
    Bound,
    /// After T1: asks the server of the lease to extend it.
    Renewing,
    /// After T2: asks any server to extend the lease.
    Rebinding,
    /// Holds a lease of which it is unknown whether it holds on this network:
    /// the link has no carrier.
    InitReboot,
    /// Asks for confirmation of such a lease.
    Rebooting,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Init,
        Self::Selecting,
        Self::Requesting,
        Self::Bound,
        Self::Renewing,
        Self::Rebinding,
        Self::InitReboot,
        Self::Rebooting,
    ];

    /// The name in the RFC, such as `INIT-REBOOT`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "INIT",
            Self::Selecting => "SELECTING",
            Self::Requesting => "REQUESTING",
            Self::Bound => "BOUND",
            Self::Renewing => "RENEWING",
            Self::Rebinding => "REBINDING",
            Self::InitReboot => "INIT-REBOOT",
            Self::Rebooting => "REBOOTING",
        }
    }

    /// Whether a client in this state holds a lease.
    pub fn has_lease(self) -> bool {
        match self {
            Self::Init | Self::Selecting | Self::Requesting => false,
            Self::Bound | Self::Renewing | Self::Rebinding | Self::InitReboot | Self::Rebooting => {
                true
            }
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// The link can carry packets: look for a lease, or confirm the one held.
    Start,
    /// Leave the race, or give everything up. Nothing is sent, a lease is
    /// forgotten.
    Stop,
    /// The link lost carrier: keep a lease until it expires, send nothing until
    /// [`Input::Start`].
    Suspend,
    /// A UDP payload received on port 68.
    Packet(&'a [u8]),
    /// [`Client::deadline`](crate::Client::deadline) has come.
    Timeout,
    /// A lease of an earlier life of this process: ask whether it still holds.
    /// Only in INIT.
    Resume(Box<Lease>),
    /// Permission to request the OFFER held.
    Select,
    /// Extend the lease now, without waiting for T1.
    Renew,
    /// Another host uses `address` (RFC 5227). When that is the address leased
    /// or offered it is declined.
    Conflict {
        /// The address probed.
        address: Ipv4Addr,
        /// Who answered.
        mac: Mac,
    },
    /// Give the lease back to the server and stop.
    Release,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message.
    Transmit(Transmit),
    /// Something changed.
    Event(Event),
}

/// A message to send from port 68 to port 67.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Which message this is, for logs.
    pub kind: MessageKind,
    /// Source address. Unspecified (0.0.0.0) while there is none: such a packet
    /// can only leave through a packet socket, see [`udp_packet::build`](crate::udp_packet::build).
    pub source: Ipv4Addr,
    /// 255.255.255.255, or the server of the lease.
    pub destination: Ipv4Addr,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

/// A change that the owner of the link has to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A usable OFFER is held and waits for [`Input::Select`]. Comes once per
    /// server, and again when it is that server's turn after a failure.
    Offered {
        /// Option 54.
        server: Ipv4Addr,
        /// The address offered.
        address: Ipv4Addr,
    },
    /// A server sent an OFFER or an ACK that cannot be used. It was ignored.
    Refused {
        /// OFFER or ACK.
        kind: MessageKind,
        /// Option 54, where the message had one.
        server: Option<Ipv4Addr>,
        /// What is wrong with it.
        why: Refusal,
    },
    /// The REQUEST permitted by [`Input::Select`] led to nothing; the
    /// permission is spent.
    RequestFailed {
        /// The server asked; it is shunned for a while.
        server: Ipv4Addr,
        /// What it did.
        why: Failure,
    },
    /// A lease was taken.
    Bound(Box<Lease>),
    /// The lease held was extended or confirmed; times and options may differ.
    Renewed(Box<Lease>),
    /// Nobody answered in REBOOTING; the lease is used until it ends, which
    /// RFC 2131, section 3.2 allows.
    Unconfirmed(Box<Lease>),
    /// The lease is gone: its address must not be used from now on.
    Lost {
        /// The lease that was.
        lease: Box<Lease>,
        /// Why it is gone.
        why: Loss,
    },
}

/// Why a REQUEST led to no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No answer.
    #[error("{requests} REQUESTs unanswered")]
    Unanswered {
        /// How often the REQUEST was sent.
        requests: u32,
    },
    /// The server refused.
    #[error("NAK{}", said(.message))]
    Nak {
        /// Option 56, escaped.
        message: Option<String>,
    },
    /// The server's ACK cannot be used.
    #[error("unusable ACK: {0}")]
    BadAck(Refusal),
    /// Another host has the address; the server was told by DECLINE.
    #[error("address is in use by {}", text::mac(.mac))]
    Conflict {
        /// Its hardware address.
        mac: Mac,
    },
}

/// Why a lease is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Its time is over and no server extended it.
    #[error("lease expired")]
    Expired,
    /// A server said that it does not hold.
    #[error("NAK{}{}", from(.server), said(.message))]
    Nak {
        /// Option 54, where the NAK had one.
        server: Option<Ipv4Addr>,
        /// Option 56, escaped.
        message: Option<String>,
    },
    /// Another host has the address; the server was told by DECLINE.
    #[error("address is in use by {}", text::mac(.mac))]
    Conflict {
        /// Its hardware address.
        mac: Mac,
    },
    /// The lease given to [`Input::Resume`] cannot be used.
    #[error("saved lease is unusable: {0}")]
    Unusable(Refusal),
    /// [`Input::Release`].
    #[error("released")]
    Released,
    /// [`Input::Stop`].
    #[error("stopped")]
    Stopped,
}

fn from(server: &Option<Ipv4Addr>) -> String {
    server
        .map(|server| format!(" from {server}"))
        .unwrap_or_default()
}

fn said(message: &Option<String>) -> String {
    message
        .as_ref()
        .map(|message| format!(": {message}"))
        .unwrap_or_default()
}
