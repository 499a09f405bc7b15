//! `buildosctl volume create`: makes a btrfs on a disk.
//!
//! ```text
//! device ─inspect→ Disk ─judge→ refused | to be confirmed, with what would be lost | approved ─→ mkfs
//! ```
//!
//! Nothing is written without the ID of the device, which the first call shows: `--yes ID` for a
//! device with nothing on it, `--erase ID` for one with content. No option permits a device that
//! is in use, read-only or removable: no volume is ever used there. Only `--virtual`, for tests,
//! permits a virtual device.
//!
//! The kernel decides whether a device is in use: then a second exclusive open fails.
//! mkfs.btrfs opens it exclusively again, and refuses signatures that appeared meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use buildos_channel::Name;
use buildos_service::text::size;
use buildos_volumes::choice::Purpose;
use buildos_volumes::device::{self, Device};
use buildos_volumes::program;
use nix::sys::stat::{major, minor};

use super::label::Volume;
use crate::programs::disk;

/// Least size of a volume. btrfs needs 109 MiB.
const LEAST: u64 = 128 << 20;
/// Bytes at the beginning and the end of a device that have to be zero if nothing is on it.
const EDGE: u64 = 1 << 20;

/// A request for a volume on a disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) purpose: Purpose,
    pub(crate) disk: PathBuf,
    /// Name of the machine volume.
    pub(crate) name: Option<Name>,
    /// ID of a device with nothing on it.
    pub(crate) yes: Option<String>,
    /// ID of a device whose content is destroyed.
    pub(crate) erase: Option<String>,
    pub(crate) accept_virtual: bool,
}

/// A device, as it is now.
#[derive(Debug, Default)]
struct Disk {
    device: Device,
    /// Number of the partition, if it is one.
    partition: Option<String>,
    /// Content of the device and of its partitions, a line each.
    content: Vec<String>,
    /// Mounts, swap and devices that use it, a line each.
    users: Vec<String>,
}

/// The decision about a device.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Writes nothing, for this reason.
    Refused(String),
    /// Writes nothing until this option is given.
    Unconfirmed(&'static str),
    /// Makes a btrfs, after the content is erased if there is any.
    Approved,
}

/// Returns the text, and true if the volume was made.
pub(crate) fn create(
    root: &Path,
    devices: &[Device],
    request: &Request,
) -> Result<(String, bool), String> {
    let volume = Volume::new(request.purpose, request.name.as_ref().map(Name::as_str));
    let disk = inspect(root, &request.disk)?;
    let node = disk.device.node();
    let mut text = describe(&disk);
    match judge(&disk, &volume, request, devices) {
        Verdict::Refused(reason) => Err(format!("nothing was written: {reason}\n{text}")),
        Verdict::Unconfirmed(option) => {
            text += &format!(
                "nothing was written. This makes the volume {}, and destroys what is above:\n  {}\n",
                volume.label,
                command(request, option, &id(&disk))
            );
            Ok((text, false))
        }
        Verdict::Approved => {
            let has_content = !disk.content.is_empty();
            if has_content {
                disk::wipe(&node)?;
            }
            disk::make_btrfs(&node, &volume.label)
                .map_err(|reason| not_made(&node, has_content, &reason))?;
            // udev starts the unit that mounts it.
            program::settle();
            text += &format!(
                "made the volume {} on {}; {}.service mounts it at {}\n",
                volume.label,
                node.display(),
                volume.unit(),
                volume.place()
            );
            Ok((text, true))
        }
    }
}

/// Returns the error for a volume that was not made, with the state of the device.
fn not_made(node: &Path, is_erased: bool, reason: &str) -> String {
    let node = node.display();
    match is_erased {
        true => {
            format!("the signatures of {node} were erased, and no volume was made there: {reason}")
        }
        false => format!("no volume was made on {node}: {reason}"),
    }
}

/// Returns the command that makes the volume.
fn command(request: &Request, option: &str, id: &str) -> String {
    let purpose = match request.purpose {
        Purpose::State => "state",
        Purpose::Machines => "machines",
    };
    let name = match &request.name {
        Some(name) => format!(" --name {name}"),
        None => String::new(),
    };
    let disk = request.disk.display();
    let accepted = match request.accept_virtual {
        true => " --virtual",
        false => "",
    };
    format!("buildosctl volume create {purpose}{name} --disk {disk}{accepted} {option} {id}")
}

/// Returns what an operator repeats: model and serial number with the partition, or the name of a
/// device that has neither.
fn id(disk: &Disk) -> String {
    let Device { identity, name, .. } = &disk.device;
    match (identity.as_str(), &disk.partition) {
        ("", _) => name.clone(),
        (identity, Some(partition)) => format!("{identity}-part{partition}"),
        (identity, None) => identity.to_owned(),
    }
}

/// Returns what a device is, and what is on it.
fn describe(disk: &Disk) -> String {
    let device = &disk.device;
    let (node, bytes) = (device.node(), size(device.bytes));
    let mut text = format!("{}, {bytes}, ID {}\n", node.display(), id(disk));
    for line in disk.content.iter().chain(&disk.users) {
        text += &format!("  {line}\n");
    }
    if disk.content.is_empty() && disk.users.is_empty() {
        text += "  nothing is on it\n";
    }
    text
}

fn judge(disk: &Disk, volume: &Volume, request: &Request, devices: &[Device]) -> Verdict {
    let device = &disk.device;
    let name = &device.name;
    let refused = |reason: String| Verdict::Refused(reason);
    if device.is_virtual && !request.accept_virtual {
        return refused(format!(
            "{name} is a virtual device, which is never a volume"
        ));
    }
    if device.removable {
        return refused(format!("{name} is removable, so it would not be used"));
    }
    if device.read_only {
        return refused(format!("{name} is read-only"));
    }
    if !disk.users.is_empty() {
        return refused(format!("{name} is in use"));
    }
    if device.bytes < LEAST {
        let least = size(LEAST);
        return refused(format!("{name} is too small: a volume needs {least}"));
    }
    // With two devices of one label, none is used.
    let has_label = |other: &&Device| {
        other.label == volume.label
            && other.name != *name
            && (request.accept_virtual || !other.is_virtual)
    };
    if let Some(other) = devices.iter().find(has_label) {
        let (label, other) = (&volume.label, &other.name);
        return refused(format!("{other} has the label {label} already"));
    }
    let (option, given) = match disk.content.is_empty() {
        true => ("--yes", &request.yes),
        false => ("--erase", &request.erase),
    };
    let id = id(disk);
    for given in [&request.yes, &request.erase].into_iter().flatten() {
        if *given != id {
            return refused(format!("the ID of {name} is {id}, and not {given}"));
        }
    }
    match given {
        Some(_) => Verdict::Approved,
        // `--erase` destroys nothing if nothing is there.
        None if disk.content.is_empty() && request.erase.is_some() => Verdict::Approved,
        None => Verdict::Unconfirmed(option),
    }
}

/// Examines a device without writing to it.
fn inspect(root: &Path, path: &Path) -> Result<Disk, String> {
    let shown = path.display();
    let metadata =
        fs::metadata(path).map_err(|error| format!("cannot examine {shown}: {error}"))?;
    if !metadata.file_type().is_block_device() {
        return Err(format!("{shown} is no block device"));
    }
    let number = metadata.rdev();
    let number = format!("{}:{}", major(number), minor(number));
    let device = device::read(root, &number)
        .ok_or_else(|| format!("the kernel has no device {number} of {shown}"))?;
    let node = device.node();
    // A node elsewhere can have the number of a different device than the one at its name.
    let same = fs::metadata(&node).is_ok_and(|found| found.rdev() == metadata.rdev());
    if !same {
        return Err(format!("{} is not the device of {shown}", node.display()));
    }
    let is_in_use = match open_exclusively(&node) {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => true,
        Err(error) => return Err(format!("cannot open {}: {error}", node.display())),
    };
    let directory = root.join("sys/dev/block").join(&number);
    let partition = fs::read_to_string(directory.join("partition")).ok();
    let partitions = names(&directory, |entry| entry.join("partition").exists());
    let mut content = content_of(&device.name, &node)?;
    for name in &partitions {
        content.push(format!("partition {name}"));
        let node = Path::new("/dev").join(name);
        // A partition whose node is missing is named all the same.
        content.extend(content_of(name, &node).unwrap_or_default());
    }
    let mut users = Vec::new();
    let mut holders = names(&directory.join("holders"), |_| true);
    for name in &partitions {
        holders.extend(names(&directory.join(name).join("holders"), |_| true));
    }
    users.extend(holders.iter().map(|holder| format!("in use by {holder}")));
    let mut nodes = vec![node.clone()];
    nodes.extend(partitions.iter().map(|name| Path::new("/dev").join(name)));
    users.extend(mounted(root, &nodes));
    if is_in_use && users.is_empty() {
        users.push("in use, as the kernel says".to_owned());
    }
    Ok(Disk {
        device,
        partition: partition.map(|number| number.trim().to_owned()),
        content,
        users,
    })
}

/// Returns the sorted names of entries of a directory of sysfs.
fn names(directory: &Path, is_wanted: impl Fn(&Path) -> bool) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| is_wanted(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Returns where devices are mounted or used as swap.
fn mounted(root: &Path, nodes: &[PathBuf]) -> Vec<String> {
    let is_one = |source: &str| nodes.iter().any(|node| node.to_str() == Some(source));
    let mounts = buildos_volumes::mounts::read(root);
    let mut users: Vec<String> = mounts
        .iter()
        .filter(|mount| is_one(&mount.source))
        .map(|mount| format!("{} is mounted at {}", mount.source, mount.target))
        .collect();
    let swaps = fs::read_to_string(root.join("proc/swaps")).unwrap_or_default();
    let sources = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next());
    users.extend(
        sources
            .filter(|source| is_one(source))
            .map(|source| format!("{source} is swap")),
    );
    users
}

/// Opens a device as file systems do: it fails with EBUSY if it or a part of it is in use.
fn open_exclusively(node: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(node)
}

/// Returns the signatures on a device, or that there is data without one.
fn content_of(name: &str, node: &Path) -> Result<Vec<String>, String> {
    let signatures = disk::signatures(node)?;
    if signatures.is_empty() {
        let blank =
            is_blank(node).map_err(|error| format!("cannot read {}: {error}", node.display()))?;
        return Ok(match blank {
            true => Vec::new(),
            false => vec![format!("{name}: data of an unknown kind")],
        });
    }
    let lines = signatures.into_iter();
    Ok(lines
        .map(|signature| format!("{name}: {signature}"))
        .collect())
}

/// Returns true if the beginning and the end of a device are zero.
fn is_blank(node: &Path) -> io::Result<bool> {
    let mut file = File::open(node)?;
    let end = file.seek(SeekFrom::End(0))?;
    for start in [0, end.saturating_sub(EDGE)] {
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        (&mut file).take(EDGE).read_to_end(&mut bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn disk() -> Disk {
        Disk {
            device: Device {
                name: "sda".into(),
                identity: "SSD_1-S42".into(),
                bytes: 1 << 30,
                ..Device::default()
            },
            ..Disk::default()
        }
    }

    fn with_content() -> Disk {
        Disk {
            content: vec!["sda: ext4 \"data\"".into()],
            ..disk()
        }
    }

    fn request() -> Request {
        Request {
            purpose: Purpose::State,
            disk: "/dev/disk/by-id/ata-SSD".into(),
            name: None,
            yes: None,
            erase: None,
            accept_virtual: false,
        }
    }

    fn verdict(disk: &Disk, request: &Request, devices: &[Device]) -> Verdict {
        judge(disk, &Volume::new(request.purpose, None), request, devices)
    }

    fn refused(reason: &str) -> Verdict {
        Verdict::Refused(reason.to_owned())
    }

    #[test]
    fn device_is_written_only_with_its_id_and_the_option_for_its_content() {
        let id = || Some("SSD_1-S42".to_owned());
        let wrong = || Some("SSD_1-S43".to_owned());
        let not_its_id = refused("the ID of sda is SSD_1-S42, and not SSD_1-S43");
        for (yes, erase, empty, full) in [
            (
                None,
                None,
                Verdict::Unconfirmed("--yes"),
                Verdict::Unconfirmed("--erase"),
            ),
            (
                id(),
                None,
                Verdict::Approved,
                Verdict::Unconfirmed("--erase"),
            ),
            (None, id(), Verdict::Approved, Verdict::Approved),
            (
                wrong(),
                None,
                refused("the ID of sda is SSD_1-S42, and not SSD_1-S43"),
                refused("the ID of sda is SSD_1-S42, and not SSD_1-S43"),
            ),
            (
                None,
                wrong(),
                refused("the ID of sda is SSD_1-S42, and not SSD_1-S43"),
                not_its_id,
            ),
        ] {
            let request = Request {
                yes,
                erase,
                ..request()
            };
            assert_eq!(verdict(&disk(), &request, &[]), empty, "{request:?}");
            assert_eq!(verdict(&with_content(), &request, &[]), full, "{request:?}");
        }
    }

    #[test]
    fn no_option_permits_a_device_that_is_never_a_volume() {
        let confirmed = Request {
            erase: Some("SSD_1-S42".into()),
            ..request()
        };
        let device = |change: fn(&mut Device)| {
            let mut disk = disk();
            change(&mut disk.device);
            disk
        };
        for (disk, reason) in [
            (
                device(|device| device.is_virtual = true),
                "sda is a virtual device, which is never a volume",
            ),
            (
                device(|device| device.removable = true),
                "sda is removable, so it would not be used",
            ),
            (device(|device| device.read_only = true), "sda is read-only"),
            (
                device(|device| device.bytes = 64 << 20),
                "sda is too small: a volume needs 128 MiB",
            ),
            (
                Disk {
                    users: vec!["/dev/sda is swap".into()],
                    ..disk()
                },
                "sda is in use",
            ),
        ] {
            assert_eq!(verdict(&disk, &confirmed, &[]), refused(reason));
        }
        let labelled = |name: &str, is_virtual| Device {
            name: name.into(),
            label: "buildos.state".into(),
            is_virtual,
            ..Device::default()
        };
        let other = [labelled("sdb", false)];
        assert_eq!(
            verdict(&disk(), &confirmed, &other),
            refused("sdb has the label buildos.state already")
        );
        // The volume that is replaced, and a device that does not count.
        let others = [labelled("sda", false), labelled("loop0", true)];
        assert_eq!(verdict(&disk(), &confirmed, &others), Verdict::Approved);
    }

    #[test]
    fn device_and_content_are_named_with_the_command() {
        assert_eq!(
            describe(&with_content()),
            "/dev/sda, 1.00 GiB, ID SSD_1-S42\n  sda: ext4 \"data\"\n"
        );
        let partition = Disk {
            partition: Some("2".into()),
            ..disk()
        };
        assert_eq!(
            describe(&partition),
            "/dev/sda, 1.00 GiB, ID SSD_1-S42-part2\n  nothing is on it\n"
        );
        let request = Request {
            purpose: Purpose::Machines,
            name: "fast".parse().ok(),
            ..request()
        };
        assert_eq!(
            command(&request, "--erase", "SSD_1-S42"),
            "buildosctl volume create machines --name fast --disk /dev/disk/by-id/ata-SSD \
             --erase SSD_1-S42"
        );
        let request = Request {
            accept_virtual: true,
            ..request
        };
        assert_eq!(
            command(&request, "--yes", "loop0"),
            "buildosctl volume create machines --name fast --disk /dev/disk/by-id/ata-SSD \
             --virtual --yes loop0"
        );
        let mut nameless = disk();
        nameless.device.identity.clear();
        assert_eq!(id(&nameless), "sda");
    }

    #[test]
    fn failed_mkfs_is_reported_with_the_state_of_the_device() {
        let node = Path::new("/dev/sda");
        assert_eq!(
            not_made(node, true, "mkfs.btrfs failed"),
            "the signatures of /dev/sda were erased, and no volume was made there: \
             mkfs.btrfs failed"
        );
        assert_eq!(
            not_made(node, false, "mkfs.btrfs failed"),
            "no volume was made on /dev/sda: mkfs.btrfs failed"
        );
    }

    #[test]
    fn data_without_a_signature_is_noticed_at_both_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        assert!(is_blank(file.path()).unwrap());
        for place in [0, (8 << 20) - 1] {
            let mut other = tempfile::NamedTempFile::new().unwrap();
            other.as_file().set_len(8 << 20).unwrap();
            other.seek(SeekFrom::Start(place)).unwrap();
            other.write_all(b"x").unwrap();
            assert!(!is_blank(other.path()).unwrap());
        }
    }

    #[test]
    fn file_that_is_no_block_device_is_refused() {
        let root = Path::new("/");
        let error = inspect(root, Path::new("/dev/null")).unwrap_err();
        assert_eq!(error, "/dev/null is no block device");
    }
}
