//! The dnsmasq that serves br1.

pub mod config;
pub mod leases;
