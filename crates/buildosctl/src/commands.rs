//! The commands, one file each, and what several of them share.

pub(crate) mod agentd;
pub(crate) mod check;
pub(crate) mod console;
pub(crate) mod drain;
pub(crate) mod lists;
pub(crate) mod metrics;
pub(crate) mod show;
pub(crate) mod status;
pub(crate) mod why;
