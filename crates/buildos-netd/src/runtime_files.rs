//! Writes the files of a directory in `/run`.
//!
//! netd is the only writer. It keeps their content in memory, and writes a file only if the
//! content changed. A file that cannot be written, because `/run` is full, keeps its content
//! and is tried again after 1, 2, 4 … 64 s.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use buildos_dhcp::Instant;
use buildos_service::{file, text};

use crate::messages;

const MODE: u32 = 0o644;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(64);

/// The files of a directory.
#[derive(Debug)]
pub struct RuntimeFiles {
    directory: PathBuf,
    /// Content of the files on disk.
    written: BTreeMap<&'static str, Vec<u8>>,
    /// Content of the files that could not be written.
    unwritten: BTreeMap<&'static str, Vec<u8>>,
    /// Delay and time of the next attempt to write them.
    retry: Option<(Duration, Instant)>,
}

impl RuntimeFiles {
    /// Returns the files of a directory, whose content is unknown.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            written: BTreeMap::new(),
            unwritten: BTreeMap::new(),
            retry: None,
        }
    }

    /// Writes a file unless it has this content. Logs the first failure in a row.
    pub fn write(&mut self, now: Instant, name: &'static str, content: Vec<u8>) {
        let was_unwritten = self.unwritten.remove(name).is_some();
        let old = self.written.get(name);
        if old == Some(&content) {
            return;
        }
        let path = self.directory.join(name);
        let result = match old {
            Some(_) => file::overwrite(&path, &content, MODE),
            // Written by an earlier netd, perhaps with the same content.
            None => file::replace(&path, &content, MODE).map(drop),
        };
        match result {
            Ok(()) => drop(self.written.insert(name, content)),
            Err(error) => {
                if !was_unwritten {
                    tracing::error!(message_id = messages::FILE, "{}", text::chain(&error));
                }
                self.unwritten.insert(name, content);
                let first = (FIRST_RETRY, now.saturating_add(FIRST_RETRY));
                self.retry.get_or_insert(first);
            }
        }
    }

    /// Returns the latest time for the next call of [`RuntimeFiles::timeout`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.retry.map(|(_, at)| at)
    }

    /// Writes the files that could not be written before, if that is due.
    pub fn timeout(&mut self, now: Instant) {
        let Some((delay, _)) = self.retry.filter(|(_, at)| *at <= now) else {
            return;
        };
        for (name, content) in self.unwritten.clone() {
            self.write(now, name, content);
        }
        let delay = (2 * delay).min(LONGEST_RETRY);
        let failed = !self.unwritten.is_empty();
        self.retry = failed.then_some((delay, now.saturating_add(delay)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    const START: Instant = Duration::from_secs(100);

    #[test]
    fn file_is_written_only_if_content_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let mut files = RuntimeFiles::new(directory.path());
        files.write(START, "resolv.conf", b"one".to_vec());
        let inode = || fs::metadata(&path).unwrap().ino();
        let first = inode();
        files.write(START, "resolv.conf", b"one".to_vec());
        assert_eq!(inode(), first);
        files.write(START, "resolv.conf", b"two".to_vec());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(files.deadline(), None);
        // A restarted netd does not write what an earlier one wrote.
        let second = inode();
        RuntimeFiles::new(directory.path()).write(START, "resolv.conf", b"two".to_vec());
        assert_eq!(inode(), second);
    }

    #[test]
    fn file_that_cannot_be_written_is_retried_with_backoff() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("netd");
        let mut files = RuntimeFiles::new(&directory);
        files.write(START, "state.json", b"one".to_vec());
        let mut now = START;
        let mut delays = Vec::new();
        for _ in 0..8 {
            let at = files.deadline().unwrap();
            delays.push((at - now).as_secs());
            now = at;
            // A change is tried at once, and does not shorten the backoff.
            files.write(now, "state.json", b"two".to_vec());
            files.timeout(now);
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 64]);
        fs::create_dir(&directory).unwrap();
        files.timeout(files.deadline().unwrap());
        assert_eq!(files.deadline(), None);
        assert_eq!(fs::read(directory.join("state.json")).unwrap(), b"two");
    }
}
