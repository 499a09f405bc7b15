//! Snapshots a revision of a machine for one task, as bbot-agent does.

use crate::sudo::{self, ToolError};
use std::path::{Path, PathBuf};

/// A writable snapshot beside its revision. Dropping it deletes it.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
}

impl Snapshot {
    /// Makes a snapshot of a revision of a machine. `suffix` makes its name unique.
    ///
    /// # Errors
    ///
    /// The revision is not a subvolume, or is gone.
    pub fn new(revision: &Path, suffix: &str) -> Result<Self, ToolError> {
        let mut path = revision.to_owned().into_os_string();
        path.push(format!("-{suffix}"));
        let path = PathBuf::from(path);
        sudo::run(&format!(
            "btrfs subvolume snapshot {} {}",
            revision.display(),
            path.display()
        ))?;
        Ok(Self { path })
    }

    /// Returns the directory of the snapshot.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let _ = sudo::run(&format!("btrfs subvolume delete {}", self.path.display()));
    }
}
