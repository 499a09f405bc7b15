//! Computes the RAM that a handover by kexec needs.
//!
//! The helper concatenates the new initrd and the pair that runs. The kernel copies the result
//! twice, and the new image twice. The helper removes the objects that it has copied, so those of
//! a spool in RAM count only once.

use std::fs;
use std::path::Path;

use buildos_service::text::size;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};

/// Bytes that stay available.
pub const RESERVE: u64 = 64 << 20;
/// Copies of the new initrd with the pair that runs.
const COPIES: u64 = 3;
/// Largest pair in bytes, as buildos-updated.service limits its files and its memory.
pub const LARGEST_PAIR: u64 = 512 << 20;

/// What a handover needs, and what the host has. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// RAM that can be used.
    pub available: u64,
    /// Both files of the new pair.
    pub new: u64,
    /// The initrd of the new pair.
    pub new_initrd: u64,
    /// Both files of the pair that runs.
    pub running: u64,
    /// What a spool in RAM has already.
    pub in_spool: u64,
}

impl Memory {
    /// Checks that both pairs fit.
    ///
    /// # Errors
    ///
    /// The reason for operators.
    pub fn check(&self) -> Result<(), String> {
        if self.new > LARGEST_PAIR {
            return Err(format!(
                "the pair has {}, of at most {}",
                size(self.new),
                size(LARGEST_PAIR)
            ));
        }
        let carried = self.new_initrd.saturating_add(self.running);
        let image = self.new.saturating_sub(self.new_initrd);
        let need = carried.saturating_mul(COPIES).saturating_add(RESERVE);
        let need = need.saturating_add(image.saturating_mul(2));
        let need = need.saturating_sub(self.in_spool);
        match need <= self.available {
            true => Ok(()),
            false => Err(format!(
                "kexec needs {} of RAM for both pairs; {} are available",
                size(need),
                size(self.available)
            )),
        }
    }
}

/// Returns the RAM that can be used, in bytes; 0 if it is not known.
#[must_use]
pub fn available(root: &Path) -> u64 {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    parse(&meminfo).unwrap_or(0)
}

/// Parses `MemAvailable` of `/proc/meminfo` (proc_meminfo(5)).
fn parse(meminfo: &str) -> Option<u64> {
    let mut lines = meminfo.lines();
    let line = lines.find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Returns true if what is written below a directory takes RAM. The root of the image is an overlay
/// in RAM.
#[must_use]
pub fn is_in_ram(directory: &Path) -> bool {
    statfs(directory)
        .is_ok_and(|found| [TMPFS_MAGIC, OVERLAYFS_SUPER_MAGIC].contains(&found.filesystem_type()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pairs_and_the_reserve_have_to_fit() {
        let mib = 1 << 20;
        let memory = Memory {
            available: 508 * mib,
            new: 114 * mib,
            new_initrd: 102 * mib,
            running: 114 * mib,
            in_spool: 228 * mib,
        };
        assert_eq!(memory.check(), Ok(()));
        let short = Memory {
            available: 507 * mib,
            ..memory
        };
        assert_eq!(
            short.check().unwrap_err(),
            "kexec needs 508 MiB of RAM for both pairs; 507 MiB are available"
        );
        let large = Memory {
            available: u64::MAX,
            new: LARGEST_PAIR + 1,
            ..memory
        };
        assert!(
            large
                .check()
                .unwrap_err()
                .starts_with("the pair has 512 MiB")
        );
    }

    #[test]
    fn available_memory_is_parsed() {
        let text = "MemTotal:  10 kB\nMemAvailable:     7 kB\n";
        assert_eq!(parse(text), Some(7 * 1024));
        assert_eq!(parse("MemTotal: 1 kB\n"), None);
    }
}
