//! buildos-natd: what the machines on br1 need of their host.
//!
//! One nftables table for NAT and isolation, IPv4 forwarding on the two
//! bridges, and the configuration of the dnsmasq that serves br1. The wish is
//! a value ([`desired`]) made of what netd publishes and of the settings; what
//! stands is read back from the kernel and from dnsmasq's unit ([`status`]);
//! [`daemon`] applies the difference and tells the bus ([`dbus`]). Whether all of
//! it is of use to a machine is tried out by a probe ([`probe_scheduler`]), and what other
//! tables would drop is looked for ([`audit`]).

use std::process::ExitCode;

pub mod audit;
pub mod bridge;
pub mod config;
pub mod daemon;
pub mod dbus;
pub mod desired;
pub mod dnsmasq;
pub mod firewall;
pub mod probe_scheduler;
pub mod status;
pub mod status_files;
pub mod sysctl;
pub mod uplink_network;

/// The daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), config::schema(), daemon::run)
}
