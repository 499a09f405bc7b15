//! Watches files for changes (inotify(7)). The directories of the files can be created
//! later.
//!
//! natd follows dnsmasq and the probe by the files they write, and buildos-state the daemons.
//! systemd's D-Bus signals would need a `Subscribe()`, which makes systemd emit signals for
//! every unit.

#![allow(unsafe_code)] // AsyncFd has no safe constructor.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::unix::AsyncFd;

/// The kernel refused a watch.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch files")]
pub struct FileWatchError(#[source] io::Error);

/// Watches for files that are written, replaced or removed.
pub struct FileWatch {
    inotify: AsyncFd<Descriptor>,
    root: PathBuf,
    files: &'static [&'static str],
    written: AddWatchFlags,
}

impl FileWatch {
    /// Creates a watch for `files`, which are paths below `root`. Call
    /// [`FileWatch::add_directories`] before waiting.
    ///
    /// # Errors
    ///
    /// The host has no inotify instance left (`fs.inotify.max_user_instances`).
    pub fn new(root: &Path, files: &'static [&'static str]) -> Result<Self, FileWatchError> {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let inotify = Inotify::init(flags).map_err(|errno| FileWatchError(errno.into()))?;
        // SAFETY: an Inotify keeps its descriptor open until it is dropped, and
        // the AsyncFd owns it.
        let inotify = unsafe { AsyncFd::register(Descriptor(inotify)) };
        Ok(Self {
            inotify: inotify.map_err(|error| FileWatchError(error.into()))?,
            root: root.to_owned(),
            files,
            written: AddWatchFlags::IN_CLOSE_WRITE,
        })
    }

    /// As [`Self::new`], for files that their writer keeps open.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn of_open_files(
        root: &Path,
        files: &'static [&'static str],
    ) -> Result<Self, FileWatchError> {
        Ok(Self {
            written: AddWatchFlags::IN_MODIFY,
            ..Self::new(root, files)?
        })
    }

    /// Adds watches for directories created since the last call. Call it before reading
    /// the files: a change after the call is then reported.
    ///
    /// # Errors
    ///
    /// There is no watch left (`fs.inotify.max_user_watches`).
    pub fn add_directories(&self) -> Result<(), FileWatchError> {
        let written = self.written | AddWatchFlags::IN_MOVED_TO;
        for directory in self
            .files
            .iter()
            .filter_map(|file| Path::new(file).parent())
        {
            self.add(directory, written | AddWatchFlags::IN_DELETE)?;
            if let Some(parent) = directory.parent() {
                self.add(parent, AddWatchFlags::IN_CREATE)?;
            }
        }
        Ok(())
    }

    /// Adds a watch. The kernel keeps one watch for each directory, so adding it again
    /// has no effect.
    fn add(&self, directory: &Path, events: AddWatchFlags) -> Result<(), FileWatchError> {
        let inotify = &self.inotify.get_ref().0;
        match inotify.add_watch(&self.root.join(directory), events) {
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(FileWatchError(errno.into())),
        }
    }

    /// Waits until one of the files is written, replaced or removed, or one of their
    /// directories is created. Cancel-safe.
    ///
    /// # Errors
    ///
    /// Reading from inotify failed.
    pub async fn changed(&self) -> Result<(), FileWatchError> {
        loop {
            let mut ready = self.inotify.readable().await.map_err(FileWatchError)?;
            match self.inotify.get_ref().0.read_events() {
                Ok(events) if events.iter().any(|event| self.concerns(event)) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(FileWatchError(errno.into())),
            }
        }
    }

    /// Returns true for events of the files and of their directories, and for a queue
    /// overflow.
    fn concerns(&self, event: &InotifyEvent) -> bool {
        let Some(name) = &event.name else { return true };
        let has_name = |path: &Path| path.file_name() == Some(OsStr::new(name));
        let mut files = self.files.iter().map(Path::new);
        files.any(|file| has_name(file) || file.parent().is_some_and(has_name))
    }
}

/// An inotify instance, for [`AsyncFd`].
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;
    use tempfile::TempDir;
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(60);
    const CONFIGURATION: &str = "run/buildos/dnsmasq/dnsmasq.conf";
    const PID: &str = "run/buildos/dnsmasq/dnsmasq.pid";
    const REPORT: &str = "run/buildos/probe/report.json";

    struct Trial {
        root: TempDir,
        watch: FileWatch,
    }

    impl Trial {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let watch = FileWatch::new(root.path(), &[CONFIGURATION, PID, REPORT]).unwrap();
            Self { root, watch }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        fn make_directory(&self, path: &str) {
            fs::create_dir_all(self.path(path)).unwrap();
            self.watch.add_directories().unwrap();
        }

        async fn expect_change(&self, why: &str) {
            let changed = timeout(DEADLINE, self.watch.changed()).await;
            changed.expect(why).unwrap();
            self.watch.add_directories().unwrap();
        }

        /// Returns true if no event is queued. The kernel queues an event before the
        /// call that causes it returns.
        async fn is_quiet(&self) -> bool {
            timeout(Duration::ZERO, self.watch.changed()).await.is_err()
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn watch_includes_directories_created_later() {
        let trial = Trial::new();
        trial.watch.add_directories().unwrap();
        trial.make_directory("run/buildos");
        fs::create_dir(trial.path("run/buildos/dnsmasq")).unwrap();
        trial.expect_change("the directory is created").await;
        fs::write(trial.path(CONFIGURATION), "").unwrap();
        trial.expect_change("a file is written").await;
        fs::remove_dir_all(trial.path("run/buildos/dnsmasq")).unwrap();
        trial.expect_change("the directory is removed").await;
        while !trial.is_quiet().await {}
        trial.make_directory("run/buildos/dnsmasq");
        trial.expect_change("the directory is created again").await;
        fs::write(trial.path(PID), "1").unwrap();
        trial
            .expect_change("a file is written in the new one")
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn watch_reports_replacement_and_removal_of_a_file() {
        let trial = Trial::new();
        trial.make_directory("run/buildos/probe");
        while !trial.is_quiet().await {}
        fs::write(trial.path("run/buildos/probe/new"), "{}").unwrap();
        assert!(trial.is_quiet().await, "a file that is not watched");
        fs::rename(trial.path("run/buildos/probe/new"), trial.path(REPORT)).unwrap();
        trial.expect_change("the report is replaced").await;
        fs::remove_file(trial.path(REPORT)).unwrap();
        trial.expect_change("the report is removed").await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn watch_ignores_changes_of_leases() {
        let trial = Trial::new();
        trial.make_directory("run/buildos/dnsmasq");
        while !trial.is_quiet().await {}
        for number in 0..100 {
            let leases = trial.path("run/buildos/dnsmasq/leases");
            fs::write(leases, number.to_string()).unwrap();
        }
        assert!(trial.is_quiet().await);
    }
}
