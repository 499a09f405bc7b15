//! Names the files that the daemon, its helpers and buildosctl share.

use std::path::{Path, PathBuf};

/// The state of the helper that places machines.
pub(crate) const PLACED: &str = "run/buildos/machine-place/state.json";

/// The files below a root, which is `/` outside of tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    #[allow(missing_docs)]
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the directories of trusted keys.
    #[must_use]
    pub fn keys(&self) -> [PathBuf; 2] {
        ["usr/share/buildos/keys", "etc/buildos/keys"].map(|path| self.root.join(path))
    }

    /// Returns the state of the daemon.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("run/buildos/updated/state.json")
    }

    /// Returns the signed file that the daemon accepted last in this boot.
    #[must_use]
    pub fn channel(&self) -> PathBuf {
        self.root.join("run/buildos/updated/channel")
    }

    /// Returns the request of the daemon to the helper that places machines.
    #[must_use]
    pub fn request(&self) -> PathBuf {
        self.root.join("run/buildos/updated/request")
    }

    /// Returns the serial that the daemon accepted last.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.root.join("var/lib/buildos/updated/accepted")
    }

    /// Returns the state of the helper that places machines.
    #[must_use]
    pub fn placed(&self) -> PathBuf {
        self.root.join(PLACED)
    }

    /// Returns the directory that has the mounted volumes, which only root can enter.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.root.join("run/buildos/machine-volumes")
    }

    /// Returns the spool of a volume, where the daemon writes.
    #[must_use]
    pub fn spool(&self, volume: &str) -> PathBuf {
        self.root.join("run/buildos/spool").join(volume)
    }

    /// Returns the directory of the machines of agents.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.root.join("build/machines")
    }
}
