//! The machine from outside: a host with a clock that the test moves, and the
//! messages of servers, good and bad.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy.toml allows them in test functions, not in what these share"
)]

mod address_conflicts;
mod discovery;
mod fuzz;
mod host;
mod invalid_offers;
mod invariants;
mod lease_lifetime;
mod lease_options;
mod server_reply;
mod several_servers;
mod state_table;
mod wire_format;
