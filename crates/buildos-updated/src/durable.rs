//! Replaces files so that a power cut leaves the old or the new content.

use std::path::Path;

use buildos_service::file::replace_durably;
use buildos_service::text::chain;

/// Permissions: the files have no secrets.
const READABLE: u32 = 0o644;

/// Replaces a file durably.
///
/// # Errors
///
/// The directory does not exist, is not writable, or is full.
pub fn replace(path: &Path, data: &[u8]) -> Result<(), String> {
    replace_durably(path, data, READABLE).map_err(|error| chain(&error))
}
