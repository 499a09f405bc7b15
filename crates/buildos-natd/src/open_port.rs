//! A port of br0 that leads to a port of a machine, see [`crate::open_ports`].

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An open port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPort {
    /// Port of br0's address.
    pub outside: u16,
    /// Port of br1 with the machine.
    pub link: String,
    /// Index of that port, which the kernel does not use again.
    pub index: u32,
    /// Address of the machine.
    pub address: Ipv4Addr,
    /// TCP port of the machine.
    pub port: u16,
    /// Time since boot at which it is closed.
    pub until: Duration,
    /// The same time in microseconds since 1970, for operators.
    pub until_usec: u64,
}
