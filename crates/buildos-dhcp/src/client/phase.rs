//! Pairs each state with the data that only this state has.
//!
//! A lease therefore exists exactly in the states that hold one.

use std::net::Ipv4Addr;

use crate::lease::Lease;
use crate::offers::Offer;
use crate::state::State;
use crate::time::Instant;

#[derive(Debug)]
pub(super) enum Phase {
    Init {
        /// Time of the next search; `None` when stopped.
        search_at: Option<Instant>,
    },
    Selecting {
        retry_at: Instant,
    },
    Requesting {
        offer: Offer,
        retry_at: Instant,
    },
    InitReboot {
        lease: Box<Lease>,
    },
    Rebooting {
        lease: Box<Lease>,
        retry_at: Instant,
    },
    Bound {
        lease: Box<Lease>,
    },
    Renewing {
        lease: Box<Lease>,
        retry_at: Instant,
    },
    Rebinding {
        lease: Box<Lease>,
        retry_at: Instant,
    },
}

impl Phase {
    pub(super) fn state(&self) -> State {
        match self {
            Self::Init { .. } => State::Init,
            Self::Selecting { .. } => State::Selecting,
            Self::Requesting { .. } => State::Requesting,
            Self::InitReboot { .. } => State::InitReboot,
            Self::Rebooting { .. } => State::Rebooting,
            Self::Bound { .. } => State::Bound,
            Self::Renewing { .. } => State::Renewing,
            Self::Rebinding { .. } => State::Rebinding,
        }
    }

    pub(super) fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Init { .. } | Self::Selecting { .. } | Self::Requesting { .. } => None,
            Self::InitReboot { lease }
            | Self::Rebooting { lease, .. }
            | Self::Bound { lease }
            | Self::Renewing { lease, .. }
            | Self::Rebinding { lease, .. } => Some(lease),
        }
    }

    pub(super) fn into_lease(self) -> Option<Box<Lease>> {
        match self {
            Self::Init { .. } | Self::Selecting { .. } | Self::Requesting { .. } => None,
            Self::InitReboot { lease }
            | Self::Rebooting { lease, .. }
            | Self::Bound { lease }
            | Self::Renewing { lease, .. }
            | Self::Rebinding { lease, .. } => Some(lease),
        }
    }

    /// Returns the address of a REQUEST that waits for its answer.
    pub(super) fn requested_address(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Requesting { offer, .. } => Some(offer.lease.address),
            Self::Rebooting { lease, .. }
            | Self::Renewing { lease, .. }
            | Self::Rebinding { lease, .. } => Some(lease.address),
            Self::Init { .. }
            | Self::Selecting { .. }
            | Self::InitReboot { .. }
            | Self::Bound { .. } => None,
        }
    }
}
