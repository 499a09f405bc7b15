//! Names the files that the daemon, its helpers and buildosctl share.

use std::path::{Path, PathBuf};

/// The state of the helper that places machines.
pub(crate) const PLACED: &str = "run/buildos/machine-place/state.json";

/// The state of the helper that places agents.
pub(crate) const AGENTS_PLACED: &str = "run/buildos/agent-place/state.json";

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

    /// Returns the note about the channel file that the daemon fetched last.
    #[must_use]
    pub fn seen(&self) -> PathBuf {
        self.root.join("run/buildos/updated/seen")
    }

    /// Returns the file that is written when the server has another channel file.
    #[must_use]
    pub fn changed(&self) -> PathBuf {
        self.root.join("run/buildos/updated/changed")
    }

    /// Returns the channel file of a look at the server.
    #[must_use]
    pub fn look(&self) -> PathBuf {
        self.root.join("run/buildos/updated/look")
    }

    /// Returns the spool of agents, which is in RAM on the image.
    #[must_use]
    pub fn agents_spool(&self) -> PathBuf {
        self.os_spool().join("agents")
    }

    /// Returns the request of the daemon to the helper that places agents.
    #[must_use]
    pub fn agents_request(&self) -> PathBuf {
        self.root.join("run/buildos/updated/agents-request")
    }

    /// Returns the state of this helper.
    #[must_use]
    pub fn agents_placed(&self) -> PathBuf {
        self.root.join(AGENTS_PLACED)
    }

    /// Returns the directory of placed agents, where only root writes.
    #[must_use]
    pub fn agents(&self) -> PathBuf {
        self.root.join("var/lib/buildos/agents")
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

    /// Returns the choices of the operator.
    #[must_use]
    pub fn choices(&self) -> PathBuf {
        self.root.join("var/lib/buildos/updated/choices.json")
    }

    /// Returns the choices of the former boot, which the state volume kept.
    #[must_use]
    pub fn former_choices(&self) -> PathBuf {
        self.root.join("run/buildos/state/updated.json")
    }

    /// Returns the spool of the operating system, which is in RAM on the image.
    #[must_use]
    pub fn os_spool(&self) -> PathBuf {
        self.root.join("var/cache/buildos/updated")
    }

    /// Returns what the host learned about operating systems.
    #[must_use]
    pub fn os_records(&self) -> PathBuf {
        self.root.join("var/lib/buildos/updated/os.json")
    }

    /// Returns the records of the former boot, which the state volume kept.
    #[must_use]
    pub fn former_os_records(&self) -> PathBuf {
        self.root.join("run/buildos/state/updated-os.json")
    }

    /// Returns the request of the daemon to the helper that starts another operating system.
    #[must_use]
    pub fn os_request(&self) -> PathBuf {
        self.root.join("run/buildos/updated/os-request")
    }

    /// Returns the answer of this helper.
    #[must_use]
    pub fn os_handover(&self) -> PathBuf {
        self.root.join("run/buildos/os-handover/state")
    }

    /// Returns the agents that an update has drained.
    #[must_use]
    pub fn os_drain(&self) -> PathBuf {
        self.root.join("run/buildos/updated/os-drain")
    }

    /// Returns the state of the trial of the operating system that runs.
    #[must_use]
    pub fn trial(&self) -> PathBuf {
        self.root.join("run/buildos/trial/state")
    }

    /// Returns the record of the previous operating system, which is there during a trial.
    #[must_use]
    pub fn previous_os(&self) -> PathBuf {
        self.root.join("run/buildos/previous/record.json")
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

    /// Returns the directory with the files of volumes in RAM, which only root can enter.
    #[must_use]
    pub fn ram(&self) -> PathBuf {
        self.root.join("run/buildos/machine-ram/files")
    }

    /// Returns the file of a volume in RAM.
    #[must_use]
    pub fn ram_file(&self, volume: &str) -> PathBuf {
        self.ram().join(volume)
    }

    /// Returns the report about the volume in RAM.
    #[must_use]
    pub fn ram_report(&self) -> PathBuf {
        self.root.join("run/buildos/machine-ram/state.json")
    }

    /// Returns the spool of a volume, where the daemon writes.
    #[must_use]
    pub fn spool(&self, volume: &str) -> PathBuf {
        self.root.join("run/buildos/spool").join(volume)
    }

    /// Returns the directory of the containers of systemd-nspawn(1).
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("var/lib/machines")
    }

    /// Returns the link to the objects that other hosts may fetch. It exists while pieces are
    /// shared.
    #[must_use]
    pub fn pieces(&self) -> PathBuf {
        self.root.join("run/buildos/updated/pieces")
    }

    /// Returns the directory of the machines of agents.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.root.join("build/machines")
    }
}
