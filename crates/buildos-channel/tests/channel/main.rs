//! Tests the crate through its public interface.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy.toml allows them in test functions, not in what these share"
)]

mod contents;
mod fuzz;
mod grammar;
mod pieces;
mod plan;
mod policy;
mod rollout;
mod sample;
