//! Reads files within a limit, and replaces files durably.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use buildos_service::file::replace_durably;
use buildos_service::text::chain;

/// Permissions of what a web server publishes.
const READABLE: u32 = 0o644;

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    let place = path.display();
    let failed = |error| format!("cannot read {place}: {error}");
    let file = File::open(path).map_err(failed)?;
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut content = Vec::new();
    file.take(most).read_to_end(&mut content).map_err(failed)?;
    match content.len() > limit {
        true => Err(format!("{place} is larger than {limit} bytes")),
        false => Ok(content),
    }
}

/// Reads a text of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: usize) -> Result<String, String> {
    let content = read_limited(path, limit)?;
    String::from_utf8(content).map_err(|_| format!("{} is not text in UTF-8", path.display()))
}

/// Replaces a file. After a power cut it has the old or the new content.
pub(crate) fn replace(path: &Path, data: &[u8]) -> Result<(), String> {
    replace_durably(path, data, READABLE).map_err(|error| chain(&error))
}
