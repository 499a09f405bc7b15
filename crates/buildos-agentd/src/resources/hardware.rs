//! What the machine has to give to agents: the source of defaults.

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;

/// The least RAM that the operating system keeps for itself, MiB, where there is
/// twice as much: after the boot it uses 291 MB of 2 GiB (docs/figures.md), a third
/// of that for the image itself; what is left is for its page cache, for logs, and
/// for who logs in.
const LEAST_RESERVE: u64 = 512;

/// CPU and RAM of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Hardware threads that processes of this machine may use.
    pub threads: NonZeroU32,
    /// RAM that the kernel manages, MiB; 0 when it cannot be read.
    pub memory: u64,
}

impl Hardware {
    /// Looks at this machine.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let threads = std::thread::available_parallelism()
            .ok()
            .and_then(|threads| u32::try_from(threads.get()).ok())
            .and_then(NonZeroU32::new);
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        Self {
            threads: threads.unwrap_or(NonZeroU32::MIN),
            memory: total(&meminfo).unwrap_or(0),
        }
    }

    /// RAM that agents leave to the operating system, MiB, unless it is configured.
    ///
    /// The page cache grows with the machine: a sixteenth. A machine with less than
    /// 1 GiB is shared by halves: that is enough for the system and for the smallest
    /// task down to the 768 MiB that are promised, of which the kernel manages 700.
    #[must_use]
    pub fn reserve(self) -> u64 {
        (self.memory / 16).max(LEAST_RESERVE.min(self.memory / 2))
    }
}

/// `MemTotal` of a `/proc/meminfo` (proc_meminfo(5)), MiB.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_memory_is_read() {
        let text = "MemTotal:       24574052 kB\nMemFree:        20133944 kB\n";
        assert_eq!(total(text), Some(23_998));
        for bad in ["", "MemFree: 1 kB\n", "MemTotal: x kB\n", "MemTotal: 5\n"] {
            assert_eq!(total(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_reserve_grows_with_the_machine() {
        for (memory, reserve) in [
            (0, 0),
            (400, 200),
            // What the kernel manages of 768 MiB.
            (698, 349),
            (1023, 511),
            (1024, 512),
            (2048, 512),
            (8192, 512),
            (16_384, 1024),
            (65_536, 4096),
        ] {
            let threads = NonZeroU32::MIN;
            assert_eq!(Hardware { threads, memory }.reserve(), reserve, "{memory}");
        }
    }

    #[test]
    fn this_machine_has_something() {
        let hardware = Hardware::read(Path::new("/"));
        assert!(hardware.memory > 0);
        let nowhere = Hardware::read(Path::new("/nonexistent"));
        assert_eq!(nowhere.memory, 0);
    }
}
