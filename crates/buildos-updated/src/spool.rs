//! Keeps fetched objects: until they are placed, and afterwards for other hosts.
//!
//! An object is fetched into `parts/SHA256`, which the next run resumes, and becomes
//! `objects/SHA256` once its digest is right. From a peer it comes into `parts/SHA256.peer`,
//! which is never resumed: a digest that is wrong has one sender. While `parts/SHA256` grows,
//! other hosts wait for this one to have it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use buildos_channel::Digest;
use buildos_channel::digest::Hasher;
use buildos_service::file::open_regular;
use nix::sys::statvfs::statvfs;

use crate::programs::curl::{self, COPY_AGAIN, Failure, PeerFailure};
use crate::room::Room;
use crate::settings::{Settings, Source};

/// Attempts for an object in a run.
const ATTEMPTS: usize = 3;

/// The spool of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    directory: PathBuf,
}

impl Spool {
    #[allow(missing_docs)]
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Returns the path of the signed channel.
    #[must_use]
    pub fn channel(&self) -> PathBuf {
        self.directory.join("channel")
    }

    /// Returns the path of an object.
    #[must_use]
    pub fn object(&self, sha256: &Digest) -> PathBuf {
        self.directory.join("objects").join(sha256.to_string())
    }

    fn part(&self, sha256: &Digest) -> PathBuf {
        self.parts().join(sha256.to_string())
    }

    fn parts(&self) -> PathBuf {
        self.directory.join("parts")
    }

    /// Returns the directory of the objects.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.directory.join("objects")
    }

    /// Makes the directory of parts.
    ///
    /// # Errors
    ///
    /// The spool cannot be changed.
    pub fn prepare(&self) -> Result<(), String> {
        make(&self.parts())
    }

    /// Makes the directories of a spool that no helper has made.
    ///
    /// # Errors
    ///
    /// The spool cannot be changed.
    pub fn create(&self) -> Result<(), String> {
        make(&self.directory)?;
        make(&self.objects())?;
        self.prepare()
    }

    /// Announces to other hosts that this host fetches an object from the origin.
    ///
    /// # Errors
    ///
    /// The spool cannot be changed.
    pub fn claim(&self, sha256: &Digest) -> Result<(), String> {
        let part = self.part(sha256);
        File::options()
            .create(true)
            .append(true)
            .open(&part)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(|error| format!("cannot write {}: {error}", part.display()))
    }

    /// Takes a claim back.
    pub fn release(&self, sha256: &Digest) {
        let part = self.part(sha256);
        // A claim that stays ends by its age.
        let _ = match length(&part) {
            0 => fs::remove_file(&part),
            _ => File::options()
                .append(true)
                .open(&part)
                .and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH)),
        };
    }

    /// Returns true if the spool has an object. Its digest was right when it came.
    #[must_use]
    pub fn has(&self, sha256: &Digest, size: u64) -> bool {
        let metadata = self.object(sha256).symlink_metadata();
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Returns the bytes of an object that are there: of the whole or of a part.
    #[must_use]
    pub fn arrived(&self, sha256: &Digest) -> u64 {
        let whole = self.object(sha256).metadata();
        let part = self.part(sha256).metadata();
        whole.or(part).map_or(0, |metadata| metadata.len())
    }

    /// Returns the room of the file system.
    ///
    /// # Errors
    ///
    /// There is no spool.
    pub fn room(&self) -> Result<Room, String> {
        room(&self.directory)
    }

    /// Removes what is not an object of `needed`, or a part of one.
    ///
    /// # Errors
    ///
    /// The spool cannot be read or changed.
    pub fn keep_only(&self, needed: &BTreeSet<Digest>) -> Result<(), String> {
        clear(&self.objects(), needed)?;
        clear(&self.parts(), needed)
    }

    /// Removes the objects, and what is not a part of one of `needed`.
    ///
    /// # Errors
    ///
    /// The spool cannot be read or changed.
    pub fn keep_parts(&self, needed: &BTreeSet<Digest>) -> Result<(), String> {
        clear(&self.objects(), &BTreeSet::new())?;
        clear(&self.parts(), needed)
    }

    /// Fetches an object from a peer, through `link` only if there is one.
    ///
    /// # Errors
    ///
    /// The peer does not send it.
    pub fn fetch_from_peer(
        &self,
        sha256: &Digest,
        size: u64,
        url: &str,
        link: Option<&str>,
        settings: &Settings,
    ) -> Result<(), PeerFailure> {
        let part = self.parts().join(format!("{sha256}.peer"));
        let result = remove(&part)
            .map_err(PeerFailure::Local)
            .and_then(|()| {
                curl::fetch_from_peer(Path::new("curl"), url, link, &part, size, settings)
            })
            .and_then(|()| match length(&part) {
                found if found != size => Err(PeerFailure::Bad(format!(
                    "{url}: {found} bytes instead of {size}"
                ))),
                _ => match digest(&part) {
                    Ok(found) if found == *sha256 => {
                        self.complete(&part, sha256).map_err(PeerFailure::Local)
                    }
                    Ok(found) => Err(PeerFailure::Bad(format!(
                        "{url}: the content has a different digest, {found}"
                    ))),
                    Err(error) => Err(PeerFailure::Local(format!(
                        "cannot read {}: {error}",
                        part.display()
                    ))),
                },
            });
        if result.is_err() {
            // The next attempt removes it, too.
            let _ = fs::remove_file(&part);
        }
        result
    }

    /// Fetches an object, unless the spool has it. Returns the bytes that came.
    ///
    /// # Errors
    ///
    /// The server does not have it, sends something else, or is too slow.
    pub fn fetch(
        &self,
        sha256: &Digest,
        size: u64,
        source: &Source,
        settings: &Settings,
    ) -> Result<u64, String> {
        if self.has(sha256, size) {
            return Ok(0);
        }
        let part = self.part(sha256);
        let url = source.file(&format!("objects/{sha256}"));
        let mut reason = String::new();
        let before = length(&part);
        for _ in 0..ATTEMPTS {
            if length(&part) < size || size == 0 {
                match curl::fetch(Path::new("curl"), &url, &part, size, settings) {
                    Ok(()) => {}
                    Err(Failure::CannotResume) => {
                        remove(&part)?;
                        "the server cannot resume".clone_into(&mut reason);
                        continue;
                    }
                    Err(Failure::Other(error)) => {
                        reason = error;
                        // What came may be of use, unless there is too much of it.
                        if length(&part) > size {
                            remove(&part)?;
                        }
                        continue;
                    }
                }
            }
            match length(&part) {
                found if found < size => {
                    reason = format!("{url}: {found} bytes instead of {size}; {COPY_AGAIN}");
                }
                found if found > size => {
                    reason = format!("{url}: {found} bytes instead of {size}; {COPY_AGAIN}");
                    remove(&part)?;
                }
                _ => match digest(&part) {
                    Ok(found) if found == *sha256 => {
                        self.complete(&part, sha256)?;
                        return Ok(size.saturating_sub(before));
                    }
                    Ok(found) => {
                        reason = format!(
                            "{url}: the content has a different digest, {found}; {COPY_AGAIN}"
                        );
                        remove(&part)?;
                    }
                    Err(error) => return Err(format!("cannot read {}: {error}", part.display())),
                },
            }
        }
        Err(reason)
    }

    /// Fetches an object of at most `most` bytes whose size is not known, unless the spool has it.
    /// Returns its size.
    ///
    /// # Errors
    ///
    /// As [`Spool::fetch`].
    pub fn fetch_up_to(
        &self,
        sha256: &Digest,
        most: u64,
        source: &Source,
        settings: &Settings,
    ) -> Result<u64, String> {
        if self.object(sha256).is_file() {
            return Ok(length(&self.object(sha256)));
        }
        let part = self.part(sha256);
        let url = source.file(&format!("objects/{sha256}"));
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            match curl::fetch(Path::new("curl"), &url, &part, most, settings) {
                Ok(()) => {}
                Err(Failure::CannotResume) => {
                    // Perhaps the part is whole: there is no rest to be sent.
                    "the server cannot resume".clone_into(&mut reason);
                }
                Err(Failure::Other(error)) => {
                    reason = error;
                    continue;
                }
            }
            match digest(&part) {
                Ok(found) if found == *sha256 => {
                    let size = length(&part);
                    self.complete(&part, sha256)?;
                    return Ok(size);
                }
                Ok(found) => {
                    reason =
                        format!("{url}: the content has a different digest, {found}; {COPY_AGAIN}");
                    remove(&part)?;
                }
                Err(error) => reason = format!("cannot read {}: {error}", part.display()),
            }
        }
        Err(reason)
    }

    /// Gives a verified part its name.
    fn complete(&self, part: &Path, sha256: &Digest) -> Result<(), String> {
        let object = self.object(sha256);
        File::open(part)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(part, &object))
            .and_then(|()| match fs::remove_file(self.part(sha256)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })
            .map_err(|error| format!("cannot keep {}: {error}", object.display()))
    }
}

fn make(directory: &Path) -> Result<(), String> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("cannot make {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Removes from a directory what is not needed.
fn clear(directory: &Path, needed: &BTreeSet<Digest>) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot clear {}: {error}", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let digest = name.parse();
        if digest.is_ok_and(|digest| needed.contains(&digest)) {
            continue;
        }
        let path = entry.path();
        let is_directory = entry.file_type().map_err(failed)?.is_dir();
        match is_directory {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        }
        .map_err(failed)?;
    }
    Ok(())
}

/// Returns the room of the file system of a directory.
///
/// # Errors
///
/// There is no such directory.
pub fn room(directory: &Path) -> Result<Room, String> {
    let found = statvfs(directory)
        .map_err(|error| format!("cannot find the room of {}: {error}", directory.display()))?;
    let unit = found.fragment_size();
    Ok(Room {
        size: unit.saturating_mul(found.blocks()),
        free: unit.saturating_mul(found.blocks_available()),
    })
}

fn length(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |metadata| metadata.len())
}

fn remove(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Returns the digest of a file.
pub(crate) fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = open_regular(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut buffer)?;
        match buffer.get(..count) {
            Some([]) | None => return Ok(hasher.finish()),
            Some(data) => hasher.update(data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spool_keeps_only_what_is_needed() {
        let directory = tempfile::tempdir().unwrap();
        let objects = directory.path().join("objects");
        fs::create_dir(&objects).unwrap();
        let spool = Spool::new(directory.path());
        spool.prepare().unwrap();
        spool.prepare().unwrap();
        let (wanted, other) = (Digest::of(b"wanted"), Digest::of(b"other"));
        fs::write(spool.object(&wanted), "wanted").unwrap();
        fs::write(spool.part(&other), "oth").unwrap();
        fs::write(objects.join("strange"), "").unwrap();
        assert!(spool.has(&wanted, 6) && !spool.has(&wanted, 7));
        assert_eq!((spool.arrived(&wanted), spool.arrived(&other)), (6, 3));
        spool.keep_only(&BTreeSet::from([wanted])).unwrap();
        assert_eq!(fs::read_dir(&objects).unwrap().count(), 1);
        assert_eq!(fs::read_dir(spool.parts()).unwrap().count(), 0);
        assert!(spool.has(&wanted, 6));
        assert!(spool.room().unwrap().size > 0);
    }
}
