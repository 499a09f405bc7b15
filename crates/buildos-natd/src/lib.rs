//! buildos-natd gives build machines on br1 network, addresses and names.
//!
//! It owns nftables tables for NAT and for what ports may send, IPv4 forwarding on the two bridges,
//! and the configuration of the dnsmasq that serves br1.
//!
//! ```text
//! netd ──► uplink_network ─┐
//!                          ├─► desired ──► reconcile ──► firewall, sysctl, bridge,
//! settings ────────────────┘                  │          dnsmasq, probe_scheduler
//!                                             ▼
//!                             status ──► dbus, messages
//! ```
//!
//! The desired state is a value ([`desired`]). [`reconcile`] observes the kernel and
//! dnsmasq, applies the difference and judges the result ([`status`]). A probe measures
//! the result as a machine would see it ([`probe_scheduler`]); [`audit`] looks for other
//! tables that drop packets of machines.

use std::process::ExitCode;

pub mod audit;
pub mod bindings;
pub mod bridge;
pub mod conntrack;
pub mod daemon;
pub mod dbus;
pub mod desired;
pub mod dnsmasq;
pub mod firewall;
pub mod limits;
mod messages;
pub mod open_port;
pub mod open_ports;
pub mod pace;
pub mod ports;
pub mod posture;
pub mod probe_request;
pub mod probe_scheduler;
pub mod reconcile;
pub mod settings;
pub mod shortage;
pub mod status;
pub mod sysctl;
pub mod tables;
pub mod uplink_network;
pub mod usage;

/// Runs the daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), settings::schema(), daemon::run)
}
