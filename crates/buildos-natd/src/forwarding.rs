//! IPv4 forwarding, per interface: `net.ipv4.conf.NAME.forwarding`.
//!
//! The kernel looks at the interface that a packet comes in by (`IN_DEV_FORWARD`
//! in net/ipv4/route.c), so the two bridges are enough and every other
//! interface of the host stays closed.

use crate::site::InterfaceName;

/// The switch of an interface; see [`crate::switch`].
#[must_use]
pub fn switch(interface: &InterfaceName) -> String {
    format!("ipv4/conf/{interface}/forwarding")
}
