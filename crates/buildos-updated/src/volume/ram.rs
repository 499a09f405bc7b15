//! buildos-machine-ram: makes a machine volume in RAM on a host without a disk for it.
//!
//! ```text
//! tmpfs of machines.ram_mib at /run/buildos/machine-ram/files, which only root can enter
//!   └─ NAME, a file with a btrfs ──loop device──► /run/buildos/machine-volumes/NAME
//! ```
//!
//! It is mounted and bound like a volume of a disk ([`mount`]). A volume in RAM is recognised by
//! the file of its loop device, and never by a label: builds can make loop devices with any label.
//!
//! A disk with the label has precedence until the volume in RAM is made. The volume in RAM then
//! stays until the next boot, as tasks use it. It also stays if `machines.volume` names another
//! volume: a host has one volume in RAM.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};

use buildos_service::file::overwrite;
use buildos_service::log_to_journal;
use buildos_service::text::chain;
use buildos_volumes::choice::{self, Choice, Purpose};
use buildos_volumes::device::{self, Device};
use buildos_volumes::program;

use super::account::Account;
use super::mount;
use crate::messages;
use crate::paths::Paths;
use crate::programs::capture;
use crate::ram::{self, Memory, Report, State};
use crate::settings::{self, Settings};

/// Bytes of the output of a program.
const OUTPUT: usize = 64 * 1024;
/// Permissions of the report.
const READABLE: u32 = 0o644;
/// Reason for no volume in RAM.
const DISK: &str = "a disk has the volume";
/// Root.
const ROOT: Account = Account { uid: 0, gid: 0 };

/// What is mounted as the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mounted {
    Nothing,
    Disk,
    Ram,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// No volume in RAM is configured.
    Nothing,
    /// The volume in RAM is mounted.
    Keep,
    /// A volume of this size in MiB is made.
    Make(u64),
    /// No volume is made, for a reason.
    Leave(State, String),
}

/// Runs the helper.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal("buildos-machine-ram");
    if std::env::args_os().len() > 1 {
        tracing::error!("buildos-machine-ram takes no arguments");
        return ExitCode::from(2);
    }
    match run(&Paths::new(Path::new("/"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            messages::helper_failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(paths: &Paths) -> Result<(), String> {
    let (settings, _) = settings::load(paths.root());
    let name = settings.volume.as_str();
    let in_ram = in_ram(paths)?;
    let mounted = match (
        in_ram.as_deref(),
        mount::is_mounted(&paths.volumes().join(name))?,
    ) {
        (Some(in_ram), _) if in_ram == name => Mounted::Ram,
        (_, true) => Mounted::Disk,
        (_, false) => Mounted::Nothing,
    };
    let other = in_ram.filter(|in_ram| in_ram != name);
    let devices = match mounted {
        Mounted::Nothing if settings.ram_mib > 0 => {
            program::settle();
            device::candidates(paths.root())
        }
        Mounted::Nothing | Mounted::Ram | Mounted::Disk => Vec::new(),
    };
    let memory = Memory::read(paths.root());
    let done = match decide(&settings, mounted, other.as_deref(), &devices, memory) {
        Decision::Nothing => return forget(paths),
        Decision::Leave(state, reason) => Err((state, reason)),
        Decision::Make(mib) => make(paths, name, mib),
        // A part of it can have been unmounted.
        Decision::Keep => mount_file(paths, name).map_err(|reason| (State::Failed, reason)),
    };
    let (state, reason) = match done {
        Ok(()) => (State::Used, "in RAM until the next boot".to_owned()),
        Err(left) => left,
    };
    let size = paths
        .ram_file(other.as_deref().unwrap_or(name))
        .metadata()
        .map_or(0, |file| file.len() >> 20);
    report(
        paths,
        &Report {
            state,
            volume: name.to_owned(),
            mib: size,
            reason,
        },
    )
}

/// Returns the name of the volume that is in RAM and mounted.
fn in_ram(paths: &Paths) -> Result<Option<String>, String> {
    let failed = |error: io::Error| format!("cannot read {}: {error}", paths.ram().display());
    let entries = match fs::read_dir(paths.ram()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if mount::is_in_ram(paths, &name)? {
            return Ok(Some(name.into_owned()));
        }
    }
    Ok(None)
}

/// Logs and writes what is new.
fn report(paths: &Paths, report: &Report) -> Result<(), String> {
    // Each run of buildos-updated starts this program.
    if ram::report(paths).as_ref() == Some(report) {
        return Ok(());
    }
    match report.state {
        State::Used => messages::mounted(&report.volume, &format!("{} MiB of RAM", report.mib)),
        State::Failed => messages::not_mounted(&report.volume, &report.reason),
        State::Disk => {}
    }
    // A report consists of strings and numbers.
    let text = serde_json::to_vec(report).unwrap_or_default();
    overwrite(&paths.ram_report(), &text, READABLE).map_err(|error| chain(&error))
}

/// Decides by what is mounted and what disks there are. `other` is another volume in RAM.
fn decide(
    settings: &Settings,
    mounted: Mounted,
    other: Option<&str>,
    devices: &[Device],
    memory: Memory,
) -> Decision {
    if let Some(other) = other {
        let state = match mounted {
            Mounted::Disk => State::Disk,
            Mounted::Nothing | Mounted::Ram => State::Failed,
        };
        return Decision::Leave(
            state,
            format!("volume {other} is in RAM until the next boot"),
        );
    }
    match (mounted, ram::fitting(settings.ram_mib, memory)) {
        (Mounted::Ram, _) => Decision::Keep,
        (_, Ok(None)) => Decision::Nothing,
        (Mounted::Disk, _) => Decision::Leave(State::Disk, DISK.to_owned()),
        (Mounted::Nothing, size) => match (disk(devices, settings.volume.as_str()), size) {
            (Some(reason), _) => Decision::Leave(State::Disk, reason),
            (None, Ok(size)) => size.map_or(Decision::Nothing, Decision::Make),
            (None, Err(error)) => Decision::Leave(State::Failed, error.to_string()),
        },
    }
}

/// Returns what is known about a disk with the label of a volume. A disk that is refused counts,
/// as an operator has to decide about it.
fn disk(devices: &[Device], name: &str) -> Option<String> {
    let label = mount::label(name);
    match choice::choose(devices, &label, Purpose::Machines, false) {
        Choice::Absent => None,
        Choice::Device(device) => Some(format!("{} has the volume", device.name)),
        Choice::Refused(refusal) => Some(format!("a disk has its label, although {refusal}")),
    }
}

/// Makes the file system, and mounts it.
fn make(paths: &Paths, name: &str, mib: u64) -> Result<(), (State, String)> {
    let made = make_file(paths, name, mib).and_then(|()| mount_file(paths, name));
    let failed = |reason| (State::Failed, reason);
    if !mount::is_in_ram(paths, name).map_err(failed)? {
        free(paths).map_err(failed)?;
        // A disk appeared meanwhile, and was mounted.
        made.map_err(failed)?;
        return Err((State::Disk, DISK.to_owned()));
    }
    made.map_err(failed)
}

/// Makes the file system in a new tmpfs.
fn make_file(paths: &Paths, name: &str, mib: u64) -> Result<(), String> {
    let files = paths.ram();
    mount::directory(&files, ROOT, 0o700)?;
    // An earlier run did not come to its end.
    free(paths)?;
    let options = format!("nosuid,nodev,noexec,mode=0700,size={mib}m,nr_inodes=16");
    let mut tmpfs = Command::new("mount");
    tmpfs.args(["-t", "tmpfs", "-o", &options, "--", "tmpfs"]);
    run_program(tmpfs.arg(&files), "mount")?;
    format(&paths.ram_file(name), name, mib)
}

/// Frees the RAM of a file that is not mounted.
fn free(paths: &Paths) -> Result<(), String> {
    let files = paths.ram();
    match mount::is_mounted(&files)? {
        true => run_program(Command::new("umount").arg(&files), "mount"),
        false => Ok(()),
    }
}

/// Mounts and binds the volume, and its containers.
fn mount_file(paths: &Paths, name: &str) -> Result<(), String> {
    mount::mount(paths, name, &mount::Source::File(&paths.ram_file(name)))?;
    if let Err(reason) = mount::mount_containers(paths, name) {
        messages::without_containers(&reason);
    }
    Ok(())
}

/// Makes a btrfs in a new file. The RAM is taken when it is written.
fn format(file: &Path, name: &str, mib: u64) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot make {}: {error}", file.display());
    File::create_new(file)
        .and_then(|file| file.set_len(mib << 20))
        .map_err(failed)?;
    let mut mkfs = Command::new("mkfs.btrfs");
    // One copy of the metadata: RAM has no bad sectors.
    mkfs.args([
        "--quiet",
        "--metadata",
        "single",
        "--label",
        &mount::label(name),
    ]);
    run_program(mkfs.arg("--").arg(file), "btrfs-progs")
}

fn run_program(command: &mut Command, package: &'static str) -> Result<(), String> {
    capture::output(command, package, OUTPUT)
        .map(|_| ())
        .map_err(|error| chain(&error))
}

/// Removes the report of a volume that is not configured any more.
fn forget(paths: &Paths) -> Result<(), String> {
    free(paths)?;
    let report = paths.ram_report();
    match fs::remove_file(&report) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", report.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_volumes::MACHINES_LABEL;

    const MEMORY: Memory = Memory {
        all: 8192,
        free: 6000,
    };

    fn settings(ram_mib: u32) -> Settings {
        Settings {
            ram_mib,
            ..Settings::default()
        }
    }

    fn device(name: &str) -> Device {
        Device {
            name: name.into(),
            label: MACHINES_LABEL.into(),
            kind: "btrfs".into(),
            ..Device::default()
        }
    }

    #[test]
    fn volume_in_ram_is_made_only_without_a_disk() {
        let decide =
            |devices: &[Device]| decide(&settings(4096), Mounted::Nothing, None, devices, MEMORY);
        assert_eq!(decide(&[]), Decision::Make(4096));
        // A build can make these.
        let made_by_build = Device {
            is_virtual: true,
            ..device("loop0")
        };
        assert_eq!(decide(&[made_by_build]), Decision::Make(4096));
        let other = Device {
            label: "buildos.machines.fast".into(),
            ..device("sda")
        };
        assert_eq!(decide(&[other]), Decision::Make(4096));
        let left = |reason: &str| Decision::Leave(State::Disk, reason.to_owned());
        assert_eq!(decide(&[device("sda")]), left("sda has the volume"));
        let stick = Device {
            removable: true,
            ..device("sdb")
        };
        assert_eq!(
            decide(&[stick]),
            left("a disk has its label, although sdb is removable")
        );
    }

    #[test]
    fn mounted_volume_stays() {
        // The volume itself takes what is available.
        let used = Memory { free: 0, ..MEMORY };
        let disk = || Decision::Leave(State::Disk, "a disk has the volume".to_owned());
        for (ram_mib, mounted, expected) in [
            (4096, Mounted::Ram, Decision::Keep),
            // The key was changed.
            (8192, Mounted::Ram, Decision::Keep),
            (0, Mounted::Ram, Decision::Keep),
            (0, Mounted::Disk, Decision::Nothing),
            (4096, Mounted::Disk, disk()),
            (8192, Mounted::Disk, disk()),
        ] {
            let decision = decide(&settings(ram_mib), mounted, None, &[], used);
            assert_eq!(decision, expected);
        }
    }

    #[test]
    fn other_volume_in_ram_stays_and_is_the_reason() {
        let decide =
            |ram_mib, mounted| decide(&settings(ram_mib), mounted, Some("fast"), &[], MEMORY);
        let left =
            |state| Decision::Leave(state, "volume fast is in RAM until the next boot".into());
        assert_eq!(decide(4096, Mounted::Nothing), left(State::Failed));
        // Its RAM counts for agents, so the report stays.
        assert_eq!(decide(0, Mounted::Nothing), left(State::Failed));
        assert_eq!(decide(4096, Mounted::Disk), left(State::Disk));
    }

    #[test]
    fn too_little_ram_is_a_reason() {
        let decide = |ram_mib| decide(&settings(ram_mib), Mounted::Nothing, None, &[], MEMORY);
        assert_eq!(decide(0), Decision::Nothing);
        let Decision::Leave(State::Failed, reason) = decide(5000) else {
            unreachable!();
        };
        assert!(reason.contains("more than half"), "{reason}");
        let small = Memory {
            free: 100,
            ..MEMORY
        };
        let Decision::Leave(State::Failed, reason) =
            super::decide(&settings(256), Mounted::Nothing, None, &[], small)
        else {
            unreachable!();
        };
        assert!(reason.contains("only 100 MiB"), "{reason}");
    }
}
