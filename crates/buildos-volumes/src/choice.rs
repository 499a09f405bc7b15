//! Chooses a volume among the devices with its label. The state volume and machine volumes have
//! this one rule.
//!
//! | devices with the label | choice |
//! |---|---|
//! | none | absent |
//! | one, of a known kind, writable and fixed | this one |
//! | one that is removable, read-only or of a different kind | none |
//! | all disks of one btrfs | as one device |
//! | several file systems, or copies of one | none |
//!
//! Loop devices, device mapper and md do not count, unless they have the UUID of the chosen btrfs.
//! A build can make them, and must neither provide a volume of the host nor take it away.
//!
//! The kernel mounts a btrfs by its UUID, with every device that has this UUID. A virtual device
//! with this UUID therefore means that no device is used.

use std::collections::BTreeSet;
use std::fmt;

use crate::device::Device;

/// A kind of volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The state of the host.
    State,
    /// Machines of agents.
    Machines,
}

impl Purpose {
    /// Returns the kinds of file systems that are mounted.
    #[must_use]
    pub const fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::State => &["btrfs", "ext4"],
            Self::Machines => &["btrfs"],
        }
    }
}

/// The choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// No device has the label.
    Absent,
    /// This device.
    Device(Device),
    /// No device is used, although some have the label.
    Refused(Refusal),
}

/// Reason to use no device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Several devices have the label; their names.
    Several(Vec<String>),
    /// A stick or a card.
    Removable(String),
    /// The kernel refuses to write.
    ReadOnly(String),
    /// The name of a device, the kind of its file system, and the kinds that are mounted.
    Kind(String, String, &'static [&'static str]),
    /// The name of a virtual device, and of the device that has the same UUID.
    Virtual(String, String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Several(names) => write!(f, "{} have the same label", names.join(" and ")),
            Self::Removable(name) => write!(f, "{name} is removable"),
            Self::ReadOnly(name) => write!(f, "{name} is read-only"),
            Self::Kind(name, kind, kinds) => {
                write!(f, "{name} is {kind}, and not {}", kinds.join(" or "))
            }
            Self::Virtual(name, other) => {
                write!(f, "the virtual device {name} has the UUID of {other}")
            }
        }
    }
}

/// Chooses among the devices with `label`. `accept_virtual` makes virtual devices count, for
/// tests.
#[must_use]
pub fn choose(devices: &[Device], label: &str, purpose: Purpose, accept_virtual: bool) -> Choice {
    let counts = |device: &Device| accept_virtual || !device.is_virtual;
    let found: Vec<&Device> = devices
        .iter()
        .filter(|device| device.label == label && counts(device))
        .collect();
    let Some(first) = found.first() else {
        return Choice::Absent;
    };
    if !is_one_file_system(&found) {
        let names = found.iter().map(|device| device.name.clone());
        return Choice::Refused(Refusal::Several(names.collect()));
    }
    if let Some(refusal) = found.iter().find_map(|device| refuse(device, purpose)) {
        return Choice::Refused(refusal);
    }
    let is_btrfs = first.kind == "btrfs" && !first.uuid.is_empty();
    let is_member =
        |device: &&Device| !counts(device) && device.kind == "btrfs" && device.uuid == first.uuid;
    match devices.iter().find(is_member) {
        Some(member) if is_btrfs => {
            Choice::Refused(Refusal::Virtual(member.name.clone(), first.name.clone()))
        }
        Some(_) | None => Choice::Device((*first).clone()),
    }
}

/// Returns true for a single device, and for the disks of one btrfs. A copy of a disk has the
/// identity of the disk, too.
fn is_one_file_system(devices: &[&Device]) -> bool {
    let [first, others @ ..] = devices else {
        return false;
    };
    let members: BTreeSet<&str> = devices
        .iter()
        .map(|device| device.member.as_str())
        .filter(|member| !member.is_empty())
        .collect();
    let is_of_first = |device: &&Device| device.kind == "btrfs" && device.uuid == first.uuid;
    others.is_empty()
        || (!first.uuid.is_empty()
            && devices.iter().all(is_of_first)
            && members.len() == devices.len())
}

/// Returns the reason for which a device is not used.
fn refuse(device: &Device, purpose: Purpose) -> Option<Refusal> {
    let name = device.name.clone();
    if device.removable {
        Some(Refusal::Removable(name))
    } else if device.read_only {
        Some(Refusal::ReadOnly(name))
    } else if !purpose.kinds().contains(&device.kind.as_str()) {
        let kind = device.kind.clone();
        Some(Refusal::Kind(name, kind, purpose.kinds()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::STATE_LABEL;

    fn device(name: &str) -> Device {
        Device {
            name: name.into(),
            label: STATE_LABEL.into(),
            kind: "btrfs".into(),
            ..Device::default()
        }
    }

    fn choice(devices: &[Device]) -> String {
        match choose(devices, STATE_LABEL, Purpose::State, false) {
            Choice::Absent => "absent".into(),
            Choice::Device(device) => device.name,
            Choice::Refused(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn one_fixed_writable_device_of_a_known_kind_is_chosen() {
        assert_eq!(choice(&[]), "absent");
        assert_eq!(choice(&[device("sda1")]), "sda1");
        let ext4 = Device {
            kind: "ext4".into(),
            ..device("sda2")
        };
        let machines = Device {
            label: "buildos.machines".into(),
            ..device("sda3")
        };
        assert_eq!(choice(&[ext4, machines]), "sda2");
    }

    #[test]
    fn other_devices_are_refused() {
        let removable = Device {
            removable: true,
            ..device("sdb")
        };
        assert_eq!(choice(std::slice::from_ref(&removable)), "sdb is removable");
        let read_only = Device {
            read_only: true,
            ..device("sdb")
        };
        assert_eq!(choice(&[read_only]), "sdb is read-only");
        for kind in ["ntfs", "LVM2_member", "crypto_LUKS", "linux_raid_member"] {
            let other = Device {
                kind: kind.into(),
                ..device("sdb")
            };
            let expected = format!("sdb is {kind}, and not btrfs or ext4");
            assert_eq!(choice(&[other]), expected);
        }
        // A stick must not take the place of a disk, and the disk may be the copy.
        assert_eq!(
            choice(&[device("sda"), removable]),
            "sda and sdb have the same label"
        );
    }

    #[test]
    fn virtual_devices_do_not_count() {
        let loop0 = Device {
            is_virtual: true,
            ..device("loop0")
        };
        assert_eq!(choice(std::slice::from_ref(&loop0)), "absent");
        assert_eq!(choice(&[loop0.clone(), device("sda")]), "sda");
        let chosen = choose(
            std::slice::from_ref(&loop0),
            STATE_LABEL,
            Purpose::State,
            true,
        );
        assert_eq!(chosen, Choice::Device(loop0));
    }

    #[test]
    fn disks_of_one_btrfs_are_chosen_as_one() {
        let disk = |name: &str, uuid: &str, member: &str| Device {
            uuid: uuid.into(),
            member: member.into(),
            ..device(name)
        };
        let first = disk("sda", "1", "a");
        assert_eq!(choice(&[first.clone(), disk("sdb", "1", "b")]), "sda");
        let several = "sda and sdb have the same label";
        assert_eq!(choice(&[first.clone(), disk("sdb", "2", "b")]), several);
        // A copy of the disk, made with dd(1).
        assert_eq!(choice(&[first.clone(), disk("sdb", "1", "a")]), several);
        assert_eq!(choice(&[first.clone(), disk("sdb", "1", "")]), several);
        let ext4 = Device {
            kind: "ext4".into(),
            ..disk("sdb", "1", "b")
        };
        assert_eq!(choice(&[first.clone(), ext4]), several);
        let stick = Device {
            removable: true,
            ..disk("sdb", "1", "b")
        };
        assert_eq!(choice(&[first, stick]), "sdb is removable");
    }

    #[test]
    fn virtual_device_with_the_uuid_of_a_btrfs_refuses_it() {
        let disk = Device {
            uuid: "1".into(),
            member: "a".into(),
            ..device("sda")
        };
        let member = Device {
            is_virtual: true,
            label: String::new(),
            member: "b".into(),
            name: "loop0".into(),
            ..disk.clone()
        };
        let expected = "the virtual device loop0 has the UUID of sda";
        assert_eq!(choice(&[member.clone(), disk.clone()]), expected);
        let other = Device {
            uuid: "2".into(),
            ..member.clone()
        };
        assert_eq!(choice(&[other, disk.clone()]), "sda");
        // The kernel mounts ext4 by the device.
        let ext4 = Device {
            kind: "ext4".into(),
            ..disk
        };
        assert_eq!(choice(&[member, ext4]), "sda");
    }

    #[test]
    fn machine_volume_is_btrfs() {
        let ext4 = Device {
            kind: "ext4".into(),
            ..device("sda")
        };
        let chosen = choose(&[ext4], STATE_LABEL, Purpose::Machines, false);
        let Choice::Refused(refusal) = chosen else {
            unreachable!("{chosen:?}");
        };
        assert_eq!(refusal.to_string(), "sda is ext4, and not btrfs");
    }
}
