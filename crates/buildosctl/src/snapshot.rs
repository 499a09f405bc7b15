//! The state of a build host at one moment: what it consists of, how it is read from
//! the daemons and systemd, and when to read it again.

pub(crate) mod collect;
pub(crate) mod controllers;
pub(crate) mod model;
pub(crate) mod watch;
