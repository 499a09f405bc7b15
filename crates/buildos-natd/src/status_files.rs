//! The files by which dnsmasq and the probe say what they do, followed
//! (inotify(7)).
//!
//! systemd could tell when their units change, but only while it tells everybody
//! who asks about every unit of the host, hundreds of messages while that boots.

#![allow(unsafe_code)] // AsyncFd has no safe constructor.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use buildos_probe::REPORT;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::unix::AsyncFd;

use crate::dnsmasq::config::{IN_FORCE, PID};

/// What is followed, below the root.
const FILES: [&str; 3] = [IN_FORCE, PID, REPORT];

/// The files cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("cannot follow files below /run/buildos")]
pub struct StatusFilesError(#[source] io::Error);

/// Follows the files, which come and go, as their directories do.
pub struct StatusFiles {
    inotify: AsyncFd<Descriptor>,
    root: PathBuf,
}

impl StatusFiles {
    /// Begins to follow the files below `root`, which is `/` outside of tests.
    ///
    /// # Errors
    ///
    /// The host has no inotify instance left (`fs.inotify.max_user_instances`).
    pub fn open(root: &Path) -> Result<Self, StatusFilesError> {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let inotify = Inotify::init(flags).map_err(|errno| StatusFilesError(errno.into()))?;
        // SAFETY: an Inotify keeps its descriptor open until it is dropped, and
        // the AsyncFd owns it.
        let inotify = unsafe { AsyncFd::register(Descriptor(inotify)) };
        Ok(Self {
            inotify: inotify.map_err(|error| StatusFilesError(error.into()))?,
            root: root.to_owned(),
        })
    }

    /// Takes in directories that have come. Whoever looks at the files calls this
    /// before: what comes between two looks is then in the later one.
    ///
    /// # Errors
    ///
    /// There is no watch left (`fs.inotify.max_user_watches`).
    pub fn follow(&self) -> Result<(), StatusFilesError> {
        let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        for directory in FILES.iter().filter_map(|file| Path::new(file).parent()) {
            self.watch(directory, written | AddWatchFlags::IN_DELETE)?;
            if let Some(parent) = directory.parent() {
                self.watch(parent, AddWatchFlags::IN_CREATE)?;
            }
        }
        Ok(())
    }

    /// One that is watched already stays so.
    fn watch(&self, directory: &Path, events: AddWatchFlags) -> Result<(), StatusFilesError> {
        let inotify = &self.inotify.get_ref().0;
        match inotify.add_watch(&self.root.join(directory), events) {
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(StatusFilesError(errno.into())),
        }
    }

    /// Waits until one of the files is written or removed, or a directory comes.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// The kernel refuses to tell, which it has no reason for.
    pub async fn changed(&self) -> Result<(), StatusFilesError> {
        loop {
            let mut ready = self.inotify.readable().await.map_err(StatusFilesError)?;
            match self.inotify.get_ref().0.read_events() {
                Ok(events) if events.iter().any(is_ours) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(StatusFilesError(errno.into())),
            }
        }
    }
}

/// Whether the event is of one of the files, of a directory of theirs, or says that
/// there were too many.
fn is_ours(event: &InotifyEvent) -> bool {
    let Some(name) = &event.name else { return true };
    let is = |path: &Path| path.file_name() == Some(OsStr::new(name));
    let mut files = FILES.iter().map(Path::new);
    files.any(|file| is(file) || file.parent().is_some_and(is))
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

    const DEADLINE: Duration = Duration::from_secs(10);

    struct Trial {
        root: TempDir,
        files: StatusFiles,
    }

    impl Trial {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let files = StatusFiles::open(root.path()).unwrap();
            Self { root, files }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        fn make_directory(&self, path: &str) {
            fs::create_dir_all(self.path(path)).unwrap();
            self.files.follow().unwrap();
        }

        async fn is_told(&self, what: &str) {
            let told = timeout(DEADLINE, self.files.changed()).await;
            told.expect(what).unwrap();
            self.files.follow().unwrap();
        }

        /// Whether nothing more is to be told. What was done before has arrived: the
        /// kernel queues an event before the call that causes it returns.
        async fn is_quiet(&self) -> bool {
            timeout(Duration::ZERO, self.files.changed()).await.is_err()
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn directories_are_followed_as_they_come() {
        let trial = Trial::new();
        trial.files.follow().unwrap();
        trial.make_directory("run/buildos");
        fs::create_dir(trial.path("run/buildos/dnsmasq")).unwrap();
        trial.is_told("a directory has come").await;
        fs::write(trial.path(IN_FORCE), "").unwrap();
        trial.is_told("a file is written").await;
        fs::remove_dir_all(trial.path("run/buildos/dnsmasq")).unwrap();
        trial.is_told("it is gone").await;
        while !trial.is_quiet().await {}
        trial.make_directory("run/buildos/dnsmasq");
        trial.is_told("it is back").await;
        fs::write(trial.path(PID), "1").unwrap();
        trial.is_told("a file is written in the new one").await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_replaces_a_file_and_its_end_are_told() {
        let trial = Trial::new();
        trial.make_directory("run/buildos/probe");
        while !trial.is_quiet().await {}
        fs::write(trial.path("run/buildos/probe/new"), "{}").unwrap();
        assert!(trial.is_quiet().await, "another file");
        fs::rename(trial.path("run/buildos/probe/new"), trial.path(REPORT)).unwrap();
        trial.is_told("a report is there").await;
        fs::remove_file(trial.path(REPORT)).unwrap();
        trial.is_told("it is gone").await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn machines_that_come_and_go_are_not_told() {
        let trial = Trial::new();
        trial.make_directory("run/buildos/dnsmasq");
        while !trial.is_quiet().await {}
        for number in 0..100 {
            fs::write(
                trial.path(crate::dnsmasq::config::LEASES),
                number.to_string(),
            )
            .unwrap();
        }
        assert!(trial.is_quiet().await);
    }
}
