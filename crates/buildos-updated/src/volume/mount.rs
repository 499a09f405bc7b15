//! buildos-machine-volumes: mounts machine volumes.
//!
//! A machine volume is a btrfs with the label `buildos.machines`, for the volume `default`,
//! or `buildos.machines.NAME`. The rule of the state volume chooses its device
//! ([`buildos_volumes::choice`]). Nothing is formatted, and no other file system is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, fchown};
use std::path::Path;
use std::process::{Command, ExitCode};

use buildos_channel::Name;
use buildos_service::log_to_journal;
use buildos_service::text::chain;
use buildos_volumes::choice::{self, Choice, Purpose};
use buildos_volumes::device::Device;
use buildos_volumes::{MACHINES_LABEL, program};
use lexopt::Parser;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open, openat};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, mkdirat};

use super::account::{self, Account};
use super::mount_point::MountPoint;
use crate::messages;
use crate::paths::Paths;
use crate::programs::capture;
use crate::settings;

/// What a volume is mounted from.
pub(super) enum Source<'a> {
    /// The node of a disk.
    Device(&'a str),
    /// A file in RAM, through a loop device that ends with the mount.
    File(&'a Path),
}

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
        let (settings, _) = settings::load(paths.root());
        let mut events = mount_all(choices, |name, device| mount_device(paths, name, device));
        if let Err(reason) = mount_containers(paths, settings.volume.as_str()) {
            events.push(Event::WithoutContainers(reason));
        }
        for event in events {
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
    /// Containers of the channel are not used, for a reason.
    WithoutContainers(String),
}

impl Event {
    fn log(&self) {
        match self {
            Self::Mounted(name, device) => messages::mounted(name, device),
            Self::NotMounted(name, reason) => messages::not_mounted(name, reason),
            Self::WithoutContainers(reason) => messages::without_containers(reason),
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

/// Returns the label of a volume.
#[must_use]
pub fn label(name: &str) -> String {
    match name {
        "default" => MACHINES_LABEL.to_owned(),
        name => format!("{MACHINES_LABEL}.{name}"),
    }
}

/// Mounts a disk, unless the volume is in RAM already.
fn mount_device(paths: &Paths, name: &str, device: &str) -> Result<bool, String> {
    if is_in_ram(paths, name)? {
        return Err(format!(
            "{device} has it, but until the next boot it is in RAM"
        ));
    }
    mount(paths, name, &Source::Device(device))
}

/// Returns true if the volume that is mounted is in RAM: its loop device has the file of the volume
/// (`loop/backing_file` in sysfs), which only root can make. The file alone is not enough: a disk can
/// be mounted while the file is made.
pub(super) fn is_in_ram(paths: &Paths, name: &str) -> Result<bool, String> {
    let source = source(&mounts()?, &paths.volumes().join(name));
    Ok(source.is_some_and(|source| is_loop_of(paths.root(), &source, &paths.ram_file(name))))
}

/// Returns true if a device is the loop device of a file.
fn is_loop_of(root: &Path, device: &str, file: &Path) -> bool {
    let Some(name) = device.strip_prefix("/dev/") else {
        return false;
    };
    let attribute = root
        .join("sys/class/block")
        .join(name)
        .join("loop/backing_file");
    let found = fs::read_to_string(attribute).unwrap_or_default();
    Path::new(found.trim_end_matches('\n')) == file
}

/// Mounts a volume and its parts. Returns false if it was mounted already.
pub(super) fn mount(paths: &Paths, name: &str, source: &Source<'_>) -> Result<bool, String> {
    let top = paths.volumes().join(name);
    let (spool, machines) = (paths.spool(name), paths.machines().join(name));
    let root = Account { uid: 0, gid: 0 };
    let updated = account::find(paths.root(), "buildos-updated")?;
    directory(&paths.volumes(), root, 0o700)?;
    directory(&top, root, 0o700)?;
    // A disk can appear while the other helper mounts a volume in RAM.
    let _lock = lock(&paths.volumes())?;
    let mut new = false;
    if !is_mounted(&top)? {
        // Agents of the machines are strangers: no program of theirs gets rights of root.
        let options = "nosuid,nodev,noatime";
        let (options, source) = match source {
            Source::Device(device) => (options.to_owned(), Path::new(device)),
            Source::File(file) => (format!("{options},loop"), *file),
        };
        run_mount(&options, source, &top)?;
        new = true;
    }
    directory(&top, root, 0o700)?;
    directory(&top.join("machines"), root, 0o755)?;
    // The units buildos-pieces read pieces for other hosts.
    directory(&top.join("spool"), updated, 0o755)?;
    directory(&top.join("spool/objects"), updated, 0o755)?;
    directory(&top.join("staging"), root, 0o700)?;
    directory(&top.join("records"), root, 0o700)?;
    for (part, target) in [("machines", &machines), ("spool", &spool)] {
        let point = MountPoint::open(paths.root(), target)?;
        if !point.is_mounted()? {
            point.bind(&top.join(part))?;
            new = true;
        }
    }
    Ok(new)
}

/// Mounts the containers of a mounted volume at `/var/lib/machines`, if there are no others.
pub(super) fn mount_containers(paths: &Paths, name: &str) -> Result<(), String> {
    let top = paths.volumes().join(name);
    if !is_mounted(&top)? {
        return Ok(());
    }
    let (target, source) = (paths.containers(), top.join("containers"));
    directory(&source, Account { uid: 0, gid: 0 }, 0o700)?;
    let point = MountPoint::open(paths.root(), &target)?;
    if !point.is(&source)? {
        let failed = |error| format!("cannot read {}: {error}", target.display());
        let mut entries = fs::read_dir(&target).map_err(failed)?;
        if point.is_mounted()? || entries.next().is_some() {
            return Err(format!(
                "{} is not empty, and stays as it is",
                target.display()
            ));
        }
        point.bind(&source)?;
        remove_snapshots(&target);
    }
    // Only root can enter, so programs with rights of another user run in containers alone.
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    nix::mount::mount(None::<&str>, &target, None::<&str>, flags, None::<&str>)
        .map_err(|error| format!("cannot mount {} again: {}", target.display(), error.desc()))
}

/// Removes snapshots of `systemd-nspawn --ephemeral` that a power cut left.
fn remove_snapshots(containers: &Path) {
    let mut clean = Command::new("systemd-tmpfiles");
    clean
        .args(["--remove", "--boot", "--prefix"])
        .arg(containers);
    if let Err(error) = capture::output(&mut clean, "systemd", OUTPUT) {
        messages::helper_failed(&chain(&error));
    }
}

/// Makes a directory with this owner and mode, or changes both. The owner of the directory above
/// cannot lead it elsewhere by a link.
pub(super) fn directory(path: &Path, owner: Account, mode: u32) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot make {}: {error}", path.display());
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!("{} is no plain path", path.display()));
    };
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let above = open(above, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    match mkdirat(&above, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let opened = openat(&above, name, flags, Mode::empty()).map_err(|error| {
        match [Errno::ENOTDIR, Errno::ELOOP].contains(&error) {
            true => format!("{} is a link or no directory", path.display()),
            false => failed(error.into()),
        }
    })?;
    fchown(&opened, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    File::from(opened)
        .set_permissions(Permissions::from_mode(mode))
        .map_err(failed)
}

fn run_mount(options: &str, source: &Path, target: &Path) -> Result<(), String> {
    let mut command = Command::new("mount");
    command.args(["-t", "btrfs", "-o", options, "--"]);
    command.arg(source).arg(target);
    capture::output(&mut command, "mount", OUTPUT)
        .map(|_| ())
        .map_err(|error| chain(&error))
}

/// Waits until no other helper has a directory locked, and locks it.
fn lock(directory: &Path) -> Result<Flock<File>, String> {
    let failed = |error: io::Error| format!("cannot lock {}: {error}", directory.display());
    let opened = File::open(directory).map_err(failed)?;
    Flock::lock(opened, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))
}

/// Returns true if a file system is mounted at a path.
pub(super) fn is_mounted(path: &Path) -> Result<bool, String> {
    Ok(source(&mounts()?, path).is_some())
}

/// Reads the mounts of this process.
fn mounts() -> Result<String, String> {
    fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| format!("cannot read /proc/self/mountinfo: {error}"))
}

/// Returns what is mounted at a path, the last if there are several (proc_pid_mountinfo(5)).
fn source(mounts: &str, path: &Path) -> Option<String> {
    let path = path.to_string_lossy();
    let mut at_path = mounts
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(&*path));
    let (_, file_system) = at_path.next_back()?.split_once(" - ")?;
    file_system.split(' ').nth(1).map(str::to_owned)
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
    fn directory_that_is_a_link_is_refused_and_its_target_unchanged() {
        let made = tempfile::tempdir().unwrap();
        let root = made.path();
        let target = root.join("target");
        fs::create_dir(&target).unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o750)).unwrap();
        let owner = {
            use std::os::unix::fs::MetadataExt as _;
            let metadata = fs::metadata(root).unwrap();
            Account {
                uid: metadata.uid(),
                gid: metadata.gid(),
            }
        };
        std::os::unix::fs::symlink(&target, root.join("objects")).unwrap();
        let refused = directory(&root.join("objects"), owner, 0o755).unwrap_err();
        assert!(
            refused.ends_with("/objects is a link or no directory"),
            "{refused}"
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&target), 0o750);
        for expected in [0o755, 0o700] {
            directory(&root.join("new"), owner, expected).unwrap();
            assert_eq!(mode(&root.join("new")), expected);
        }
    }

    #[test]
    fn volume_is_in_ram_only_if_its_loop_device_has_the_file() {
        let table = "30 1 0:26 / /run rw,nosuid shared:5 - tmpfs tmpfs rw\n\
                     91 30 0:51 / /run/v rw shared:7 - btrfs /dev/sda rw,subvol=/\n\
                     92 91 0:52 / /run/v rw - btrfs /dev/loop3 rw,subvol=/\n";
        let at = |path: &str| source(table, Path::new(path));
        assert_eq!(at("/run"), Some("tmpfs".to_owned()));
        // The last mount is the one that programs see.
        assert_eq!(at("/run/v"), Some("/dev/loop3".to_owned()));
        assert_eq!(at("/run/v/machines"), None);

        let root = tempfile::tempdir().unwrap();
        let file = Path::new("/run/buildos/machine-ram/files/default");
        let attributes = root.path().join("sys/class/block/loop3/loop");
        fs::create_dir_all(&attributes).unwrap();
        let is_loop = |device: &str| is_loop_of(root.path(), device, file);
        assert!(!is_loop("/dev/loop3"));
        fs::write(
            attributes.join("backing_file"),
            format!("{}\n", file.display()),
        )
        .unwrap();
        assert!(is_loop("/dev/loop3"));
        for other in ["/dev/loop4", "/dev/sda", "tmpfs"] {
            assert!(!is_loop(other), "{other}");
        }
        fs::write(attributes.join("backing_file"), "/tmp/default\n").unwrap();
        assert!(!is_loop("/dev/loop3"));
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
