//! Parses and watches `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

#![allow(unsafe_code)] // AsyncFd has no safe constructor.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device, as the kernel shows it: `/dev/vda1`.
    pub source: String,
    /// Directory.
    pub target: String,
    /// Options of the mount, separated by commas.
    pub options: String,
    /// The mount or its file system is not writable.
    pub read_only: bool,
    /// The file system is not writable, whatever the mount. A sandbox has read-only mounts of
    /// writable file systems.
    pub is_file_system_read_only: bool,
}

/// Returns the mounts of this process, in the order of the kernel. Reads below `root`.
#[must_use]
pub fn read(root: &Path) -> Vec<Mount> {
    let text = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// Returns the last mount at a directory, which hides earlier ones.
#[must_use]
pub fn at<'a>(mounts: &'a [Mount], target: &str) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.target == target)
}

fn parse(line: &str) -> Option<Mount> {
    let (mount, system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(4);
    let (target, options) = (mount.next()?, mount.next()?);
    let mut system = system.split(' ').skip(1);
    let (source, super_options) = (system.next()?, system.next()?);
    let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        options: options.to_owned(),
        read_only: is_read_only(options) || is_read_only(super_options),
        is_file_system_read_only: is_read_only(super_options),
    })
}

/// Watches for changed mounts.
pub struct MountWatch(AsyncFd<File>);

impl MountWatch {
    /// Starts to watch. Call it within a runtime.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted.
    pub fn new(root: &Path) -> io::Result<Self> {
        let file = File::open(root.join("proc/self/mountinfo"))?;
        // The kernel reports a change as an exceptional condition.
        // SAFETY: a File keeps its descriptor open until it is dropped, and the AsyncFd owns it.
        unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }
            .map(Self)
            .map_err(io::Error::from)
    }

    /// Waits until a file system is mounted or unmounted. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The runtime ends.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.ready(Interest::PRIORITY).await?;
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_mount_at_a_directory_counts() {
        let lines = [
            "22 1 0:21 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/lower",
            "90 22 0:45 / /state rw,nosuid - btrfs /dev/vda rw,space_cache=v2",
            "91 90 254:16 / /state rw,nosuid shared:7 - ext4 /dev/vdb ro",
            "half a line",
        ];
        let mounts: Vec<Mount> = lines.iter().filter_map(|line| parse(line)).collect();
        assert_eq!(mounts.len(), 3);
        let mount = at(&mounts, "/state").unwrap();
        assert_eq!(mount.source, "/dev/vdb");
        assert!(mount.read_only && mount.is_file_system_read_only);
        assert_eq!(mount.options, "rw,nosuid");
        assert!(!at(&mounts[..2], "/state").unwrap().read_only);
        assert_eq!(at(&mounts, "/nowhere"), None);
    }
}
