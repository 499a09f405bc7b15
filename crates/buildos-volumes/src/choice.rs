//! Chooses the state volume among the devices with its label.
//!
//! | devices with the label | choice |
//! |---|---|
//! | none | absent |
//! | one, of a known kind, writable and fixed | this one |
//! | one that is removable, read-only or of a different kind | none |
//! | several, whatever they are | none |
//!
//! Loop devices, device mapper and md do not count: a build can make them, and must neither
//! provide the state of the host nor take it away.

use std::fmt;

use crate::device::Device;

/// Kinds of file systems that are mounted.
const KINDS: [&str; 2] = ["btrfs", "ext4"];

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
    /// The name of a device, and the kind of its file system.
    Kind(String, String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Several(names) => write!(f, "{} have the same label", names.join(" and ")),
            Self::Removable(name) => write!(f, "{name} is removable"),
            Self::ReadOnly(name) => write!(f, "{name} is read-only"),
            Self::Kind(name, kind) => {
                write!(f, "{name} is {kind}, and not {}", KINDS.join(" or "))
            }
        }
    }
}

/// Chooses among the devices with `label`. `accept_virtual` makes virtual devices count, for
/// tests.
#[must_use]
pub fn choose(devices: &[Device], label: &str, accept_virtual: bool) -> Choice {
    let counts = |device: &&Device| device.label == label && (accept_virtual || !device.is_virtual);
    let found: Vec<&Device> = devices.iter().filter(counts).collect();
    let [device] = found.as_slice() else {
        if found.is_empty() {
            return Choice::Absent;
        }
        let names = found.iter().map(|device| device.name.clone());
        return Choice::Refused(Refusal::Several(names.collect()));
    };
    let name = device.name.clone();
    if device.removable {
        Choice::Refused(Refusal::Removable(name))
    } else if device.read_only {
        Choice::Refused(Refusal::ReadOnly(name))
    } else if !KINDS.contains(&device.kind.as_str()) {
        Choice::Refused(Refusal::Kind(name, device.kind.clone()))
    } else {
        Choice::Device((*device).clone())
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
        match choose(devices, STATE_LABEL, false) {
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
        let chosen = choose(std::slice::from_ref(&loop0), STATE_LABEL, true);
        assert_eq!(chosen, Choice::Device(loop0));
    }
}
