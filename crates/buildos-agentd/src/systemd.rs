//! Calls systemd over D-Bus and supervises the units of the agents.
//!
//! | file | contents |
//! |---|---|
//! | [`manager`] | calls that do not belong to one agent: reload, stop, system state |
//! | [`supervisor`] | one task per agent: reports its unit, carries out commands |
//! | [`jobs`] | starts and stops that agentd did not request |
//!
//! # Sources
//!
//! org.freedesktop.systemd1(5). agentd does not call `Subscribe()`: with one subscriber,
//! systemd emits signals for every unit, which delays all users of the bus during boot.

pub mod jobs;
pub mod manager;
pub mod supervisor;
