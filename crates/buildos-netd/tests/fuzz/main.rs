//! Fuzzes what netd reads besides messages of the kernel and of DHCP servers.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod fuzz;
#[path = "../support/lan.rs"]
mod lan;
#[path = "../support/nics.rs"]
mod nics;
#[path = "../support/servers.rs"]
mod servers;
