//! Runs `buildosctl volume`, which lists, checks and makes the volumes on the disks of this host.
//!
//! | file | subject |
//! |---|---|
//! | this one | `volume list` |
//! | `label` | volumes by their labels, and their mounts |
//! | `check` | `volume check` |
//! | `create` | `volume create` |

use std::path::Path;

use buildos_service::text::{Escaped, size};
use buildos_updated::paths::Paths;
use buildos_updated::ram::{self, Report, State};
use buildos_volumes::LABEL_PREFIX;
use buildos_volumes::choice::{Choice, choose};
use buildos_volumes::device::{self, Device};
use buildos_volumes::mounts::{self, Mount};
use buildos_volumes::program;

use crate::term::{columns, row};
use label::{Volume, is_node, mount_of};

pub(crate) mod check;
pub(crate) mod create;
mod label;

/// A subcommand with its options.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    List { accept_virtual: bool },
    Check { scrub: bool, accept_virtual: bool },
    Create(create::Request),
}

/// Returns the text to print, and true if all is well.
pub(crate) fn run(request: &Request) -> Result<(String, bool), String> {
    let root = Path::new("/");
    if matches!(request, Request::Create(_)) {
        // A second device with the label can have appeared just now.
        program::settle();
    }
    let devices = device::candidates(root);
    match request {
        Request::List { accept_virtual } => {
            let mut text = list(&devices, &mounts::read(root), *accept_virtual);
            if let Some(report) = ram::report(&Paths::new(root)) {
                text += &in_ram(&report);
            }
            Ok((text, true))
        }
        Request::Check {
            scrub,
            accept_virtual,
        } => Ok(check::check(root, &devices, *accept_virtual, *scrub)),
        Request::Create(request) => create::create(root, &devices, request),
    }
}

/// Returns a table of the devices with a label of buildos.
fn list(devices: &[Device], mounts: &[Mount], accept_virtual: bool) -> String {
    let mut rows = vec![row(&["DEVICE", "LABEL", "KIND", "SIZE", "DISK", "STATE"])];
    let labelled = |device: &&Device| device.label.starts_with(LABEL_PREFIX);
    for device in devices.iter().filter(labelled) {
        let identity = match device.identity.as_str() {
            "" => "-",
            identity => identity,
        };
        let state = state(device, devices, mounts, accept_virtual);
        rows.push(row(&[
            &device.node().display().to_string(),
            &device.label,
            &device.kind,
            &size(device.bytes),
            identity,
            &state,
        ]));
    }
    match rows.len() {
        1 => "no device has a label of buildos\n".to_owned(),
        _ => columns(&rows),
    }
}

/// Returns a line about the machine volume in RAM.
fn in_ram(report: &Report) -> String {
    let (volume, reason) = (&report.volume, &report.reason);
    let text = match report.state {
        State::Used => format!("machine volume {volume}: {reason}"),
        State::Disk | State::Failed => format!("machine volume {volume} is not in RAM: {reason}"),
    };
    format!("{}\n", Escaped::received(&text))
}

/// Returns whether a device is used, and the reason.
fn state(device: &Device, devices: &[Device], mounts: &[Mount], accept_virtual: bool) -> String {
    let Some(volume) = Volume::of_label(&device.label) else {
        return "not used: no volume has this label".to_owned();
    };
    let choice = choose(devices, &volume.label, volume.purpose, accept_virtual);
    let mount = mount_of(&volume, devices, mounts);
    let sources: Vec<&Device> = devices
        .iter()
        .filter(|other| mount.is_some_and(|mount| is_node(other, &mount.source)))
        .collect();
    let is_mounted = |other: &&Device| {
        other.name == device.name
            || (device.kind == "btrfs" && !device.uuid.is_empty() && other.uuid == device.uuid)
    };
    if sources.iter().any(is_mounted) {
        let place = volume.place();
        return match choice {
            Choice::Refused(refusal) => format!("in use at {place}, although {refusal}"),
            Choice::Absent | Choice::Device(_) => format!("in use at {place}"),
        };
    }
    if device.is_virtual && !accept_virtual {
        return "not used: it is a virtual device".to_owned();
    }
    match choice {
        Choice::Refused(refusal) => format!("not used: {refusal}"),
        Choice::Absent | Choice::Device(_) if mount.is_some() => {
            format!("not used: another device is at {}", volume.place())
        }
        Choice::Absent | Choice::Device(_) => {
            format!("not mounted: see systemctl status {}", volume.unit())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, label: &str) -> Device {
        Device {
            name: name.into(),
            label: label.into(),
            kind: "btrfs".into(),
            uuid: format!("uuid of {name}"),
            member: format!("member {name}"),
            identity: format!("SSD-{name}"),
            bytes: 1 << 30,
            ..Device::default()
        }
    }

    fn mount(source: &str, target: &str) -> Mount {
        Mount {
            source: source.into(),
            target: target.into(),
            options: "rw,nosuid,nodev,noatime".into(),
            read_only: false,
            is_file_system_read_only: false,
        }
    }

    #[test]
    fn each_device_is_listed_with_state_and_reason() {
        let second_disk = Device {
            uuid: "uuid of sdb".into(),
            ..device("sdc", "buildos.machines")
        };
        let loop0 = Device {
            is_virtual: true,
            identity: String::new(),
            ..device("loop0", "buildos.machines")
        };
        let stick = Device {
            removable: true,
            ..device("sdd", "buildos.machines.fast")
        };
        let unlabelled = Device {
            is_virtual: true,
            ..device("loop1", "")
        };
        let devices = [
            device("sda", "buildos.state"),
            device("sdb", "buildos.machines"),
            second_disk,
            stick,
            device("sde", "buildos.other"),
            loop0,
            unlabelled,
        ];
        let mounts = [mount("/dev/sdb", "/run/buildos/machine-volumes/default")];
        assert_eq!(
            list(&devices, &mounts, false),
            "\
DEVICE      LABEL                  KIND   SIZE      DISK     STATE
/dev/sda    buildos.state          btrfs  1.00 GiB  SSD-sda  not mounted: see systemctl status buildos-volumes
/dev/sdb    buildos.machines       btrfs  1.00 GiB  SSD-sdb  in use at /build/machines/default
/dev/sdc    buildos.machines       btrfs  1.00 GiB  SSD-sdc  in use at /build/machines/default
/dev/sdd    buildos.machines.fast  btrfs  1.00 GiB  SSD-sdd  not used: sdd is removable
/dev/sde    buildos.other          btrfs  1.00 GiB  SSD-sde  not used: no volume has this label
/dev/loop0  buildos.machines       btrfs  1.00 GiB  -        not used: it is a virtual device
"
        );
        let none = list(&[], &[], false);
        assert_eq!(none, "no device has a label of buildos\n");
    }

    #[test]
    fn volume_in_ram_has_a_line_with_its_reason() {
        let report = |state, reason: &str| Report {
            state,
            volume: "default".into(),
            mib: 0,
            reason: reason.into(),
        };
        assert_eq!(
            in_ram(&report(State::Failed, "only 1 MiB")),
            "machine volume default is not in RAM: only 1 MiB\n"
        );
        assert_eq!(
            in_ram(&report(State::Used, "in RAM until the next boot")),
            "machine volume default: in RAM until the next boot\n"
        );
    }

    #[test]
    fn second_device_with_a_label_is_named_beside_the_one_in_use() {
        let devices = [
            device("sda", "buildos.state"),
            device("sdb", "buildos.state"),
        ];
        let mounts = [mount("/dev/sda", "/state")];
        let states = devices
            .each_ref()
            .map(|device| state(device, &devices, &mounts, false));
        assert_eq!(
            states,
            [
                "in use at /state, although sda and sdb have the same label",
                "not used: sda and sdb have the same label"
            ]
        );
    }
}
