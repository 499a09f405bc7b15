//! Describes one agent: its name and the values that its configuration may have.

pub mod bbot_option;
pub mod bbot_value;
pub mod bridge;
pub mod controller;
pub mod credential;
pub mod drain;
pub mod exec;
pub mod id;
pub mod settings;
pub mod user;
