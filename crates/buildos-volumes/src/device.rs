//! Reads block devices with a label of buildos from udev's database and sysfs.
//!
//! udev probes each device in a process of its own, so a device that does not answer delays no
//! other. No device is opened here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use buildos_types::Escaped;

use crate::LABEL_PREFIX;

/// udev's database: one file a device, `b` and the number for block devices.
const DATABASE: &str = "run/udev/data";
/// sysfs counts in sectors of 512 bytes, whatever the device does.
const SECTOR: u64 = 512;

/// A block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Name in the kernel: `nvme0n1p2`.
    pub name: String,
    /// Label of its file system, or empty.
    pub label: String,
    /// Kind of its content by libblkid: `btrfs`, `ext4`, `crypto_LUKS`; or empty.
    pub kind: String,
    /// UUID of its file system, or empty. All disks of a btrfs have the same.
    pub uuid: String,
    /// UUID of this disk among those of a btrfs, or empty.
    pub member: String,
    /// Model and serial number of the disk, as `--erase` wants them; or empty.
    pub identity: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The kernel refuses to write to it.
    pub read_only: bool,
    /// The medium can be taken out, or the disk is on USB.
    pub removable: bool,
    /// The kernel makes it of files or other devices (loop, device mapper, md).
    pub is_virtual: bool,
}

impl Device {
    /// Returns the path of its node.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        // The kernel writes "!" for the slashes of a name.
        Path::new("/dev").join(self.name.replace('!', "/"))
    }
}

/// Returns the devices with a label of buildos, and virtual devices that the kernel could take for
/// a disk of a btrfs, sorted by name. Reads below `root`.
#[must_use]
pub fn candidates(root: &Path) -> Vec<Device> {
    let mut found: Vec<Device> = fs::read_dir(root.join(DATABASE))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            read(root, name.to_str()?.strip_prefix('b')?)
        })
        .filter(|device| {
            device.label.starts_with(LABEL_PREFIX) || (device.is_virtual && device.kind == "btrfs")
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Returns the device with a number such as `254:0`, or [`None`] if the kernel has none.
#[must_use]
pub fn read(root: &Path, number: &str) -> Option<Device> {
    let directory = fs::canonicalize(root.join("sys/dev/block").join(number)).ok()?;
    let database = fs::read_to_string(root.join(DATABASE).join(format!("b{number}")));
    let properties = properties(database.as_deref().unwrap_or_default());
    let property = |name: &str| properties.get(name).copied().unwrap_or_default();
    // Partitions are below their disk, which has the attributes of the medium.
    let disk = match directory.join("partition").exists() {
        true => directory.parent()?.to_owned(),
        false => directory.clone(),
    };
    let attribute = |directory: &Path, name: &str| {
        let text = fs::read_to_string(directory.join(name)).unwrap_or_default();
        text.trim().to_owned()
    };
    let sectors: u64 = attribute(&directory, "size").parse().unwrap_or(0);
    let serial = match property("ID_SERIAL_SHORT") {
        "" => property("ID_SERIAL"),
        short => short,
    };
    let identity = match (property("ID_MODEL"), serial) {
        ("", serial) => serial.to_owned(),
        (model, "") => model.to_owned(),
        (model, serial) => format!("{model}-{serial}"),
    };
    Some(Device {
        name: directory.file_name()?.to_str()?.to_owned(),
        label: Escaped::new(property("ID_FS_LABEL")).to_string(),
        kind: Escaped::new(property("ID_FS_TYPE")).to_string(),
        uuid: Escaped::new(property("ID_FS_UUID")).to_string(),
        member: Escaped::new(property("ID_FS_UUID_SUB")).to_string(),
        identity: Escaped::new(&identity).to_string(),
        bytes: sectors.saturating_mul(SECTOR),
        read_only: attribute(&directory, "ro") == "1" || attribute(&disk, "ro") == "1",
        removable: attribute(&disk, "removable") == "1" || property("ID_BUS") == "usb",
        is_virtual: is_virtual(&root.join("sys/devices/virtual"), &directory),
    })
}

/// Returns true for a device below `virtuals`, sysfs's directory of devices without hardware.
/// NVMe disks that can have several paths are there, too: in a subsystem, with links to the
/// controllers.
fn is_virtual(virtuals: &Path, device: &Path) -> bool {
    let Ok(below) = device.strip_prefix(virtuals) else {
        return false;
    };
    let mut names = below.iter();
    let (Some(class), Some(subsystem)) = (names.next(), names.next()) else {
        return true;
    };
    if class != "nvme-subsystem" {
        return true;
    }
    let subsystem = virtuals.join(class).join(subsystem);
    let controllers: Vec<PathBuf> = fs::read_dir(subsystem)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .filter(|entry| is_controller(&entry.file_name().to_string_lossy()))
        .filter_map(|entry| fs::canonicalize(entry.path()).ok())
        .collect();
    controllers.is_empty() || controllers.iter().any(|path| path.starts_with(virtuals))
}

/// Returns true for the name of an NVMe controller: `nvme0`.
fn is_controller(name: &str) -> bool {
    let number = name.strip_prefix("nvme").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the properties in a file of the database: lines `E:KEY=VALUE`.
fn properties(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("E:")?.split_once('='))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Adds a device below `root`.
    fn add(root: &Path, number: &str, path: &str, attributes: &[(&str, &str)], database: &str) {
        let directory = root.join("sys/devices").join(path);
        fs::create_dir_all(&directory).unwrap();
        for (name, value) in attributes {
            fs::write(directory.join(name), format!("{value}\n")).unwrap();
        }
        fs::create_dir_all(root.join("sys/dev/block")).unwrap();
        symlink(&directory, root.join("sys/dev/block").join(number)).unwrap();
        fs::create_dir_all(root.join(DATABASE)).unwrap();
        fs::write(root.join(DATABASE).join(format!("b{number}")), database).unwrap();
    }

    #[test]
    fn devices_with_label_are_found_with_attributes_of_their_disk() {
        let directory = tempfile::tempdir().unwrap();
        let root = &fs::canonicalize(directory.path()).unwrap();
        let label = "I:1\nE:ID_FS_TYPE=btrfs\nE:ID_FS_LABEL=buildos.state\n\
                     E:ID_FS_UUID=u\nE:ID_FS_UUID_SUB=m\n";
        let disk = "E:ID_MODEL=SSD_1\nE:ID_SERIAL_SHORT=S42\nE:ID_FS_LABEL=buildos.state\nE:ID_FS_TYPE=ext4\n";
        let attributes = [("ro", "0"), ("removable", "0"), ("size", "2048")];
        add(root, "8:0", "pci0/block/sda", &attributes, disk);
        let stick = [("ro", "1"), ("removable", "1")];
        add(root, "8:16", "pci0/block/sdb", &stick, "");
        let part = [("partition", "1"), ("ro", "0")];
        add(root, "8:17", "pci0/block/sdb/sdb1", &part, label);
        add(root, "7:0", "virtual/block/loop0", &[], label);
        let other = "E:ID_FS_LABEL=data\nE:ID_FS_TYPE=ext4\n";
        add(root, "8:32", "pci0/block/sdc", &[], other);
        let unlabelled = "E:ID_FS_TYPE=btrfs\n";
        add(root, "7:1", "virtual/block/loop1", &[], unlabelled);
        add(root, "8:64", "pci0/block/sde", &[], unlabelled);
        // A device that has gone.
        fs::write(root.join(DATABASE).join("b8:48"), label).unwrap();
        fs::write(root.join(DATABASE).join("n1"), label).unwrap();
        let found = candidates(root);
        let names: Vec<_> = found.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["loop0", "loop1", "sda", "sdb1"]);
        assert_eq!(
            found[2],
            Device {
                name: "sda".into(),
                label: "buildos.state".into(),
                kind: "ext4".into(),
                identity: "SSD_1-S42".into(),
                bytes: 1 << 20,
                ..Device::default()
            }
        );
        assert!(found[0].is_virtual);
        let stick = &found[3];
        assert!(stick.removable && stick.read_only && !stick.is_virtual);
        assert_eq!((stick.uuid.as_str(), stick.member.as_str()), ("u", "m"));
        assert_eq!(stick.node(), Path::new("/dev/sdb1"));
    }

    #[test]
    fn nvme_disk_with_several_paths_is_virtual_without_a_real_controller() {
        let directory = tempfile::tempdir().unwrap();
        let root = &fs::canonicalize(directory.path()).unwrap();
        let subsystem = |number: u8| format!("virtual/nvme-subsystem/nvme-subsys{number}");
        for (number, controllers) in [
            (0, &["pci0/nvme/nvme0", "pci1/nvme/nvme1"][..]),
            // NVMe over fabrics, and a loop of it.
            (1, &["pci2/nvme/nvme2", "virtual/nvme-fabrics/ctl/nvme3"]),
            (2, &[]),
        ] {
            let path = format!("{}/nvme{number}n1", subsystem(number));
            add(root, &format!("259:{number}"), &path, &[], "");
            for controller in controllers {
                let target = root.join("sys/devices").join(controller);
                fs::create_dir_all(&target).unwrap();
                let name = target.file_name().unwrap();
                let above = root.join("sys/devices").join(subsystem(number));
                symlink(&target, above.join(name)).unwrap();
            }
            let device = read(root, &format!("259:{number}")).unwrap();
            assert_eq!(device.is_virtual, number > 0, "{controllers:?}");
        }
    }

    #[test]
    fn host_without_database_has_no_volumes() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(candidates(root.path()), []);
    }
}
