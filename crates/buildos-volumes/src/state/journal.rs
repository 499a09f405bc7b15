//! Keeps the ends of the journals of the last boots.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use buildos_service::file;

use super::fault::Fault;

/// Lines of the journal that are kept of a boot.
const LINES: &str = "--lines=4000";
/// Limit of the file of a boot, bytes.
const LIMIT: usize = 1 << 20;
/// Boots that are kept.
const BOOTS: usize = 8;

/// Saves the end of the journal of this boot, and removes the oldest files.
///
/// # Errors
///
/// The volume is not writable.
pub fn save(directory: &Path, boot_id: &str) -> Result<(), Fault> {
    let Ok(text) = read() else { return Ok(()) };
    write(directory, boot_id, &text)
}

/// Returns the end of the journal of this boot.
fn read() -> io::Result<Vec<u8>> {
    let output = Command::new("journalctl")
        .args(["--boot", "--quiet", "--no-pager", LINES])
        .arg("--output=short-iso-precise")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    Ok(output.stdout)
}

fn write(directory: &Path, boot_id: &str, text: &[u8]) -> Result<(), Fault> {
    let path = directory.join(format!("{boot_id}.log"));
    let text = end(text);
    if file::read_bounded(&path, LIMIT).is_ok_and(|old| old == text) {
        return Ok(());
    }
    file::replace_durably(&path, text, 0o600).map_err(|error| Fault::of_write(&error))?;
    for old in surplus(directory) {
        let what = format!("cannot remove {}", old.display());
        fs::remove_file(&old).map_err(|error| Fault::of(&what, &error))?;
    }
    Ok(())
}

/// Returns the last whole lines within the limit.
fn end(text: &[u8]) -> &[u8] {
    let start = text.len().saturating_sub(LIMIT);
    let tail = text.get(start..).unwrap_or_default();
    if start == 0 {
        return tail;
    }
    let line = tail.iter().position(|byte| *byte == b'\n');
    tail.get(line.map_or(0, |line| line + 1)..)
        .unwrap_or_default()
}

/// Returns the oldest files above the limit.
fn surplus(directory: &Path) -> Vec<PathBuf> {
    let mut logs: Vec<(SystemTime, PathBuf)> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            let modified = entry.metadata().ok()?.modified().ok()?;
            is_log.then_some((modified, path))
        })
        .collect();
    logs.sort();
    let surplus = logs.len().saturating_sub(BOOTS);
    logs.into_iter()
        .take(surplus)
        .map(|(_, path)| path)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn last_whole_lines_are_kept() {
        assert_eq!(end(b"one\ntwo\n"), b"one\ntwo\n");
        let long = "0123456789abcde\n".repeat(LIMIT / 16 + 10);
        let tail = end(long.as_bytes());
        assert!(tail.len() <= LIMIT && tail.len() > LIMIT - 32);
        assert!(tail.starts_with(b"0123"));
    }

    #[test]
    fn oldest_journals_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..20_u64 {
            let name = format!("boot{number:02}");
            write(directory.path(), &name, b"line\n").unwrap();
            let file = fs::File::open(directory.path().join(format!("{name}.log"))).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
            file.set_modified(time).unwrap();
        }
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left.len(), BOOTS);
        assert_eq!(left.last().unwrap(), "boot19.log");
        // The file of this boot is the newest when it is written.
        assert!(left.contains(&"boot13.log".to_owned()), "{left:?}");
    }
}
