//! Decides what an agent must wait for before it starts.

pub mod check;
pub mod clock;
pub mod disk;
pub mod host;
