//! Builds table `arp buildos`: no ARP for the host past a bridge.
//!
//! A bridge hands a frame for 01:80:c2:00:00:00 to :0f to the host as if it had come from the
//! port itself, and most of them past the hooks of table `bridge buildos`
//! (`br_handle_frame`, net/bridge/br_input.c). ARP in such a frame adds a neighbour of the port
//! to the table that all interfaces share. Table `inet buildos` drops IPv4 in such frames
//! ([`crate::firewall::policy`]). The addresses have protocols of links only, such as LLDP.
//!
//! The kernel calls this table for ARP packets to the host, not for others.

use crate::firewall::model::{Chain, Family, Hook, Kind, Priority, Table};
use crate::firewall::policy::{TABLE, past_bridge};

/// Builds the table.
#[must_use]
pub fn table() -> Table {
    Table {
        family: Family::Arp,
        name: TABLE,
        sets: Vec::new(),
        chains: vec![Chain {
            hook: Hook::ArpInput,
            kind: Kind::Filter,
            priority: Priority::Filter,
            rules: vec![past_bridge()],
        }],
    }
}
