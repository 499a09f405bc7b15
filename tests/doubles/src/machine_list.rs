//! Lists the build machines that an agent offers to its controllers.

use crate::manifest::{self, Manifest};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Program of a machine that a task runs in it. A machine without it only lends its name.
pub const TEST: &str = "test";

/// The machines cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A directory or file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        #[allow(missing_docs)]
        path: PathBuf,
        #[allow(missing_docs)]
        source: io::Error,
    },
    /// The file of `--fake-machine` is not a manifest.
    #[error("{} is not a machine manifest", path.display())]
    Manifest {
        #[allow(missing_docs)]
        path: PathBuf,
        #[allow(missing_docs)]
        source: manifest::ParseError,
    },
}

/// Returns the manifest in the file of `--fake-machine`.
///
/// # Errors
///
/// The file cannot be read or is not a manifest.
pub fn fake(path: &Path) -> Result<Vec<Manifest>, MachineError> {
    let text = fs::read_to_string(path).map_err(|source| read_error(path, source))?;
    manifest::parse(&text).map_err(|source| MachineError::Manifest {
        path: path.to_owned(),
        source,
    })
}

/// Returns the machines below `directory`, ordered by name.
///
/// In each directory `VOLUME/NAME` the symbolic link `NAME` points to the current
/// revision `NAME-N`. Without machines the result is one invented machine: a task
/// request needs at least one.
///
/// # Errors
///
/// A directory cannot be read.
pub fn list(directory: &Path) -> Result<Vec<Manifest>, MachineError> {
    let mut machines = Vec::new();
    for volume in entries(directory)? {
        for machine in entries(&volume)? {
            let Some(name) = machine.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let Ok(revision) = fs::read_link(machine.join(name)) else {
                continue;
            };
            let Some(id) = revision.file_name().and_then(|id| id.to_str()) else {
                continue;
            };
            machines.push(header(id, name, name));
        }
    }
    if machines.is_empty() {
        machines.push(header(
            "linux_debian_13-gcc-1",
            "linux_debian_13-gcc",
            "Stand-in machine",
        ));
    }
    Ok(machines)
}

/// Returns the directory of the current revision of a machine below `directory`, if tasks run in it.
#[must_use]
pub fn revision(directory: &Path, name: &str) -> Option<PathBuf> {
    let machines = entries(directory).ok()?.into_iter();
    machines
        .map(|volume| volume.join(name))
        .find_map(|machine| Some(machine.join(fs::read_link(machine.join(name)).ok()?)))
        .filter(|revision| revision.join(TEST).is_file())
}

fn header(id: &str, name: &str, summary: &str) -> Manifest {
    Manifest::default()
        .with("id", id)
        .with("name", name)
        .with("summary", summary)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, MachineError> {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed
            .map(|entry| entry.map(|entry| entry.path()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let mut paths: Vec<PathBuf> = listed.map_err(|source| read_error(directory, source))?;
    paths.retain(|path| path.is_dir());
    paths.sort();
    Ok(paths)
}

fn read_error(path: &Path, source: io::Error) -> MachineError {
    MachineError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn list_has_the_machines_with_a_current_revision() {
        let top = tempfile::tempdir().unwrap();
        for (name, revision) in [("debian_13", Some("debian_13-2")), ("unfinished", None)] {
            let directory = top.path().join("default").join(name);
            fs::create_dir_all(&directory).unwrap();
            if let Some(revision) = revision {
                symlink(revision, directory.join(name)).unwrap();
            }
        }
        assert_eq!(
            list(top.path()).unwrap(),
            [header("debian_13-2", "debian_13", "debian_13")]
        );
    }

    #[test]
    fn tasks_run_in_the_current_revision_of_a_machine_with_a_test() {
        let top = tempfile::tempdir().unwrap();
        let machine = top.path().join("default/box");
        for number in 1..=2 {
            fs::create_dir_all(machine.join(format!("box-{number}"))).unwrap();
        }
        symlink("box-2", machine.join("box")).unwrap();
        assert_eq!(revision(top.path(), "box"), None);
        fs::write(machine.join("box-2").join(TEST), "").unwrap();
        assert_eq!(revision(top.path(), "box"), Some(machine.join("box-2")));
        assert_eq!(revision(top.path(), "other"), None);
        assert_eq!(revision(Path::new("/nonexistent"), "box"), None);
    }

    #[test]
    fn list_without_machines_has_invented_machine() {
        assert_eq!(list(Path::new("/nonexistent")).unwrap().len(), 1);
    }

    #[test]
    fn fake_machine_must_be_a_manifest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(
            fake(file.path())
                .unwrap_err()
                .to_string()
                .ends_with("is not a machine manifest")
        );
        fs::write(file.path(), ": 1\nid: a-1\nname: a\nsummary: A\n").unwrap();
        assert_eq!(fake(file.path()).unwrap(), [header("a-1", "a", "A")]);
        assert!(fake(Path::new("/nonexistent")).is_err());
    }
}
