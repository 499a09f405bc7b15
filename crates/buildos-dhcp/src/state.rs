//! Names the states of RFC 2131, figure 5.

use std::fmt;

/// A state of RFC 2131, figure 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Stopped, or waiting before the next search.
    Init,
    /// DISCOVER sent. The client collects OFFERs until [`Input::Select`](crate::Input::Select).
    Selecting,
    /// REQUEST for an OFFER sent.
    Requesting,
    /// Holds a lease before its T1.
    Bound,
    /// After T1: asks the server that granted the lease to extend it.
    Renewing,
    /// After T2: asks any server to extend the lease.
    Rebinding,
    /// Holds a lease without carrier: the network behind the link might have changed.
    InitReboot,
    /// Asks the network to confirm such a lease.
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

    /// Returns the RFC's name, such as `INIT-REBOOT`.
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

    /// Returns true if a client in this state holds a lease.
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
