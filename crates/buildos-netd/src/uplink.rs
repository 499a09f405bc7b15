//! Decides which NIC becomes the port of br0.

pub mod candidate;
pub mod election;
