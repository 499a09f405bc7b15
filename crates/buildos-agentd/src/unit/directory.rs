//! Reads and writes drop-ins below `/run/systemd/system`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use buildos_service::file::{self, WriteError};

use super::dropin;
use crate::agent::id::Id;

/// Directory of units that last until the next boot.
pub const RUNTIME: &str = "/run/systemd/system";

/// Directory of units.
#[derive(Debug, Clone)]
pub struct UnitDirectory(PathBuf);

/// Reason why drop-ins could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum UnitDirectoryError {
    /// A file or directory could not be read, created or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// The operation: read, create, remove.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A drop-in could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnitDirectoryError {
    let path = path.to_owned();
    move |source| UnitDirectoryError::File {
        action,
        path,
        source,
    }
}

impl UnitDirectory {
    /// Uses the directory at `path`, normally [`RUNTIME`].
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Returns the text of the drop-in of each agent that has one.
    ///
    /// # Errors
    ///
    /// The directory or a drop-in cannot be read.
    pub fn read(&self) -> Result<BTreeMap<Id, String>, UnitDirectoryError> {
        let read = || cannot("read", &self.0);
        let mut dropins = BTreeMap::new();
        for entry in fs::read_dir(&self.0).map_err(read())? {
            let entry = entry.map_err(read())?;
            let Some(id) = entry.file_name().to_str().and_then(dropin::agent_of) else {
                continue;
            };
            let path = self.file(&id);
            match fs::read_to_string(&path) {
                Ok(text) => drop(dropins.insert(id, text)),
                // An operator created the directory (systemctl edit --runtime).
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(cannot("read", &path)(e)),
            }
        }
        Ok(dropins)
    }

    /// Writes the drop-in of an agent.
    ///
    /// # Errors
    ///
    /// The directory is not writable, or the file system is full.
    pub fn write(&self, id: &Id, text: &str) -> Result<(), UnitDirectoryError> {
        let directory = self.0.join(dropin::directory(id));
        fs::create_dir_all(&directory).map_err(cannot("create", &directory))?;
        file::replace(&self.file(id), text.as_bytes(), 0o644)?;
        Ok(())
    }

    /// Writes the drop-in of the slice of all agents.
    ///
    /// # Errors
    ///
    /// The directory is not writable, or the file system is full.
    pub fn write_slice(&self, text: &str) -> Result<(), UnitDirectoryError> {
        let directory = self.0.join(format!("{}.d", dropin::SLICE));
        fs::create_dir_all(&directory).map_err(cannot("create", &directory))?;
        let file = directory.join(dropin::FILE);
        file::replace(&file, text.as_bytes(), 0o644)?;
        Ok(())
    }

    /// Removes the drop-in of an agent. Its directory goes too, unless it holds drop-ins of
    /// an operator.
    ///
    /// # Errors
    ///
    /// The file exists and cannot be removed.
    pub fn remove(&self, id: &Id) -> Result<(), UnitDirectoryError> {
        let path = self.file(id);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(cannot("remove", &path)(e)),
        }
        let directory = self.0.join(dropin::directory(id));
        match fs::remove_dir(&directory) {
            Ok(()) => Ok(()),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(cannot("remove", &directory)(e)),
        }
    }

    fn file(&self, id: &Id) -> PathBuf {
        self.0.join(dropin::directory(id)).join(dropin::FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_dropins_are_read_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let units = UnitDirectory::new(root.path());
        let [a, b]: [Id; 2] = ["bbot@a", "bslave@b"].map(|id| id.parse().unwrap());
        units.write(&a, "A").unwrap();
        units.write(&b, "B").unwrap();
        fs::write(
            root.path().join("buildos-bslave@b.service.d/override.conf"),
            "",
        )
        .unwrap();
        fs::create_dir(root.path().join("buildos-bbot@c.service.d")).unwrap();
        fs::create_dir(root.path().join("other.service.d")).unwrap();

        let dropins: Vec<_> = units.read().unwrap().into_iter().collect();
        assert_eq!(
            dropins,
            [(a.clone(), "A".to_owned()), (b.clone(), "B".to_owned())]
        );

        units.remove(&a).unwrap();
        units.remove(&a).unwrap();
        units.remove(&b).unwrap();
        assert!(units.read().unwrap().is_empty());
        assert!(!root.path().join("buildos-bbot@a.service.d").exists());
        assert!(
            root.path()
                .join("buildos-bslave@b.service.d/override.conf")
                .exists()
        );
    }

    #[test]
    fn slice_dropin_is_written() {
        let root = tempfile::tempdir().unwrap();
        let units = UnitDirectory::new(root.path());
        units.write_slice("[Slice]\n").unwrap();
        units.write_slice("").unwrap();
        assert!(units.read().unwrap().is_empty());
        let path = root.path().join("buildos-agents.slice.d/50-buildos.conf");
        assert_eq!(fs::read_to_string(path).unwrap(), "");
    }

    #[test]
    fn error_names_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let units = UnitDirectory::new(file.path());
        let path = file.path().display();
        assert_eq!(
            units.read().unwrap_err().to_string(),
            format!("cannot read {path}")
        );
        let id: Id = "bbot@a".parse().unwrap();
        assert_eq!(
            units.write(&id, "").unwrap_err().to_string(),
            format!("cannot create {path}/buildos-bbot@a.service.d")
        );
    }
}
