//! Configures, supervises and observes the dnsmasq that serves br1 with DHCP and DNS.
//!
//! ```text
//! natd ──► run/buildos/natd/dnsmasq.conf ──► buildos-dnsmasq ──► dnsmasq
//!   ▲                                              │                │
//!   └── run/buildos/dnsmasq/dnsmasq.conf ◄─────────┘                │
//!   └── run/buildos/dnsmasq/dnsmasq.pid ◄───────────────────────────┘
//! ```
//!
//! natd has no right to start units or to signal dnsmasq. It writes the desired
//! configuration ([`config`]) and observes the result ([`observe`]). The program
//! `buildos-dnsmasq` ([`supervise`]) is the main process of buildos-dnsmasq.service: it
//! runs dnsmasq with a copy of that configuration and restarts dnsmasq when natd
//! changes it.

pub mod config;
pub mod leases;
pub mod machines;
pub mod observe;
pub mod paths;
pub mod supervise;
