//! Runs other programs for the commands of a desk.
//!
//! | file | program |
//! |---|---|
//! | `capture` | any: bounded output, clear errors |
//! | `btrfs` | btrfs(8) and zstd(1) make snapshots and streams |
//! | `sqv` | sqv(1) verifies signatures |
//! | `gpg` | gpg(1) signs, and asks for the passphrase or the token itself |

pub(crate) mod btrfs;
pub(crate) mod capture;
pub(crate) mod gpg;
pub(crate) mod sqv;
