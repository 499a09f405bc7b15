//! buildos-natd: what the machines on br1 need of their host.
//!
//! One nftables table for NAT and isolation, IPv4 forwarding on the two
//! bridges, and the configuration of the dnsmasq that serves br1. The wish is
//! a value ([`wish`]) made of what netd publishes and of the settings; what
//! stands is read back from the kernel and from dnsmasq's unit ([`status`]);
//! [`daemon`] applies the difference and tells the bus ([`bus`]).

pub mod bus;
pub mod config;
pub mod daemon;
pub mod dnsmasq;
pub mod forwarding;
pub mod nft;
pub mod ruleset;
pub mod site;
pub mod status;
pub mod table;
pub mod wish;
