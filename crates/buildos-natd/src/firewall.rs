//! Owns tables `inet buildos`, `bridge buildos` and `arp buildos` in the kernel's nf_tables.
//!
//! ```text
//! Settings, UplinkNetwork ─ policy ─▶ Table ─ compile ──▶ KernelTable ─ encode ─▶ kernel
//!                                                            │ compare              │
//!                                                         KernelTable ◀─ decode ────┘
//! ```
//!
//! [`client`] reads tables and replaces those of natd as a whole, in one transaction:
//! no packet meets half a table, or none. It never changes another table.
//! [`monitor`] reports commits of other processes.

pub mod arp_policy;
pub mod bytecode;
pub mod client;
mod compile;
mod decode;
mod encode;
pub mod error;
pub mod model;
pub mod monitor;
pub mod policy;
pub mod port_policy;
