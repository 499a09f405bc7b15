//! buildos-machine-volumes: mounts machine volumes.
//!
//! A machine volume is a btrfs with the label `buildos.machines`, for the volume `default`,
//! or `buildos.machines.NAME`. The rule of the state volume chooses its device
//! ([`buildos_volumes::choice`]). Nothing is formatted, and no other file system is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use buildos_channel::Name;
use buildos_service::log_to_journal;
use buildos_service::text::chain;
use buildos_volumes::choice::{self, Choice, Purpose};
use buildos_volumes::device::Device;
use buildos_volumes::{MACHINES_LABEL, program};
use lexopt::Parser;

use super::account::{self, Account};
use super::mount_point::MountPoint;
use crate::messages;
use crate::paths::Paths;
use crate::programs::capture;

/// Bytes of the output of a program.
const OUTPUT: usize = 64 * 1024;

/// Runs the helper.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal("buildos-machine-volumes");
    match program::accept_virtual(Parser::from_env()) {
        Ok(accept_virtual) => run(&Paths::new(Path::new("/")), accept_virtual),
        Err(code) => return code,
    }
    ExitCode::SUCCESS
}

fn run(paths: &Paths, accept_virtual: bool) {
    let mut logged = BTreeSet::new();
    let Ok(()) = program::for_devices(paths.root(), |devices| {
        let choices = choose(devices, accept_virtual);
        for event in mount_all(choices, |name, device| mount(paths, name, device)) {
            // A volume that stays refused is refused again in each pass.
            if logged.insert(event.clone()) {
                event.log();
            }
        }
        Ok::<(), Infallible>(())
    });
}

/// A result that is logged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A volume was mounted from a device.
    Mounted(String, String),
    /// A volume is not used, for a reason.
    NotMounted(String, String),
}

impl Event {
    fn log(&self) {
        match self {
            Self::Mounted(name, device) => messages::mounted(name, device),
            Self::NotMounted(name, reason) => messages::not_mounted(name, reason),
        }
    }
}

/// Mounts the chosen devices. `mount` returns false for a volume that was mounted before.
fn mount_all(
    choices: BTreeMap<String, Result<String, String>>,
    mut mount: impl FnMut(&str, &str) -> Result<bool, String>,
) -> Vec<Event> {
    let mut events = Vec::new();
    for (name, choice) in choices {
        let result = choice.and_then(|device| mount(&name, &device).map(|new| (new, device)));
        match result {
            Ok((true, device)) => events.push(Event::Mounted(name, device)),
            Ok((false, _)) => {}
            Err(reason) => events.push(Event::NotMounted(name, reason)),
        }
    }
    events
}

/// Returns for each volume the device to mount, or the reason for none.
fn choose(devices: &[Device], accept_virtual: bool) -> BTreeMap<String, Result<String, String>> {
    let mut by_volume = BTreeMap::new();
    for label in devices.iter().map(|device| device.label.as_str()) {
        let Some(name) = volume(label) else { continue };
        match choice::choose(devices, label, Purpose::Machines, accept_virtual) {
            Choice::Absent => {}
            Choice::Device(device) => {
                by_volume.insert(name, Ok(device.node().display().to_string()));
            }
            Choice::Refused(refusal) => {
                by_volume.insert(name, Err(refusal.to_string()));
            }
        }
    }
    by_volume
}

/// Returns the name of the volume that a label names.
#[must_use]
pub fn volume(label: &str) -> Option<String> {
    let rest = label.strip_prefix(MACHINES_LABEL)?;
    if rest.is_empty() {
        return Some("default".to_owned());
    }
    let name: Name = rest.strip_prefix('.')?.parse().ok()?;
    Some(name.to_string())
}

/// Mounts a volume and its parts. Returns false if it was mounted already.
fn mount(paths: &Paths, name: &str, device: &str) -> Result<bool, String> {
    let top = paths.volumes().join(name);
    let (spool, machines) = (paths.spool(name), paths.machines().join(name));
    let root = Account { uid: 0, gid: 0 };
    let updated = account::find(paths.root(), "buildos-updated")?;
    directory(&paths.volumes(), root, "0700")?;
    directory(&top, root, "0700")?;
    let mut new = false;
    if !is_mounted(&top)? {
        // Agents of the machines are strangers: no program of theirs gets rights of root.
        let options = "nosuid,nodev,noatime";
        run_mount(&["-t", "btrfs", "-o", options, "--", device], &top)?;
        new = true;
    }
    directory(&top, root, "0700")?;
    directory(&top.join("machines"), root, "0755")?;
    directory(&top.join("spool"), updated, "0700")?;
    directory(&top.join("spool/objects"), updated, "0700")?;
    directory(&top.join("staging"), root, "0700")?;
    directory(&top.join("records"), root, "0700")?;
    for (part, target) in [("machines", &machines), ("spool", &spool)] {
        let point = MountPoint::open(paths.root(), target)?;
        if !point.is_mounted()? {
            point.bind(&top.join(part))?;
            new = true;
        }
    }
    Ok(new)
}

/// Makes a directory with this owner and mode, or changes both.
fn directory(path: &Path, owner: Account, mode: &str) -> Result<(), String> {
    if path.is_symlink() {
        return Err(format!("{} is a link", path.display()));
    }
    let mut install = Command::new("install");
    install.args(["--directory", "--mode", mode]);
    install.args(["--owner", &owner.uid.to_string()]);
    install.args(["--group", &owner.gid.to_string(), "--"]);
    install.arg(path);
    capture::output(&mut install, "coreutils", OUTPUT)
        .map(|_| ())
        .map_err(|error| chain(&error))
}

fn run_mount(arguments: &[&str], target: &Path) -> Result<(), String> {
    let mut command = Command::new("mount");
    command.args(arguments).arg(target);
    capture::output(&mut command, "mount", OUTPUT)
        .map(|_| ())
        .map_err(|error| chain(&error))
}

/// Returns true if a file system is mounted at a path (proc_pid_mountinfo(5)).
fn is_mounted(path: &Path) -> Result<bool, String> {
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| format!("cannot read /proc/self/mountinfo: {error}"))?;
    let path = path.to_string_lossy();
    let mut targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(targets.any(|target| target == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, label: &str) -> Device {
        Device {
            name: name.into(),
            kind: "btrfs".into(),
            label: label.into(),
            uuid: format!("uuid of {name}"),
            member: format!("member {name}"),
            ..Device::default()
        }
    }

    fn chosen(devices: &[Device]) -> String {
        let choices = choose(devices, false).into_iter();
        let each = choices.map(|(name, choice)| match choice {
            Ok(device) => format!("{name} {device}"),
            Err(reason) => format!("{name}: {reason}"),
        });
        each.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn only_an_unmistakable_file_system_is_mounted() {
        let good = device("a", "buildos.machines");
        assert_eq!(chosen(std::slice::from_ref(&good)), "default /dev/a");
        let fast = device("b", "buildos.machines.fast");
        assert_eq!(chosen(&[good.clone(), fast]), "default /dev/a\nfast /dev/b");
        let second_disk = Device {
            uuid: good.uuid.clone(),
            ..device("b", "buildos.machines")
        };
        assert_eq!(chosen(&[good.clone(), second_disk]), "default /dev/a");
        assert_eq!(
            chosen(&[good.clone(), device("b", "buildos.machines")]),
            "default: a and b have the same label"
        );
        let ext4 = Device {
            kind: "ext4".into(),
            ..good
        };
        assert_eq!(chosen(&[ext4]), "default: a is ext4, and not btrfs");
        for label in ["buildos.machines2", "buildos.machines./x", "buildos.state"] {
            assert_eq!(chosen(&[device("a", label)]), "", "{label}");
        }
    }

    #[test]
    fn each_new_mount_and_each_refusal_is_an_event() {
        let choices = || {
            let choice = |name: &str, device: &str| (name.to_owned(), Ok(device.to_owned()));
            let refused = ("twice".to_owned(), Err("sda and sdb".to_owned()));
            BTreeMap::from([
                choice("new", "a"),
                choice("old", "b"),
                choice("bad", "c"),
                refused,
            ])
        };
        let mount = |name: &str, _: &str| match name {
            "bad" => Err("it is a link".to_owned()),
            name => Ok(name == "new"),
        };
        let not_mounted =
            |name: &str, reason: &str| Event::NotMounted(name.to_owned(), reason.to_owned());
        assert_eq!(
            mount_all(choices(), mount),
            [
                not_mounted("bad", "it is a link"),
                Event::Mounted("new".into(), "a".into()),
                not_mounted("twice", "sda and sdb"),
            ]
        );
    }

    #[test]
    fn virtual_device_neither_becomes_a_volume_nor_takes_one_away() {
        let disk = device("sda", "buildos.machines");
        let made_by_build = Device {
            is_virtual: true,
            ..device("loop0", "buildos.machines")
        };
        assert_eq!(chosen(std::slice::from_ref(&made_by_build)), "");
        assert_eq!(chosen(&[made_by_build.clone(), disk]), "default /dev/sda");
        let accepted = choose(&[made_by_build], true);
        assert_eq!(accepted["default"], Ok("/dev/loop0".to_owned()));
    }
}
