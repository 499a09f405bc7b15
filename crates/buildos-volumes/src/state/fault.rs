//! Derives the state of the volume from errors of the file system.

use std::io::{self, ErrorKind};

use buildos_service::file::WriteError;
use buildos_service::text;

use crate::report::VolumeState;

/// A failure of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// State of the volume.
    pub state: VolumeState,
    /// Reason in one line.
    pub reason: String,
}

impl Fault {
    /// Returns the fault for a file that could not be written.
    #[must_use]
    pub fn of_write(error: &WriteError) -> Self {
        Self::new(error.kind(), text::chain(error))
    }

    /// Returns the fault for an operation on a path.
    #[must_use]
    pub fn of(what: &str, error: &io::Error) -> Self {
        Self::new(error.kind(), format!("{what}: {error}"))
    }

    fn new(kind: ErrorKind, reason: String) -> Self {
        let is_full = matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        let state = match kind == ErrorKind::ReadOnlyFilesystem {
            true => VolumeState::ReadOnly,
            false if is_full => VolumeState::Full,
            false => VolumeState::Failing,
        };
        Self { state, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_file_systems_have_states() {
        for (errno, state) in [
            (libc::ENOSPC, VolumeState::Full),
            (libc::EDQUOT, VolumeState::Full),
            (libc::EROFS, VolumeState::ReadOnly),
            (libc::EIO, VolumeState::Failing),
            (libc::ESTALE, VolumeState::Failing),
        ] {
            let fault = Fault::of("cannot read x", &io::Error::from_raw_os_error(errno));
            assert_eq!(fault.state, state, "{errno}");
            assert!(fault.reason.starts_with("cannot read x: "));
        }
    }
}
