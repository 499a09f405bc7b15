//! Tests the client through its public interface, with a simulated clock and with
//! messages of servers, valid and invalid.

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
