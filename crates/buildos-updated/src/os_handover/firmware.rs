//! Remembers in the firmware which system a host starts on trial.
//!
//! A system that panics or hangs records nothing, and without a state volume the system of before
//! would take it again. The variable names the pair from the handover until the pair has proven
//! itself, and the pair of before. A host that runs the pair of before while the variable is there
//! did not get through the trial.
//!
//! Only machines with UEFI have variables. The file system of the kernel
//! (Documentation/filesystems/efivarfs.rst) gives each one a file: four bytes of attributes, then
//! the value; one write replaces both; files are immutable, as the removal of some variables makes
//! firmware unusable.

#![allow(unsafe_code)] // ioctl_iflags(2) has no safe wrapper.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use buildos_service::file::read_bounded;
use libc::{FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, c_long};
use nix::errno::Errno;

use crate::os::pair::Pair;

/// Name of the variable, with the identifier of its vendor, which is buildos.
pub const VARIABLE: &str = "BuildosTrial-5c0f6e2b-3d0c-4b8e-9a57-7f0f2b6f8d41";

/// Why a system that the firmware remembers is bad.
pub const LOST: &str = "its trial did not end: it crashed, hung or lost its power";

/// Attributes of the variable: kept without power, and present before and after the start of a
/// kernel (UEFI 2.10, section 8.2).
const ATTRIBUTES: u32 = 0x1 | 0x2 | 0x4;
/// Bytes of the attributes.
const HEADER: usize = 4;
/// Bytes of the file.
const LIMIT: usize = 1024;
/// `FS_IMMUTABLE_FL` of ioctl_iflags(2).
const IMMUTABLE: c_long = 0x10;

/// A trial that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// The pair on trial.
    pub new: Pair,
    /// The pair of before.
    pub previous: Pair,
}

/// Writes which pair starts on trial. Does nothing without UEFI.
///
/// # Errors
///
/// The firmware refuses it, or has no room.
pub fn remember(variables: &Path, begun: Begun) -> io::Result<()> {
    if !variables.is_dir() || read(variables) == Some(begun) {
        return Ok(());
    }
    let path = variables.join(VARIABLE);
    make_mutable(&path)?;
    let mut content = ATTRIBUTES.to_le_bytes().to_vec();
    content.extend(format!("{} {}", text(begun.new), text(begun.previous)).bytes());
    let mut options = OpenOptions::new();
    let mut file = options.create(true).write(true).open(path)?;
    file.write_all(&content)
}

/// Returns the trial that began last, unless its pair has proven itself.
#[must_use]
pub fn read(variables: &Path) -> Option<Begun> {
    let content = read_bounded(&variables.join(VARIABLE), LIMIT).ok()?;
    let value = std::str::from_utf8(content.get(HEADER..)?).ok()?;
    let (new, previous) = value.split_once(' ')?;
    Some(Begun {
        new: new.parse().ok()?,
        previous: previous.parse().ok()?,
    })
}

fn text(pair: Pair) -> String {
    format!("{}:{}", pair.image, pair.initrd)
}

/// Removes the variable.
///
/// # Errors
///
/// The firmware refuses it.
pub fn forget(variables: &Path) -> io::Result<()> {
    let path = variables.join(VARIABLE);
    make_mutable(&path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Lets a file be changed, if it exists.
fn make_mutable(path: &Path) -> io::Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let mut flags: c_long = 0;
    // SAFETY: the descriptor is open, and the kernel writes at most one long.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &raw mut flags) })?;
    if flags & IMMUTABLE != 0 {
        let flags = flags & !IMMUTABLE;
        // SAFETY: the descriptor is open, and the kernel reads at most one long.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_SETFLAGS, &raw const flags) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::Digest;

    fn begun(new: &[u8]) -> Begun {
        let pair = |seed: &[u8]| Pair {
            image: Digest::of(seed),
            initrd: Digest::of(&[seed, b"i"].concat()),
        };
        Begun {
            new: pair(new),
            previous: pair(b"previous"),
        }
    }

    #[test]
    fn host_without_uefi_remembers_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let variables = directory.path().join("efivars");
        remember(&variables, begun(b"a")).unwrap();
        assert_eq!(read(&variables), None);
        forget(&variables).unwrap();
        assert!(!variables.exists());
    }

    #[test]
    fn last_pair_is_remembered_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let variables = directory.path();
        remember(variables, begun(b"a")).unwrap();
        assert_eq!(read(variables), Some(begun(b"a")));
        remember(variables, begun(b"b")).unwrap();
        assert_eq!(read(variables), Some(begun(b"b")));
        let content = fs::read(variables.join(VARIABLE)).unwrap();
        assert_eq!(
            (&content[..HEADER], content.len()),
            (&[7, 0, 0, 0][..], 263)
        );
        forget(variables).unwrap();
        assert_eq!(read(variables), None);
        forget(variables).unwrap();
    }

    #[test]
    fn variable_of_others_names_no_pair() {
        let directory = tempfile::tempdir().unwrap();
        for content in [
            &b""[..],
            b"abc",
            b"\x07\0\0\0",
            b"\x07\0\0\0\xff",
            &[b'0'; 2000],
        ] {
            fs::write(directory.path().join(VARIABLE), content).unwrap();
            assert_eq!(read(directory.path()), None);
        }
    }
}
