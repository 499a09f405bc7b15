//! Snapshots and streams of btrfs subvolumes, with btrfs(8) and zstd(1), and checks of volumes.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use buildos_service::text;
use buildos_updated::programs::capture;

/// Bytes of output that are kept.
const OUTPUT: usize = 64 * 1024;

fn btrfs(arguments: &[&str], paths: &[&Path]) -> Result<Vec<u8>, String> {
    let mut command = Command::new("btrfs");
    command.args(arguments).args(paths);
    capture::output(&mut command, "btrfs-progs", OUTPUT).map_err(|error| text::chain(&error))
}

/// Fails unless a directory is a subvolume.
pub(crate) fn need_subvolume(directory: &Path) -> Result<(), String> {
    btrfs(&["subvolume", "show"], &[directory])
        .map(|_| ())
        .map_err(|error| {
            format!(
                "{} is not a btrfs subvolume that this user can read: {error}",
                directory.display()
            )
        })
}

/// Makes a read-only snapshot.
pub(crate) fn snapshot(directory: &Path, to: &Path) -> Result<(), String> {
    btrfs(&["subvolume", "snapshot", "-r"], &[directory, to]).map(|_| ())
}

/// Deletes a snapshot.
pub(crate) fn delete(snapshot: &Path) -> Result<(), String> {
    btrfs(&["subvolume", "delete"], &[snapshot]).map(|_| ())
}

/// Reads the trees of a btrfs that is not mounted. Writes nothing.
pub(crate) fn check(node: &Path) -> Result<(), String> {
    btrfs(&["check", "--readonly", "--"], &[node]).map(|_| ())
}

/// Reads all data of a mounted btrfs, and compares checksums. Repairs nothing.
pub(crate) fn scrub(mounted: &Path) -> Result<(), String> {
    let output = btrfs(&["scrub", "start", "-B", "-r"], &[mounted])?;
    let text = String::from_utf8_lossy(&output);
    let summary = text.lines().find(|line| line.starts_with("Error summary:"));
    match summary {
        Some(line) if line.contains("no errors found") => Ok(()),
        Some(line) => Err(line.to_owned()),
        None => Err("btrfs scrub wrote no summary".to_owned()),
    }
}

/// Passes the compressed stream of a snapshot to `take`, from `base` if it is given.
pub(crate) fn send(
    snapshot: &Path,
    base: Option<&Path>,
    mut take: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut sender = Command::new("btrfs");
    // Extents that the file system has compressed are sent as they are.
    sender.args(["send", "--quiet", "--compressed-data"]);
    if let Some(base) = base {
        sender.arg("-p").arg(base);
    }
    sender.arg(snapshot);
    sender
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut sending = start(&mut sender, "btrfs-progs")?;
    let sender_message = capture::messages(&mut sending);
    let mut compressor = Command::new("zstd");
    compressor.args(["--quiet", "--stdout", "-T0"]);
    compressor.stdin(sending.stdout.take().map_or_else(Stdio::null, Stdio::from));
    compressor.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut compressing = match start(&mut compressor, "zstd") {
        Ok(child) => child,
        Err(error) => {
            end(&mut sending);
            return Err(error);
        }
    };
    let compressor_message = capture::messages(&mut compressing);
    let taken = pass_on(&mut compressing, &mut take);
    if taken.is_err() {
        end(&mut sending);
        end(&mut compressing);
    }
    let sent = capture::finish(&sender, sending, sender_message);
    let compressed = capture::finish(&compressor, compressing, compressor_message);
    // The first cause: the others follow from it.
    taken?;
    sent.and(compressed).map_err(|error| text::chain(&error))
}

fn start(command: &mut Command, package: &'static str) -> Result<Child, String> {
    capture::start(command, package).map_err(|error| text::chain(&error))
}

/// Ends a program whose output is of no use any more.
fn end(child: &mut Child) {
    // It can have ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn pass_on(
    child: &mut Child,
    take: &mut impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let Some(mut stdout) = child.stdout.take() else {
        return Ok(());
    };
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = stdout
            .read(&mut buffer)
            .map_err(|error| format!("cannot read from zstd: {error}"))?;
        match buffer.get(..count) {
            Some([]) | None => return Ok(()),
            Some(data) => take(data)?,
        }
    }
}
