//! Files that readers see whole or not at all.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A file could not be replaced.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    /// The file that keeps its old content.
    pub path: PathBuf,
    #[source]
    source: io::Error,
}

/// Replaces a file's content in one step (write beside it, rename over it).
///
/// The files of buildos live in `/run`, which is memory: there is no fsync.
/// Returns whether anything changed: equal content is left untouched, so that
/// whoever watches the file is not woken for nothing.
///
/// # Errors
///
/// The directory does not exist or is not writable, or memory is full; the
/// old content is still there.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, WriteError> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    write(&beside, content, mode)
        .and_then(|()| fs::rename(&beside, path))
        .map(|()| true)
        .map_err(|source| WriteError {
            path: path.to_owned(),
            source,
        })
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // A file left by a crash may have another mode.
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // Whatever the umask: the mode is who shall read this file.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_and_equal_content_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert!(replace(&path, b"one", 0o640).unwrap());
        assert!(!replace(&path, b"one", 0o640).unwrap());
        assert!(replace(&path, b"two", 0o640).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_behind_does_not_stand_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state.json.new"), "half").unwrap();
        let path = dir.path().join("state.json");
        assert!(replace(&path, b"whole", 0o644).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn the_error_names_the_file() {
        let error = replace(Path::new("/nonexistent/x"), b"", 0o644).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nonexistent/x");
    }
}
