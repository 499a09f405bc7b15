//! Opens directories on which volumes are mounted, and mounts on the opened directory.
//!
//! The user `build` owns `/build` and `/build/machines`. It can put a link there, or exchange a
//! directory at any moment. A mount by path would follow the link, and hide `/etc` for example.
//!
//! | step | call |
//! |---|---|
//! | make a missing directory | mkdirat(2) in its opened parent, which follows no link |
//! | open it | openat(2) with `O_NOFOLLOW` in its opened parent |
//! | look for a mount | id of the mount of both, in `/proc/self/fdinfo` |
//! | mount | mount(2) on `/proc/self/fd/N`, which the kernel resolves without a path |

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, fstat, mkdirat, stat};

/// Mode of directories that are made.
const MODE: Mode = Mode::from_bits_truncate(0o755);

/// A directory that is open, below what is mounted on it later.
#[derive(Debug)]
pub(super) struct MountPoint {
    path: PathBuf,
    directory: OwnedFd,
    parent: OwnedFd,
}

impl MountPoint {
    /// Opens `path`, and makes missing directories. Fails if a part of the path below `root` is a
    /// link.
    pub(super) fn open(root: &Path, path: &Path) -> Result<Self, String> {
        let below = path
            .strip_prefix(root)
            .map_err(|_| format!("{} is not below {}", path.display(), root.display()))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let failed = |path: &Path, error: Errno| {
            if [Errno::ENOTDIR, Errno::ELOOP].contains(&error) {
                return format!("{} is a link or no directory", path.display());
            }
            format!("cannot open {}: {}", path.display(), error.desc())
        };
        let mut walked = root.to_path_buf();
        let mut directory =
            open(root, flags, Mode::empty()).map_err(|error| failed(&walked, error))?;
        let mut parent = None;
        for component in below.components() {
            let Component::Normal(name) = component else {
                return Err(format!("{} is no plain path", path.display()));
            };
            walked.push(name);
            match mkdirat(&directory, name, MODE) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => {
                    return Err(format!(
                        "cannot make {}: {}",
                        walked.display(),
                        error.desc()
                    ));
                }
            }
            let opened = openat(&directory, name, flags | OFlag::O_NOFOLLOW, Mode::empty())
                .map_err(|error| failed(&walked, error))?;
            parent = Some(std::mem::replace(&mut directory, opened));
        }
        let parent = parent.ok_or_else(|| format!("{} is the root", path.display()))?;
        Ok(Self {
            path: walked,
            directory,
            parent,
        })
    }

    /// Returns true if a file system is mounted on the directory.
    pub(super) fn is_mounted(&self) -> Result<bool, String> {
        Ok(mount_id(&self.directory)? != mount_id(&self.parent)?)
    }

    /// Returns true if the directory is `other`, which was mounted on it.
    pub(super) fn is(&self, other: &Path) -> Result<bool, String> {
        let failed = |error: Errno| format!("cannot read {}: {}", other.display(), error.desc());
        let (mine, other) = (
            fstat(&self.directory).map_err(failed)?,
            stat(other).map_err(failed)?,
        );
        Ok((mine.st_dev, mine.st_ino) == (other.st_dev, other.st_ino))
    }

    /// Mounts a directory on this one.
    pub(super) fn bind(&self, source: &Path) -> Result<(), String> {
        let target = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
        let none: Option<&str> = None;
        mount(Some(source), target.as_str(), none, MsFlags::MS_BIND, none).map_err(|error| {
            let path = self.path.display();
            format!(
                "cannot mount {} at {path}: {}",
                source.display(),
                error.desc()
            )
        })
    }
}

/// Returns the id of the mount of an opened directory (proc_pid_fdinfo(5)).
fn mount_id(directory: &OwnedFd) -> Result<String, String> {
    let path = format!("/proc/self/fdinfo/{}", directory.as_raw_fd());
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.map(|id| id.trim().to_owned())
        .ok_or_else(|| format!("{path} has no mnt_id"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn refused(root: &Path, path: &str) -> String {
        MountPoint::open(root, &root.join(path)).unwrap_err()
    }

    #[test]
    fn missing_directories_are_made_and_nothing_is_mounted_on_them() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let path = root.join("build/machines/default");
        for _ in 0..2 {
            let point = MountPoint::open(root, &path).unwrap();
            assert!(!point.is_mounted().unwrap());
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn link_in_the_place_of_the_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let machines = root.join("build/machines");
        fs::create_dir_all(&machines).unwrap();
        fs::create_dir_all(root.join("etc/default")).unwrap();
        let refusal = |name: &str| {
            let path = root.join(name);
            format!("{} is a link or no directory", path.display())
        };
        for target in ["/etc", "../../etc", "missing"] {
            symlink(target, machines.join("default")).unwrap();
            let name = "build/machines/default";
            assert_eq!(refused(root, name), refusal(name), "{target}");
            fs::remove_file(machines.join("default")).unwrap();
        }
        // `build` owns the directory above, too.
        fs::remove_dir(&machines).unwrap();
        symlink(root.join("etc"), &machines).unwrap();
        assert_eq!(
            refused(root, "build/machines/default"),
            refusal("build/machines")
        );
    }

    #[test]
    fn directory_that_is_exchanged_after_it_was_opened_is_still_the_one() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let path = root.join("build/machines/default");
        let point = MountPoint::open(root, &path).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        fs::rename(&path, root.join("build/machines/away")).unwrap();
        symlink("/etc", &path).unwrap();
        let through = format!("/proc/self/fd/{}", point.directory.as_raw_fd());
        assert_eq!(fs::metadata(through).unwrap().ino(), inode);
    }

    #[test]
    fn mount_is_found_by_its_id() {
        let point = MountPoint::open(Path::new("/"), Path::new("/proc")).unwrap();
        assert!(point.is_mounted().unwrap());
    }
}
