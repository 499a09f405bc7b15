//! Runs other programs, whose output is bounded.
//!
//! | file | program |
//! |---|---|
//! | [`capture`] | any: bounded output, clear errors |
//! | [`sqv`] | sqv(1) verifies signatures |
//! | [`curl`] | curl(1) fetches files |
//! | [`calendar`] | systemd-analyze(1) evaluates calendar expressions |
//! | [`fleet_lock`] | curl(1) asks a FleetLock server |
//! | [`btrfs`] | btrfs(8) and zstd(1) receive and delete subvolumes |

pub mod btrfs;
pub mod calendar;
pub mod capture;
pub mod curl;
pub mod fleet_lock;
pub mod sqv;
