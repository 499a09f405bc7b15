//! Reads the CPU and RAM of the machine, from which the defaults of agents follow.

use std::num::NonZeroU32;
use std::path::Path;

use buildos_updated::paths::Paths;
use buildos_updated::ram::{self, Memory};

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
    /// RAM of a machine volume in RAM, MiB. It counts also before the volume is made, and if a
    /// disk has the volume: agents must not get different RAM because a disk is late. A volume that
    /// was made counts until the next boot.
    pub volume: u64,
}

impl Hardware {
    /// Reads the values of this machine.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let threads = std::thread::available_parallelism()
            .ok()
            .and_then(|threads| u32::try_from(threads.get()).ok())
            .and_then(NonZeroU32::new);
        let memory = Memory::read(root).all;
        let (updated, _) = buildos_updated::settings::load(root);
        Self {
            threads: threads.unwrap_or(NonZeroU32::MIN),
            memory,
            volume: ram::reserved(&Paths::new(root), updated.ram_mib, memory),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
            let hardware = Hardware {
                threads,
                memory,
                volume: 0,
            };
            assert_eq!(hardware.reserve(), reserve, "{memory}");
        }
    }

    #[test]
    fn hardware_of_this_machine_is_read() {
        let hardware = Hardware::read(Path::new("/"));
        assert!(hardware.memory > 0);
        let nowhere = Hardware::read(Path::new("/nonexistent"));
        assert_eq!(nowhere.memory, 0);
    }

    #[test]
    fn machine_volume_in_ram_counts_if_it_fits() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal: 8388608 kB\n");
        let volume = |toml: &str| {
            write("etc/buildos/updated.conf.d/a.toml", toml);
            Hardware::read(root.path()).volume
        };
        assert_eq!(volume(""), 0);
        assert_eq!(volume("machines.ram_mib = 2048\n"), 2048);
        assert_eq!(volume("machines.ram_mib = 8000\n"), 0);

        // The key was lowered, and then removed, while the volume is in RAM.
        let report = r#"{"state":"used","volume":"default","mib":2048,"reason":""}"#;
        write("run/buildos/machine-ram/state.json", report);
        assert_eq!(volume("machines.ram_mib = 512\n"), 2048);
        assert_eq!(volume(""), 2048);
        assert_eq!(volume("machines.ram_mib = 4096\n"), 4096);
    }
}
