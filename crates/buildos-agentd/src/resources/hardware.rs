//! Reads the CPU and RAM of the machine, from which the defaults of agents follow.

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;

/// Lower limit of the operating system's reserve, MiB, on machines with at least 1 GiB.
/// After boot it uses 291 MB of 2 GiB (docs/figures.md), a third of that for the image.
/// The rest is for page cache, logs and logins.
const LEAST_RESERVE: u64 = 512;

/// CPU and RAM of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Hardware threads that processes of this machine may use.
    pub threads: NonZeroU32,
    /// RAM that the kernel manages, MiB; 0 if it cannot be read.
    pub memory: u64,
}

impl Hardware {
    /// Reads the values of this machine.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let threads = std::thread::available_parallelism()
            .ok()
            .and_then(|threads| u32::try_from(threads.get()).ok())
            .and_then(NonZeroU32::new);
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        Self {
            threads: threads.unwrap_or(NonZeroU32::MIN),
            memory: mem_total(&meminfo).unwrap_or(0),
        }
    }

    /// Returns the default RAM that agents leave to the operating system, MiB.
    ///
    /// It is a sixteenth of RAM, as the page cache grows with the machine. Below 1 GiB it
    /// is one half. That is enough for the system and the smallest task down to the
    /// documented minimum of 768 MiB, of which the kernel manages 700.
    #[must_use]
    pub fn reserve(self) -> u64 {
        (self.memory / 16).max(LEAST_RESERVE.min(self.memory / 2))
    }
}

/// Parses `MemTotal` of `/proc/meminfo` (proc_meminfo(5)); MiB.
fn mem_total(meminfo: &str) -> Option<u64> {
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
    fn meminfo_total_is_parsed() {
        let text = "MemTotal:       24574052 kB\nMemFree:        20133944 kB\n";
        assert_eq!(mem_total(text), Some(23_998));
        for bad in ["", "MemFree: 1 kB\n", "MemTotal: x kB\n", "MemTotal: 5\n"] {
            assert_eq!(mem_total(bad), None, "{bad}");
        }
    }

    #[test]
    fn reserve_grows_with_ram() {
        for (memory, reserve) in [
            (0, 0),
            (400, 200),
            // RAM that the kernel manages of 768 MiB.
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
    fn hardware_of_this_machine_is_read() {
        let hardware = Hardware::read(Path::new("/"));
        assert!(hardware.memory > 0);
        let nowhere = Hardware::read(Path::new("/nonexistent"));
        assert_eq!(nowhere.memory, 0);
    }
}
