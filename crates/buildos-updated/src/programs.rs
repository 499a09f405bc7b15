//! Runs other programs, whose output is bounded.
//!
//! | file | program |
//! |---|---|
//! | [`capture`] | any: bounded output, clear errors |
//! | [`sqv`] | sqv(1) verifies signatures |
//! | [`curl`] | curl(1) fetches files |
//! | [`btrfs`] | btrfs(8) and zstd(1) receive and delete subvolumes |

pub mod btrfs;
pub mod capture;
pub mod curl;
pub mod sqv;
