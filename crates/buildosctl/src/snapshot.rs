//! Captures the state of a build host at one moment.
//!
//! | file | subject |
//! |---|---|
//! | `model` | the state as one value, from which all output derives |
//! | `collect` | reads it from the daemons and systemd |
//! | `auth_keys` | computes the fingerprints of the keys of agents |
//! | `controllers` | finds the controllers of agents, and tries to reach them |
//! | `complaints` | finds faults that the logs of agents name |
//! | `machines` | finds the machines at the ports of the bridges |
//! | `path_mtu` | measures whether full-size packets reach a controller |
//! | `refusals` | finds commands that sudo refused to agents |
//! | `ssh` | reads the fingerprints of the SSH server |
//! | `watch` | waits for changes on the bus |

pub(crate) mod auth_keys;
pub(crate) mod collect;
pub(crate) mod complaints;
pub(crate) mod controllers;
pub(crate) mod machines;
pub(crate) mod model;
mod path_mtu;
pub(crate) mod refusals;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod ssh;
pub(crate) mod watch;
