//! Decides when an agent is started, stopped and started again.

pub mod backoff;
pub mod instance;
pub mod status;
