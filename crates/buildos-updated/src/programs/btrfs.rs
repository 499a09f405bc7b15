//! Receives, copies and deletes btrfs subvolumes, with btrfs(8) and zstd(1).

use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use buildos_service::text;

use super::capture;

/// Bytes of output that are kept.
const OUTPUT: usize = 64 * 1024;
/// Inode of the top directory of a subvolume (BTRFS_FIRST_FREE_OBJECTID).
const TOP: u64 = 256;

/// What btrfs(8) shows of a subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Subvolume {
    /// Id in its file system.
    pub id: u64,
    /// UUID of the subvolume at the sender; [`None`] if it was not received.
    pub received: Option<String>,
    pub read_only: bool,
}

fn btrfs(arguments: &[&str], paths: &[&Path]) -> Result<Vec<u8>, String> {
    let mut command = Command::new("btrfs");
    command.args(arguments).args(paths);
    capture::output(&mut command, "btrfs-progs", OUTPUT).map_err(|error| text::chain(&error))
}

/// Returns true if a path is a subvolume, and not a link to one.
#[must_use]
pub fn is_subvolume(path: &Path) -> bool {
    let metadata = path.symlink_metadata();
    metadata.is_ok_and(|metadata| metadata.is_dir() && metadata.ino() == TOP)
}

/// Shows a subvolume.
///
/// # Errors
///
/// The path is not a subvolume.
pub fn show(path: &Path) -> Result<Subvolume, String> {
    let output = btrfs(&["subvolume", "show"], &[path])?;
    parse(&String::from_utf8_lossy(&output))
        .ok_or_else(|| format!("btrfs shows no id of {}", path.display()))
}

fn parse(output: &str) -> Option<Subvolume> {
    let value = |key: &str| {
        let mut lines = output.lines().map(str::trim);
        let line = lines.find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_start_matches(':').trim().to_owned())
    };
    Some(Subvolume {
        id: value("Subvolume ID")?.parse().ok()?,
        received: value("Received UUID").filter(|uuid| uuid != "-" && !uuid.is_empty()),
        read_only: value("Flags").is_some_and(|flags| flags.contains("readonly")),
    })
}

/// Makes a read-only snapshot, which is there at once and whole.
///
/// # Errors
///
/// The file system is full, or `to` exists.
pub fn snapshot(subvolume: &Path, to: &Path) -> Result<(), String> {
    btrfs(
        &["--quiet", "subvolume", "snapshot", "-r"],
        &[subvolume, to],
    )
    .map(|_| ())
}

/// Deletes a subvolume. It does not come back after a power cut.
///
/// # Errors
///
/// The path is not a subvolume.
pub fn delete(subvolume: &Path) -> Result<(), String> {
    btrfs(
        &["--quiet", "subvolume", "delete", "--commit-after"],
        &[subvolume],
    )
    .map(|_| ())
}

/// Deletes a subvolume of the file system that is mounted at `top`. It does not come back after
/// a power cut.
///
/// # Errors
///
/// There is no subvolume with the id.
pub fn delete_by_id(top: &Path, id: u64) -> Result<(), String> {
    let id = id.to_string();
    let arguments = [
        "--quiet",
        "subvolume",
        "delete",
        "--commit-after",
        "--subvolid",
        &id,
    ];
    btrfs(&arguments, &[top]).map(|_| ())
}

/// Receives the compressed stream that `write` passes on as a subvolume in `directory`.
///
/// # Errors
///
/// The error of `write`, or of a program. `directory` can have half of a subvolume then,
/// which is not read-only.
pub fn receive(
    directory: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), String>,
) -> Result<(), String> {
    let mut decompressor = Command::new("zstd");
    decompressor.args(["--decompress", "--quiet", "--stdout"]);
    decompressor
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut decompressing = start(&mut decompressor, "zstd")?;
    let decompressor_message = capture::messages(&mut decompressing);
    let mut receiver = Command::new("btrfs");
    receiver.args(["--quiet", "receive", "-e"]).arg(directory);
    let input = decompressing.stdout.take();
    receiver.stdin(input.map_or_else(Stdio::null, Stdio::from));
    receiver.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut receiving = match start(&mut receiver, "btrfs-progs") {
        Ok(child) => child,
        Err(error) => {
            end(&mut decompressing);
            return Err(error);
        }
    };
    let receiver_message = capture::messages(&mut receiving);
    let written = match decompressing.stdin.take() {
        Some(mut stdin) => write(&mut stdin),
        None => Ok(()),
    };
    if written.is_err() {
        end(&mut decompressing);
        end(&mut receiving);
    }
    let decompressed = capture::finish(&decompressor, decompressing, decompressor_message);
    let received = capture::finish(&receiver, receiving, receiver_message);
    // The receiver's reason comes first: the others follow from it, as its end breaks the
    // pipe. If it was killed, the reason is that of the writer.
    match written {
        Err(error) if !is_broken_pipe(&error) => Err(error),
        _ => {
            received.map_err(|error| text::chain(&error))?;
            decompressed.map_err(|error| text::chain(&error))?;
            written
        }
    }
}

fn is_broken_pipe(error: &str) -> bool {
    error == BROKEN_PIPE
}

/// The error of a writer whose reader has ended.
pub const BROKEN_PIPE: &str = "the receiver has ended";

fn start(command: &mut Command, package: &'static str) -> Result<Child, String> {
    capture::start(command, package).map_err(|error| text::chain(&error))
}

/// Ends a program whose output is of no use any more.
fn end(child: &mut Child) {
    // It can have ended already.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_show_is_parsed() {
        let output = "machines/m/m-1\n\tName: \t\t\tm-1\n\tUUID: \t\t\ta-b\n\
            \tSubvolume ID: \t\t257\n\tReceived UUID: \t\tc-d\n\tFlags: \t\t\treadonly\n";
        assert_eq!(
            parse(output),
            Some(Subvolume {
                id: 257,
                received: Some("c-d".to_owned()),
                read_only: true
            })
        );
        let plain = parse("x\n\tSubvolume ID: \t5\n\tReceived UUID: \t\t-\n\tFlags: \t\t\t-\n");
        assert_eq!(
            plain,
            Some(Subvolume {
                id: 5,
                received: None,
                read_only: false
            })
        );
    }

    #[test]
    fn directory_and_link_are_no_subvolumes() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("d")).unwrap();
        assert!(!is_subvolume(&directory.path().join("d")));
        assert!(!is_subvolume(&directory.path().join("none")));
    }
}
