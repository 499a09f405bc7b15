//! Decides whether a host has a machine volume in RAM, and of which size.
//!
//! buildos-machine-ram makes the volume, and agentd leaves its RAM to it. Both decide with
//! [`size`]. Agents start before the volume is made, so its size counts before. A volume that was
//! made counts until the next boot, whatever the configuration says then.

use std::path::Path;

use buildos_service::file::read_bounded;
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

/// Least size in MiB: btrfs needs 109 MiB.
pub const LEAST: u32 = 256;
/// Bytes of the report, and of `/proc/meminfo`.
const LIMIT: usize = 16 * 1024;

/// The volume does not fit into the RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum TooLittle {
    #[error("machines.ram_mib = {wanted} is more than half of the RAM, which is {all} MiB")]
    Ram { wanted: u64, all: u64 },
    #[error("machines.ram_mib = {wanted}, but only {free} MiB of RAM are available")]
    Free { wanted: u64, free: u64 },
}

/// RAM in MiB, as in `/proc/meminfo` (proc_meminfo(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// `MemTotal`
    pub all: u64,
    /// `MemAvailable`
    pub free: u64,
}

/// Returns the size of the volume in MiB, or [`None`] for no volume. `all` is the RAM that the
/// kernel manages, in MiB.
///
/// # Errors
///
/// It is more than half of the RAM: builds need the other half.
pub fn size(ram_mib: u32, all: u64) -> Result<Option<u64>, TooLittle> {
    match u64::from(ram_mib) {
        0 => Ok(None),
        wanted if wanted > all / 2 => Err(TooLittle::Ram { wanted, all }),
        wanted => Ok(Some(wanted)),
    }
}

/// Returns the size of the volume if it fits into what is available, too.
///
/// # Errors
///
/// As [`size`]; or builds use the RAM.
pub fn fitting(ram_mib: u32, memory: Memory) -> Result<Option<u64>, TooLittle> {
    let size = size(ram_mib, memory.all)?;
    match size {
        Some(wanted) if wanted > memory.free => Err(TooLittle::Free {
            wanted,
            free: memory.free,
        }),
        Some(_) | None => Ok(size),
    }
}

impl Memory {
    /// Reads the RAM of this host; 0 for what cannot be read.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let text = read_bounded(&root.join("proc/meminfo"), LIMIT).unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(text: &str) -> Self {
        let mib = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib / 1024)
        };
        Self {
            all: mib("MemTotal:").unwrap_or(0),
            free: mib("MemAvailable:").unwrap_or(0),
        }
    }
}

/// Whether the volume is in RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The volume is in RAM.
    Used,
    /// A disk has the label of the volume, so none is made in RAM.
    Disk,
    /// It could not be made.
    #[default]
    Failed,
}

/// What buildos-machine-ram did: `/run/buildos/machine-ram/state.json`. Without
/// `machines.ram_mib` there is no such file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    #[allow(missing_docs)]
    pub state: State,
    /// Name of the volume.
    pub volume: String,
    /// Size in MiB of the volume that is in RAM, whatever its name; 0 without one.
    pub mib: u64,
    /// One line for people.
    pub reason: String,
}

impl State {
    #[allow(missing_docs)]
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Disk => "disk",
            Self::Failed => "failed",
        }
    }
}

/// Returns the RAM in MiB that agents leave to the volume. `all` is as for [`size`].
#[must_use]
pub fn reserved(paths: &Paths, ram_mib: u32, all: u64) -> u64 {
    let made = report(paths).map_or(0, |report| report.mib);
    size(ram_mib, all).ok().flatten().unwrap_or(0).max(made)
}

/// Reads the report.
#[must_use]
pub fn report(paths: &Paths) -> Option<Report> {
    let text = read_bounded(&paths.ram_report(), LIMIT).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_takes_at_most_half_of_the_ram_and_what_is_available() {
        let fitting = |wanted, all, free| {
            fitting(wanted, Memory { all, free }).map_err(|error| error.to_string())
        };
        assert_eq!(fitting(0, 0, 0), Ok(None));
        assert_eq!(fitting(4096, 8192, 4096), Ok(Some(4096)));
        assert_eq!(
            fitting(4097, 8193, 8000).unwrap_err(),
            "machines.ram_mib = 4097 is more than half of the RAM, which is 8193 MiB"
        );
        assert_eq!(
            fitting(4096, 8192, 4095).unwrap_err(),
            "machines.ram_mib = 4096, but only 4095 MiB of RAM are available"
        );
        // RAM that cannot be read.
        assert!(fitting(256, 0, 0).is_err());
        // agentd does not look at what is available.
        assert_eq!(size(4096, 8192), Ok(Some(4096)));
    }

    #[test]
    fn meminfo_is_parsed() {
        let text = "MemTotal:       24574052 kB\nMemFree:  1 kB\nMemAvailable:   20480 kB\n";
        let expected = Memory {
            all: 23_998,
            free: 20,
        };
        assert_eq!(Memory::parse(text), expected);
        assert_eq!(Memory::parse("MemTotal: x kB\n"), Memory::default());
        assert!(Memory::read(Path::new("/")).free > 0);
    }

    #[test]
    fn report_is_read_as_written_and_its_states_have_their_names() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        assert_eq!(report(&paths), None);
        for state in [State::Used, State::Disk, State::Failed] {
            let written = Report {
                state,
                volume: "default".into(),
                mib: 256,
                reason: "x".into(),
            };
            let text = serde_json::to_string(&written).unwrap();
            assert!(text.contains(&format!("\"state\":\"{}\"", state.as_str())));
            std::fs::create_dir_all(paths.ram_report().parent().unwrap()).unwrap();
            std::fs::write(paths.ram_report(), text).unwrap();
            assert_eq!(report(&paths), Some(written));
        }
    }
}
