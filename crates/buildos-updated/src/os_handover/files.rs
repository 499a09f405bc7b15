//! Names and writes the files of both programs.

use std::path::{Path, PathBuf};

use buildos_service::file::{overwrite, read_bounded};
use buildos_service::text::chain;
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

/// Permissions of state files: they have no secrets.
const READABLE: u32 = 0o644;
/// Bytes of the state of a trial.
const LIMIT: usize = 64 * 1024;

/// Directory of the previous system, in an initrd and below [`Files::previous`].
pub const PREVIOUS: &str = "buildos-previous";
/// Kernel of the previous system.
pub const IMAGE: &str = "buildos-image";
/// Initrd of the previous system.
pub const INITRD: &str = "buildos-initrd";
/// What the previous system needs to run again, see [`super::record::Record`].
pub const RECORD: &str = "record.json";

/// The files below a root, which is `/` outside of tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    #[allow(missing_docs)]
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Returns the request of buildos-updated.
    #[must_use]
    pub fn request(&self) -> PathBuf {
        Paths::new(&self.root).os_request()
    }

    /// Returns the spool of operating systems, which belongs to buildos-updated.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        Paths::new(&self.root).os_spool()
    }

    /// Returns the state of buildos-os-handover.
    #[must_use]
    pub fn handover(&self) -> PathBuf {
        Paths::new(&self.root).os_handover()
    }

    /// Returns the serial of the channel that buildos-os-handover accepted last.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.root.join("var/lib/buildos/os-handover/accepted")
    }

    /// Returns the serial of the former boot, which the state volume kept.
    #[must_use]
    pub fn former_memory(&self) -> PathBuf {
        self.root.join("run/buildos/state/updated-os-accepted")
    }

    /// Returns the directory of the previous system.
    #[must_use]
    pub fn previous(&self) -> PathBuf {
        self.root.join("run/buildos/previous")
    }

    /// Returns the state of a trial.
    #[must_use]
    pub fn trial(&self) -> PathBuf {
        Paths::new(&self.root).trial()
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn kernel_command_line(&self) -> PathBuf {
        self.root.join("proc/cmdline")
    }

    /// Returns the directory of the firmware's variables.
    #[must_use]
    pub fn firmware_variables(&self) -> PathBuf {
        self.root.join("sys/firmware/efi/efivars")
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn meminfo(&self) -> PathBuf {
        self.root.join("proc/meminfo")
    }
}

/// State of a handover: `/run/buildos/os-handover/state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    #[allow(missing_docs)]
    pub state: HandoverState,
    /// One line; empty if nothing went wrong.
    #[serde(default)]
    pub reason: String,
    /// Serial of the request; 0 if it could not be read.
    #[serde(default)]
    pub serial: u64,
}

/// Result of a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandoverState {
    /// The request is not acceptable; nothing was changed.
    Refused,
    /// The new system starts next.
    Loaded,
    /// The request is acceptable, but the kernel refused it.
    Failed,
}

/// State of a trial: `/run/buildos/trial/state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    #[allow(missing_docs)]
    pub state: TrialState,
    /// Version of the new system; empty after a return, and without a trial.
    #[serde(default)]
    pub version: String,
    /// Digest of its kernel.
    pub image: String,
    /// Digest of its initrd.
    pub initrd: String,
    /// One line: what is not good, why the host returned, or why there was no trial; else empty.
    #[serde(default)]
    pub reason: String,
    /// Time since which it has this state, microseconds since 1970.
    #[serde(default)]
    pub since_usec: u64,
    /// End of the trial, microseconds since 1970; 0 unless the state is `trial`.
    #[serde(default)]
    pub deadline_usec: u64,
}

/// Result of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialState {
    /// It runs.
    Trial,
    /// The new system stays.
    Proven,
    /// This is the previous system again. The digests are those of the other one.
    Returned,
}

impl Trial {
    /// Reads the state of the trial below `root`, if there was one in this boot.
    #[must_use]
    pub fn read(root: &Path) -> Option<Self> {
        let content = read_bounded(&Files::new(root).trial(), LIMIT).ok()?;
        serde_json::from_slice(&content).ok()
    }
}

impl TrialState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Trial, Self::Proven, Self::Returned];

    /// Returns the state as the file has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trial => "trial",
            Self::Proven => "proven",
            Self::Returned => "returned",
        }
    }
}

/// Replaces a state file.
///
/// # Errors
///
/// Its directory does not exist, or is full.
pub fn write(path: &Path, state: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_vec(state).map_err(|error| error.to_string())?;
    overwrite(path, &text, READABLE).map_err(|error| chain(&error))
}
