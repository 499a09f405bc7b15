//! Describes the systemd unit of an agent: what it executes and how systemd reports it.

pub mod command;
pub mod directory;
pub mod dropin;
pub mod exit;
pub mod phase;
