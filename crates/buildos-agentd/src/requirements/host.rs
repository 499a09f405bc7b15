//! Looking at this host for what no other daemon says: programs and devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::credential::Credential;
use crate::requirements::check::Presence;
use crate::unit::command::Program;

/// Whether hardware virtualization can be used. `/dev/kvm` alone does not say so:
/// systemd makes it at boot for a module that may come later, or never
/// (kmod-static-nodes.service). The kernel registers the device when the CPU has it.
#[must_use]
pub fn has_kvm(root: &Path) -> bool {
    let node = fs::metadata(root.join("dev/kvm"));
    node.is_ok_and(|node| node.file_type().is_char_device())
        && root.join("sys/class/misc/kvm").exists()
}

/// Time since boot, from `/proc/uptime` (proc_uptime(5)), in steps of 10 ms; zero
/// when it cannot be read.
#[must_use]
pub fn uptime(root: &Path) -> Duration {
    let text = fs::read_to_string(root.join("proc/uptime")).unwrap_or_default();
    let seconds = text.split_whitespace().next().and_then(|s| s.parse().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or_default()
}

/// Which of these credentials are there.
#[must_use]
pub fn credentials(root: &Path, credentials: BTreeSet<Credential>) -> BTreeMap<Credential, bool> {
    credentials
        .into_iter()
        .map(|credential| {
            let places = credential.places();
            let there = places.iter().any(|place| below(root, place).exists());
            (credential, there)
        })
        .collect()
}

/// The path, absolute, in another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What there is of these programs.
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
        // What cannot be looked at cannot be executed either.
        Err(_) => Presence::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    #[test]
    fn programs_are_looked_for() {
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
        assert_eq!(uptime(root.path()), Duration::ZERO);
        assert!(uptime(Path::new("/")) > Duration::ZERO);
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/kvm"), "").unwrap();
        assert!(!has_kvm(root.path()), "a file is no device");
        fs::remove_file(root.path().join("dev/kvm")).unwrap();
        std::os::unix::fs::symlink("/dev/null", root.path().join("dev/kvm")).unwrap();
        assert!(!has_kvm(root.path()), "nobody serves the device");
        fs::create_dir_all(root.path().join("sys/class/misc/kvm")).unwrap();
        assert!(has_kvm(root.path()));
    }

    #[test]
    fn credentials_are_looked_for_where_systemd_does() {
        let root = tempfile::tempdir().unwrap();
        for file in [
            "run/credentials/@system/boot",
            "etc/credstore/stored",
            "opt/placed",
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let wanted = ["boot", "stored", "x:/opt/placed", "none", "y:/opt/none"];
        let found = credentials(root.path(), wanted.map(|c| c.parse().unwrap()).into());
        let there = wanted.map(|c| found[&c.parse().unwrap()]);
        assert_eq!(there, [true, true, true, false, false]);
    }
}
