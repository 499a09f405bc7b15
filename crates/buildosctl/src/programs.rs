//! Runs other programs for the commands of a desk.
//!
//! | file | program |
//! |---|---|
//! | `btrfs` | btrfs(8) and zstd(1) make snapshots and streams |
//! | `gpg` | gpg(1) signs, and asks for the passphrase or the token itself |
//!
//! `buildos_updated::programs` has those that a build host runs, too.

pub(crate) mod btrfs;
pub(crate) mod gpg;
