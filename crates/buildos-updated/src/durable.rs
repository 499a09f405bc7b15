//! Replaces files so that a power cut leaves the old or the new content.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

/// Replaces a file durably.
///
/// # Errors
///
/// The directory does not exist, is not writable, or is full.
pub fn replace(path: &Path, data: &[u8]) -> Result<(), String> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent()
            .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    write().map_err(|error| format!("cannot write {}: {error}", path.display()))
}
