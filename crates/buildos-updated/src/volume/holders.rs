//! Finds subvolumes that processes use: open files, mapped files, directories.
//!
//! Each subvolume has a device number of its own (stat(2)), whatever path a process used.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Device numbers that processes use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    devices: BTreeSet<u64>,
    /// True if a process could not be looked into: then everything counts as used.
    incomplete: bool,
}

impl Holders {
    /// Looks at all processes of `/proc`.
    #[must_use]
    pub fn read(proc: &Path) -> Self {
        let mut out = Self::default();
        let Ok(entries) = fs::read_dir(proc) else {
            out.incomplete = true;
            return out;
        };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let is_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
            if is_process {
                out.process(&entry.path());
            }
        }
        out
    }

    fn process(&mut self, process: &Path) {
        for link in ["cwd", "root", "exe"] {
            self.file(&process.join(link));
        }
        for directory in ["fd", "map_files"] {
            match fs::read_dir(process.join(directory)) {
                Ok(entries) => {
                    for entry in entries.filter_map(Result::ok) {
                        self.file(&entry.path());
                    }
                }
                Err(error) => self.failed(&error),
            }
        }
    }

    fn file(&mut self, link: &Path) {
        match fs::metadata(link) {
            Ok(metadata) => {
                self.devices.insert(metadata.dev());
            }
            Err(error) => self.failed(&error),
        }
    }

    /// A process or a file that is gone holds nothing.
    fn failed(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::PermissionDenied {
            self.incomplete = true;
        }
    }

    /// Returns true if a process uses a subvolume, or if that is not known.
    #[must_use]
    pub fn use_subvolume(&self, path: &Path) -> bool {
        match path.symlink_metadata() {
            Ok(metadata) => self.incomplete || self.devices.contains(&metadata.dev()),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_are_found() {
        let directory = tempfile::tempdir().unwrap();
        // Of this process only: others can be of other users.
        let mut holders = Holders::default();
        holders.process(Path::new("/proc/self"));
        assert!(holders.use_subvolume(Path::new("/")));
        assert!(!holders.use_subvolume(&directory.path().join("none")));
        assert!(!Holders::default().use_subvolume(directory.path()));
    }
}
