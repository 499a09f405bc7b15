//! Chooses the volumes of a build host, and keeps state on one of them.
//!
//! ```text
//! udev ──► buildos-volumes ──► state.mount ──► buildos-state ◄──► files of the daemons in /run
//!               │ report                            │ report
//!               ▼                                   ▼
//!  /run/buildos/volumes/state.json    /run/buildos/state/status.json ──► buildosctl
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`device`] | block devices with a label, as udev describes them |
//! | [`choice`] | which of them is a volume |
//! | [`mounts`] | what is mounted |
//! | [`program`] | what the programs that mount volumes share |
//! | [`report`] | the files that buildosctl reads |
//! | [`select`] | the program buildos-volumes, which udev starts |
//! | [`state`] | the program buildos-state, which writes to the volume |
//!
//! No daemon touches a disk. Daemons write to `/run`; buildos-state copies what a next boot
//! needs. A disk that is full, slow or broken therefore stops nothing else.

pub mod choice;
pub mod device;
mod messages;
pub mod mounts;
pub mod program;
pub mod report;
pub mod select;
pub mod state;

/// Label of the file system with the state of the host.
pub const STATE_LABEL: &str = "buildos.state";
/// Label of the machine volume `default`; those of others end in a period and the name.
pub const MACHINES_LABEL: &str = "buildos.machines";
/// Beginning of the labels of all volumes.
pub const LABEL_PREFIX: &str = "buildos.";
/// Directory where the state volume is mounted.
pub const STATE: &str = "/state";
