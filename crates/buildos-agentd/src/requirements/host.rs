//! Observes the host: programs, credentials and devices, and the status of the other
//! daemons.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use buildos_dbus_api::hostname1::Naming;
use buildos_dbus_api::nat1::Nat;
use buildos_dbus_api::network1::Network;

use super::clock::Clock;
use super::disk::Shortage;
use crate::agent::credential::Credential;
use crate::agent::exec::Program;

/// Observed state of the host, as far as requirements depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Status of netd; [`None`] while netd does not run.
    pub network: Option<Network>,
    /// Status of hostnamed; [`None`] while hostnamed does not run.
    pub naming: Option<Naming>,
    /// Status of natd; [`None`] while natd does not run.
    pub nat: Option<Nat>,
    /// True if KVM can be used.
    pub kvm: bool,
    /// RAM for agents, MiB.
    pub memory: u64,
    /// File systems with too little room for builds.
    pub disks: Shortage,
    /// State of the clock.
    pub clock: Clock,
    /// Presence of each required program.
    pub programs: BTreeMap<Program, Presence>,
    /// Required credentials; true if the credential exists.
    pub credentials: BTreeMap<Credential, bool>,
}

/// Presence of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Presence {
    Executable,
    NotExecutable,
    Missing,
}

/// Returns true if KVM can be used.
///
/// `/dev/kvm` alone does not prove that: systemd creates it at boot for a module that may
/// never load (kmod-static-nodes.service). The kernel registers the device if the CPU
/// supports virtualization.
#[must_use]
pub fn has_kvm(root: &Path) -> bool {
    let node = fs::metadata(root.join("dev/kvm"));
    node.is_ok_and(|node| node.file_type().is_char_device())
        && root.join("sys/class/misc/kvm").exists()
}

/// Returns for each credential whether one of its files exists.
#[must_use]
pub fn credentials(root: &Path, credentials: BTreeSet<Credential>) -> BTreeMap<Credential, bool> {
    credentials
        .into_iter()
        .map(|credential| {
            let paths = credential.paths();
            let exists = paths.iter().any(|path| below(root, path).exists());
            (credential, exists)
        })
        .collect()
}

/// Returns an absolute path below `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Returns the presence of each program.
#[must_use]
pub fn programs(root: &Path, programs: BTreeSet<Program>) -> BTreeMap<Program, Presence> {
    programs
        .into_iter()
        .map(|program| {
            let presence = presence(root, &program);
            (program, presence)
        })
        .collect()
}

fn presence(root: &Path, program: &Program) -> Presence {
    match fs::metadata(below(root, program.path())) {
        Ok(m) if m.is_file() && m.permissions().mode() & 0o111 != 0 => Presence::Executable,
        Ok(_) => Presence::NotExecutable,
        // A path that cannot be read cannot be executed.
        Err(_) => Presence::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    #[test]
    fn programs_and_kvm_are_found() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        for (name, mode) in [("good", 0o755), ("bad", 0o644)] {
            let path = root.path().join("bin").join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        let paths = ["/bin/good", "/bin/bad", "/bin/none", "/bin"];
        let wanted = paths.iter().map(|path| path.parse().unwrap()).collect();
        let found: Vec<_> = programs(root.path(), wanted)
            .into_iter()
            .map(|(program, presence)| (program.to_string(), presence))
            .collect();
        assert_eq!(
            found,
            [
                ("/bin".to_owned(), Presence::NotExecutable),
                ("/bin/bad".to_owned(), Presence::NotExecutable),
                ("/bin/good".to_owned(), Presence::Executable),
                ("/bin/none".to_owned(), Presence::Missing),
            ]
        );
        assert!(!has_kvm(root.path()));
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/kvm"), "").unwrap();
        assert!(!has_kvm(root.path()), "a regular file is not a device");
        fs::remove_file(root.path().join("dev/kvm")).unwrap();
        std::os::unix::fs::symlink("/dev/null", root.path().join("dev/kvm")).unwrap();
        assert!(!has_kvm(root.path()), "no module serves the device");
        fs::create_dir_all(root.path().join("sys/class/misc/kvm")).unwrap();
        assert!(has_kvm(root.path()));
    }

    #[test]
    fn credential_is_found_in_stores_or_at_configured_path() {
        let root = tempfile::tempdir().unwrap();
        for file in [
            "run/credentials/@system/boot",
            "etc/credstore/stored",
            "opt/key",
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let wanted = ["boot", "stored", "x:/opt/key", "none", "y:/opt/none"];
        let found = credentials(root.path(), wanted.map(|c| c.parse().unwrap()).into());
        let exists = wanted.map(|c| found[&c.parse().unwrap()]);
        assert_eq!(exists, [true, true, true, false, false]);
    }
}
