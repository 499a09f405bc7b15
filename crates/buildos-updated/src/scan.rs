//! Reads the files of a machine: their contents, and the marks of changes.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use buildos_channel::contents::{Contents, Entry};
use buildos_channel::digest::{Digest, Hasher};
use buildos_types::Escaped;

/// What changes with every change of a file: a snapshot has the same as its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    inode: u64,
    mode: u32,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The marks of all files by path.
pub type Marks = BTreeMap<Vec<u8>, Mark>;

/// Reads the marks of all files below a directory.
///
/// # Errors
///
/// A file cannot be read, or is on a different file system or subvolume.
pub fn marks(directory: &Path) -> Result<Marks, String> {
    let mut marks = BTreeMap::new();
    walk(directory, &mut |path, _, metadata| {
        let mark = Mark {
            inode: metadata.ino(),
            mode: metadata.mode(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        marks.insert(path.to_vec(), mark);
        Ok(())
    })?;
    Ok(marks)
}

/// Returns the first path whose mark differs.
#[must_use]
pub fn difference(before: &Marks, after: &Marks) -> Option<String> {
    let differs = |path: &&Vec<u8>| before.get(*path) != after.get(*path);
    let mut paths = before.keys().chain(after.keys());
    let path = paths.find(differs)?;
    Some(Escaped::from_bytes(path).to_string())
}

/// Reads the contents of all files below a directory.
///
/// # Errors
///
/// As [`marks`].
pub fn contents(directory: &Path) -> Result<Contents, String> {
    let mut contents = Contents::default();
    walk(directory, &mut |path, file, metadata| {
        let entry = entry(file, metadata)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        contents.0.insert(path.to_vec(), entry);
        Ok(())
    })?;
    Ok(contents)
}

fn entry(path: &Path, metadata: &Metadata) -> std::io::Result<Entry> {
    let kind = metadata.file_type();
    let (size, sha256) = if kind.is_file() {
        file(path)?
    } else if kind.is_symlink() {
        let target = fs::read_link(path)?;
        let target = target.as_os_str().as_bytes();
        (target.len() as u64, Digest::of(target))
    } else if kind.is_block_device() || kind.is_char_device() {
        let number = metadata.rdev();
        let number = format!("{}:{}", libc::major(number), libc::minor(number));
        (0, Digest::of(number.as_bytes()))
    } else {
        (0, Digest::of(b""))
    };
    Ok(Entry {
        mode: metadata.mode(),
        size,
        sha256,
    })
}

fn file(path: &Path) -> std::io::Result<(u64, Digest)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        match buffer.get(..count) {
            Some([]) | None => return Ok((size, hasher.finish())),
            Some(data) => hasher.update(data),
        }
        size += count as u64;
    }
}

/// Takes the relative path, the path and the metadata of a file.
type Visit<'v> = dyn FnMut(&[u8], &Path, &Metadata) -> Result<(), String> + 'v;

/// Visits all files below a directory. A mount point or a subvolume is an error: neither is
/// in a snapshot.
fn walk(top: &Path, visit: &mut Visit<'_>) -> Result<(), String> {
    let failed = |path: &Path, error| format!("cannot read {}: {error}", path.display());
    let device = fs::symlink_metadata(top)
        .map_err(|error| failed(top, error))?
        .dev();
    let mut pending = vec![top.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = fs::read_dir(&directory).map_err(|error| failed(&directory, error))?;
        for entry in entries {
            let path = entry.map_err(|error| failed(&directory, error))?.path();
            let metadata = fs::symlink_metadata(&path).map_err(|error| failed(&path, error))?;
            if metadata.dev() != device {
                let place = path.display();
                return Err(format!(
                    "{place} is a mount point or a subvolume, which a snapshot leaves out"
                ));
            }
            let relative = path.strip_prefix(top).unwrap_or(&path);
            visit(relative.as_os_str().as_bytes(), &path, &metadata)?;
            if metadata.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn contents_have_files_links_and_directories() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("d")).unwrap();
        fs::write(path("d/f"), "abc").unwrap();
        symlink("../f", path("d/l")).unwrap();
        let found = contents(directory.path()).unwrap();
        let shown: Vec<_> = found
            .0
            .iter()
            .map(|(path, entry)| (path.as_slice(), entry.mode & 0o170_000, entry.size))
            .collect();
        assert_eq!(
            shown,
            [
                (&b"d"[..], 0o40_000, 0),
                (b"d/f", 0o100_000, 3),
                (b"d/l", 0o120_000, 4)
            ]
        );
        assert_eq!(found.0[&b"d/f"[..]].sha256, Digest::of(b"abc"));
        assert_eq!(found.0[&b"d/l"[..]].sha256, Digest::of(b"../f"));
    }

    #[test]
    fn every_change_changes_a_mark() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("a"), "1").unwrap();
        fs::write(path("b"), "1").unwrap();
        let before = marks(directory.path()).unwrap();
        assert_eq!(difference(&before, &marks(directory.path()).unwrap()), None);
        fs::write(path("c"), "").unwrap();
        let added = marks(directory.path()).unwrap();
        assert_eq!(difference(&before, &added), Some("c".to_owned()));
        fs::remove_file(path("c")).unwrap();
        // The same size, and a time in the past: the time of the change shows it.
        let modified = fs::metadata(path("b")).unwrap().modified().unwrap();
        fs::write(path("b"), "2").unwrap();
        File::options()
            .write(true)
            .open(path("b"))
            .unwrap()
            .set_modified(modified)
            .unwrap();
        let changed = marks(directory.path()).unwrap();
        assert_eq!(difference(&before, &changed), Some("b".to_owned()));
    }
}
