//! Replaces files atomically, and reads files that other users write.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A file could not be replaced, and keeps its content.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    #[allow(missing_docs)]
    pub path: PathBuf,
    #[source]
    source: io::Error,
}

impl WriteError {
    /// Returns the kind of the error of the operating system.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Opens a file that another user writes.
///
/// Returns at once, with an error, if the file is a FIFO, a device or a symbolic link.
///
/// # Errors
///
/// The file cannot be opened, or is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<fs::File> {
    // O_NONBLOCK: open(2) of a FIFO waits for a writer otherwise.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        let text = "not a regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(file)
}

/// Returns the error for a file of more than `limit` bytes.
#[must_use]
pub fn too_large(limit: usize) -> io::Error {
    let text = format!("larger than {limit} bytes");
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

/// Reads a file that another user writes, as [`open_regular`] opens it.
///
/// # Errors
///
/// The file cannot be read, is not a regular file, or has more than `limit` bytes.
pub fn read_bounded(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let limit_and_one = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut content = Vec::new();
    file.take(limit_and_one).read_to_end(&mut content)?;
    if content.len() > limit {
        return Err(too_large(limit));
    }
    Ok(content)
}

/// Replaces the content of a file: writes a new file beside it, then renames the new
/// file.
///
/// Returns true if the content changed. If the content is equal, the file is not written,
/// so that its watchers do not wake. There is no fsync, as `/run` is memory.
///
/// # Errors
///
/// The directory does not exist or is not writable, or memory is full.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, WriteError> {
    if read_bounded(path, content.len()).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    overwrite(path, content, mode).map(|()| true)
}

/// Replaces the content of a file as [`replace`], without comparing it: for the only writer of
/// a file, who knows that the content differs.
///
/// # Errors
///
/// As [`replace`].
pub fn overwrite(path: &Path, content: &[u8], mode: u32) -> Result<(), WriteError> {
    let beside = beside(path);
    write(&beside, content, mode)
        .and_then(|_| fs::rename(&beside, path))
        .map_err(|source| WriteError {
            path: path.to_owned(),
            source,
        })
}

/// Replaces the content of a file on a disk so that it survives a power cut: the old or the
/// new content is there, whole. When this returns, it is the new content.
///
/// # Errors
///
/// As [`replace`]. The file then has the old content, and nothing is left beside it, if the file
/// system still permits that.
pub fn replace_durably(path: &Path, content: &[u8], mode: u32) -> Result<(), WriteError> {
    let beside = beside(path);
    let directory = directory(path);
    write(&beside, content, mode)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| fs::File::open(directory)?.sync_all())
        .map_err(|source| {
            // A full file system needs the space; an error here changes nothing.
            let _ = fs::remove_file(&beside);
            WriteError {
                path: path.to_owned(),
                source,
            }
        })
}

/// Returns the directory of a file; a relative path can be a name alone.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Returns the path of the new file beside `path`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = match options.open(path) {
        // A file left by a crash might have a different mode.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            options.open(path)?
        }
        opened => opened?,
    };
    // The umask must not restrict readers.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_is_not_written() {
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
    fn directory_of_a_name_is_the_current_one() {
        assert_eq!(directory(Path::new("stable")), Path::new("."));
        assert_eq!(directory(Path::new("/stable")), Path::new("/"));
        assert_eq!(directory(Path::new("www/stable")), Path::new("www"));
    }

    #[test]
    fn file_left_by_a_crash_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state.json.new"), "half").unwrap();
        let path = dir.path().join("state.json");
        assert!(replace(&path, b"whole", 0o644).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn failed_durable_write_leaves_the_old_content_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        replace_durably(&path, b"one", 0o600).unwrap();
        replace_durably(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        // A directory in the place of the file refuses the rename.
        let directory = dir.path().join("directory");
        fs::create_dir(&directory).unwrap();
        let error = replace_durably(&directory, b"one", 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn file_up_to_the_limit_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        let error = read_bounded(&path, 4).unwrap_err();
        assert_eq!(error.to_string(), "larger than 4 bytes");
        let error = read_bounded(&dir.path().join("x"), 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn other_than_regular_files_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let link = dir.path().join("link");
        fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        for path in [&fifo, dir.path(), Path::new("/dev/zero")] {
            let error = read_bounded(path, 4).unwrap_err();
            assert_eq!(
                error.to_string(),
                "not a regular file",
                "{}",
                path.display()
            );
        }
        let error = read_bounded(&link, 4).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn error_names_the_file() {
        let error = replace(Path::new("/nonexistent/x"), b"", 0o644).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nonexistent/x");
    }
}
