//! Runs other programs for commands.
//!
//! | file | program |
//! |---|---|
//! | `btrfs` | btrfs(8) and zstd(1) make snapshots and streams |
//! | `disk` | wipefs(8) and mkfs.btrfs(8) examine and make the content of disks |
//! | `gpg` | gpg(1) signs, and asks for the passphrase or the token itself |
//!
//! `buildos_updated::programs` has those that a build host runs, too.

pub(crate) mod btrfs;
pub(crate) mod disk;
pub(crate) mod gpg;
