//! Tests the lifecycle of an agent.

#![allow(clippy::unwrap_used)] // Tests panic.

mod drain;
mod failures;
mod life;
mod pairs;
mod reports;
mod table;
