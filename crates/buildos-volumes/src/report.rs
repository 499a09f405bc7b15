//! Defines the reports that buildosctl reads.
//!
//! | file | writer |
//! |---|---|
//! | `/run/buildos/volumes/state.json` | buildos-volumes |
//! | `/run/buildos/state/status.json` | buildos-state |

use std::fs;
use std::path::Path;

use buildos_service::file::{self, WriteError};
use serde::{Deserialize, Serialize};

/// Report of buildos-volumes, below the root.
pub const SELECTED: &str = "run/buildos/volumes/state.json";
/// Report of buildos-state.
const STATUS: &str = "run/buildos/state/status.json";
/// Limit of a report, bytes.
const LIMIT: usize = 1 << 16;

/// State of the state volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// No device has the label.
    #[default]
    Absent,
    /// Devices have the label, and none of them is used.
    Refused,
    /// The kernel does not mount it.
    Failed,
    /// It is mounted, and its content is being read.
    Mounted,
    /// State is saved.
    Active,
    /// There is no space left on it.
    Full,
    /// The kernel refuses to write.
    ReadOnly,
    /// The disk does not answer.
    Slow,
    /// Reading or writing fails.
    Failing,
    /// It was mounted in this boot, and no longer is.
    Gone,
}

impl VolumeState {
    /// All states.
    pub const ALL: [Self; 10] = [
        Self::Absent,
        Self::Refused,
        Self::Failed,
        Self::Mounted,
        Self::Active,
        Self::Full,
        Self::ReadOnly,
        Self::Slow,
        Self::Failing,
        Self::Gone,
    ];

    /// Returns the name, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Mounted => "mounted",
            Self::Active => "active",
            Self::Full => "full",
            Self::ReadOnly => "read-only",
            Self::Slow => "slow",
            Self::Failing => "failing",
            Self::Gone => "gone",
        }
    }

    /// Returns true if an operator has to act.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        match self {
            Self::Absent | Self::Mounted | Self::Active => false,
            Self::Refused
            | Self::Failed
            | Self::Full
            | Self::ReadOnly
            | Self::Slow
            | Self::Failing
            | Self::Gone => true,
        }
    }
}

/// The state volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// State.
    pub state: VolumeState,
    /// Node of the device, or empty.
    pub device: String,
    /// State in one line.
    pub reason: String,
    /// What an operator should look at although the volume is in use, or empty.
    pub warning: String,
    /// Time when the state was last saved, microseconds since 1970, or 0.
    pub saved_usec: u64,
    /// Size of the file system in bytes, or 0.
    pub size: u64,
    /// Free bytes.
    pub free: u64,
}

/// Returns the state of the volume, or [`None`] if udev has never found one in this boot.
#[must_use]
pub fn read(root: &Path) -> Option<Report> {
    let selected = selected(root)?;
    if selected.state != VolumeState::Mounted {
        return Some(selected);
    }
    match parse(root, STATUS).filter(|status| status.device == selected.device) {
        Some(status) => Some(Report {
            warning: selected.warning,
            ..status
        }),
        None => Some(selected),
    }
}

/// Returns the report of buildos-volumes.
#[must_use]
pub fn selected(root: &Path) -> Option<Report> {
    parse(root, SELECTED)
}

fn parse(root: &Path, path: &str) -> Option<Report> {
    let text = file::read_bounded(&root.join(path), LIMIT).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Writes the report of buildos-volumes.
///
/// # Errors
///
/// `/run` is full.
pub fn write_selected(root: &Path, report: &Report) -> Result<(), WriteError> {
    write(root, SELECTED, report)
}

/// Writes the report of buildos-state.
///
/// # Errors
///
/// `/run` is full.
pub fn write_status(root: &Path, report: &Report) -> Result<(), WriteError> {
    write(root, STATUS, report)
}

fn write(root: &Path, path: &str, report: &Report) -> Result<(), WriteError> {
    // A struct of strings and numbers is always JSON.
    let text = serde_json::to_vec(report).unwrap_or_default();
    let path = root.join(path);
    // Without the directory, writing fails and names the file.
    let _ = path.parent().map(fs::create_dir_all);
    file::replace(&path, &text, 0o644).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: VolumeState, device: &str) -> Report {
        Report {
            state,
            device: device.into(),
            ..Report::default()
        }
    }

    #[test]
    fn report_of_buildos_state_counts_while_its_device_is_mounted() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert_eq!(read(root), None);
        let mounted = Report {
            warning: "vdb has the same label".into(),
            ..report(VolumeState::Mounted, "/dev/vda")
        };
        write_selected(root, &mounted).unwrap();
        assert_eq!(read(root), Some(mounted.clone()));
        write_status(root, &report(VolumeState::Full, "/dev/vda")).unwrap();
        let full = Report {
            state: VolumeState::Full,
            ..mounted
        };
        assert_eq!(read(root), Some(full));
        let other = report(VolumeState::Mounted, "/dev/vdb");
        write_selected(root, &other).unwrap();
        assert_eq!(read(root), Some(other));
        let refused = report(VolumeState::Refused, "");
        write_selected(root, &refused).unwrap();
        assert_eq!(read(root), Some(refused));
    }

    #[test]
    fn names_of_states_are_those_of_json() {
        for state in VolumeState::ALL {
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(json, format!("\"{}\"", state.as_str()));
        }
    }
}
