//! Implements the commands, in one file each.
//!
//! | file | subject |
//! |---|---|
//! | `run` | runs the command that the arguments name |
//! | `show` | prints the host, once or after every change |
//! | `call` | errors of method calls to the daemons |

pub(crate) mod agents;
pub(crate) mod call;
pub(crate) mod check;
pub(crate) mod console;
pub(crate) mod drain;
pub(crate) mod leases;
pub(crate) mod links;
pub(crate) mod machine;
pub(crate) mod machines;
pub(crate) mod metrics;
pub(crate) mod placed;
pub(crate) mod publish;
pub(crate) mod renew;
pub(crate) mod run;
#[cfg(test)]
pub(crate) mod schema;
pub(crate) mod show;
pub(crate) mod status;
pub(crate) mod update;
pub(crate) mod volume;
pub(crate) mod why;
