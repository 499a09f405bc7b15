//! buildos-machine-volumes: mounts machine volumes.
//!
//! A machine volume is a btrfs with the label `buildos.machines`, for the volume `default`,
//! or `buildos.machines.NAME`. It is used if only one file system has the label, and its
//! disk is neither removable nor read-only. Nothing is formatted, and no other file system
//! is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use buildos_channel::Name;
use buildos_service::log_to_journal;
use buildos_service::text::chain;
use serde::Deserialize;

use super::account::{self, Account};
use crate::messages;
use crate::paths::Paths;
use crate::programs::capture;

const LABEL: &str = "buildos.machines";
/// Bytes of the output of lsblk(8).
const OUTPUT: usize = 4 * 1024 * 1024;

/// A block device, as lsblk(8) shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Device {
    path: String,
    fstype: Option<String>,
    label: Option<String>,
    uuid: Option<String>,
    #[serde(default)]
    rm: bool,
    #[serde(default)]
    ro: bool,
}

#[derive(Deserialize)]
struct Devices {
    blockdevices: Vec<Device>,
}

/// Runs the helper.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal("buildos-machine-volumes");
    match run(&Paths::new(Path::new("/"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            messages::helper_failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(paths: &Paths) -> Result<(), String> {
    let mut lsblk = Command::new("lsblk");
    lsblk.args([
        "--json",
        "--list",
        "--output",
        "PATH,FSTYPE,LABEL,UUID,RM,RO",
    ]);
    let output =
        capture::output(&mut lsblk, "util-linux", OUTPUT).map_err(|error| chain(&error))?;
    let devices: Devices = serde_json::from_slice(&output)
        .map_err(|error| format!("lsblk wrote something else than devices: {error}"))?;
    for (name, choice) in choose(&devices.blockdevices) {
        let result =
            choice.and_then(|device| mount(paths, &name, &device).map(|new| (new, device)));
        match result {
            Ok((true, device)) => messages::mounted(&name, &device),
            Ok((false, _)) => {}
            Err(reason) => messages::not_mounted(&name, &reason),
        }
    }
    Ok(())
}

/// Returns for each volume the device to mount, or the reason for none.
fn choose(devices: &[Device]) -> BTreeMap<String, Result<String, String>> {
    let mut by_volume: BTreeMap<String, Vec<&Device>> = BTreeMap::new();
    for device in devices {
        let is_btrfs = device.fstype.as_deref() == Some("btrfs");
        let name = device.label.as_deref().and_then(volume);
        if let (true, Some(name)) = (is_btrfs, name) {
            by_volume.entry(name).or_default().push(device);
        }
    }
    let each = by_volume.into_iter();
    each.map(|(name, devices)| (name, one(&devices))).collect()
}

/// Returns the name of the volume that a label names.
fn volume(label: &str) -> Option<String> {
    let rest = label.strip_prefix(LABEL)?;
    if rest.is_empty() {
        return Some("default".to_owned());
    }
    let name: Name = rest.strip_prefix('.')?.parse().ok()?;
    Some(name.to_string())
}

fn one(devices: &[&Device]) -> Result<String, String> {
    // A btrfs can have several disks, with one UUID.
    let uuids: BTreeSet<_> = devices.iter().map(|device| &device.uuid).collect();
    let names = || {
        let paths: Vec<_> = devices.iter().map(|device| device.path.as_str()).collect();
        paths.join(", ")
    };
    if uuids.len() > 1 {
        return Err(format!("several file systems have its label: {}", names()));
    }
    if devices.iter().any(|device| device.rm) {
        return Err(format!("{} is removable", names()));
    }
    if devices.iter().any(|device| device.ro) {
        return Err(format!("{} is read-only", names()));
    }
    let first = devices.first().map(|device| device.path.clone());
    first.ok_or_else(|| "it has no device".to_owned())
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
        if let Some(above) = target.parent() {
            fs::create_dir_all(above)
                .map_err(|error| format!("cannot make {}: {error}", above.display()))?;
        }
        if !target.exists() {
            directory(target, root, "0755")?;
        }
        if !is_mounted(target)? {
            let source = top.join(part);
            run_mount(&["--bind", "--", &source.to_string_lossy()], target)?;
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

    fn device(path: &str, label: &str, uuid: &str) -> Device {
        Device {
            path: path.into(),
            fstype: Some("btrfs".into()),
            label: Some(label.into()),
            uuid: Some(uuid.into()),
            ..Device::default()
        }
    }

    #[test]
    fn only_an_unmistakable_file_system_is_mounted() {
        let good = device("/dev/a", "buildos.machines", "1");
        let chosen = |devices: &[Device]| {
            let choices = choose(devices).into_iter();
            let each = choices.map(|(name, choice)| match choice {
                Ok(device) => format!("{name} {device}"),
                Err(reason) => format!("{name}: {reason}"),
            });
            each.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(chosen(std::slice::from_ref(&good)), "default /dev/a");
        let fast = device("/dev/b", "buildos.machines.fast", "2");
        assert_eq!(chosen(&[good.clone(), fast]), "default /dev/a\nfast /dev/b");
        let second_disk = device("/dev/b", "buildos.machines", "1");
        assert_eq!(chosen(&[good.clone(), second_disk]), "default /dev/a");
        let twice = device("/dev/b", "buildos.machines", "2");
        assert_eq!(
            chosen(&[good.clone(), twice]),
            "default: several file systems have its label: /dev/a, /dev/b"
        );
        let removable = Device {
            rm: true,
            ..good.clone()
        };
        assert_eq!(chosen(&[removable]), "default: /dev/a is removable");
        let read_only = Device {
            ro: true,
            ..good.clone()
        };
        assert_eq!(chosen(&[read_only]), "default: /dev/a is read-only");
        for other in [
            Device {
                fstype: Some("ext4".into()),
                ..good.clone()
            },
            device("/dev/a", "buildos.machines2", "1"),
            device("/dev/a", "buildos.machines./x", "1"),
            device("/dev/a", "buildos.state", "1"),
        ] {
            assert_eq!(chosen(std::slice::from_ref(&other)), "", "{other:?}");
        }
    }

    #[test]
    fn output_of_lsblk_is_parsed() {
        let output = r#"{"blockdevices": [
            {"path":"/dev/sda","fstype":null,"label":null,"uuid":null,"rm":false,"ro":false},
            {"path":"/dev/sda1","fstype":"btrfs","label":"buildos.machines","uuid":"1","rm":false,"ro":true}
        ]}"#;
        let devices: Devices = serde_json::from_str(output).unwrap();
        assert_eq!(devices.blockdevices.len(), 2);
        assert!(devices.blockdevices[1].ro);
    }
}
