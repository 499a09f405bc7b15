//! Reads files within a limit, and replaces files durably.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

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
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|error| format!("cannot write {}: {error}", path.display()))
}
