//! The machine from outside: a host with a clock that the test moves, and the
//! messages of servers, good and bad.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy.toml allows them in test functions, not in what these share"
)]

mod bad_offers;
mod conflicts;
mod fuzz;
mod golden;
mod host;
mod keeping;
mod leases;
mod properties;
mod reply;
mod search;
mod servers;
mod table;
