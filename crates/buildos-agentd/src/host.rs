//! Looking at this host for what no other daemon says: programs and devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use crate::command::Program;
use crate::needs::Presence;

/// Whether hardware virtualization can be used (the `kvm` module is loaded and
/// the CPU has it, else there is no such device).
#[must_use]
pub fn has_kvm(root: &Path) -> bool {
    fs::metadata(root.join("dev/kvm")).is_ok_and(|m| m.file_type().is_char_device())
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
    let relative = program.path().strip_prefix("/").unwrap_or(program.path());
    match fs::metadata(root.join(relative)) {
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
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/kvm"), "").unwrap();
        assert!(!has_kvm(root.path()), "a file is no device");
    }
}
