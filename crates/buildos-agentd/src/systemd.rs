//! Calls systemd over D-Bus and watches the units of the agents.

pub mod jobs;
pub mod supervisor;
