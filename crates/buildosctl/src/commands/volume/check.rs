//! `buildosctl volume check`: examines the volumes of this host. It writes nothing on
//! them.
//!
//! The kernel counts errors of disks: a btrfs for its whole life, an ext4 since it was last
//! checked. sysfs has the counters, so that everybody can read them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use buildos_service::text::size;
use buildos_updated::paths::Paths;
use buildos_updated::ram;
use buildos_updated::state::{self, Volumes};
use buildos_volumes::choice::{Choice, Purpose, choose};
use buildos_volumes::device::Device;
use buildos_volumes::mounts::{self, Mount};
use buildos_volumes::report;
use nix::sys::statvfs::statvfs;

use super::label::{Volume, mount_of};
use crate::programs::btrfs;

/// Options without which a volume is dangerous.
const OPTIONS: [&str; 2] = ["nosuid", "nodev"];
/// Least part of a file system that should be free, in percent.
const FREE: u64 = 5;

/// A result of the check.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Good(String),
    /// A part that could not be examined, and the reason.
    Open(String),
    Bad(String),
}

/// Facts about a volume.
#[derive(Debug)]
struct Facts {
    volume: Volume,
    choice: Choice,
    /// True if it is a machine volume in RAM.
    in_ram: bool,
    mount: Option<Mount>,
    /// Free bytes and size of the file system.
    space: Option<(u64, u64)>,
    /// Counters of errors that are not zero, or [`None`] if the kernel has no counters.
    errors: Option<Vec<String>>,
    /// Findings about the programs that use the volume.
    users: Vec<Finding>,
}

/// Returns the text, and true if there is no problem.
pub(crate) fn check(
    root: &Path,
    devices: &[Device],
    accept_virtual: bool,
    scrub: bool,
) -> (String, bool) {
    let mounts = mounts::read(root);
    let mut labels: Vec<&str> = devices.iter().map(|device| device.label.as_str()).collect();
    labels.sort_unstable();
    labels.dedup();
    let (mut out, mut well) = (String::new(), true);
    for volume in labels.into_iter().filter_map(Volume::of_label) {
        let choice = choose(devices, &volume.label, volume.purpose, accept_virtual);
        let mount = mount_of(&volume, devices, &mounts).cloned();
        if choice == Choice::Absent && mount.is_none() {
            continue;
        }
        out += &format!("{}\n", volume.label);
        let facts = collect(root, devices, volume, choice, mount);
        let mut findings = judge(&facts);
        findings.extend(content(&facts, scrub, is_root(root)));
        for finding in findings {
            well &= !matches!(finding, Finding::Bad(_));
            out += &match finding {
                Finding::Good(text) => format!("  ok       {text}\n"),
                Finding::Open(text) => format!("  open     {text}\n"),
                Finding::Bad(text) => format!("  problem  {text}\n"),
            };
        }
    }
    if out.is_empty() {
        out = "no device is a volume of this host\n".to_owned();
    }
    (out, well)
}

fn collect(
    root: &Path,
    devices: &[Device],
    volume: Volume,
    choice: Choice,
    mount: Option<Mount>,
) -> Facts {
    let source = mount.as_ref().map(|mount| mount.source.clone());
    let device = devices
        .iter()
        .find(|device| source.as_deref() == device.node().to_str());
    let place = root.join(volume.place().trim_start_matches('/'));
    let space = mount
        .is_some()
        .then(|| statvfs(&place).ok())
        .flatten()
        .map(|found| {
            let block = found.fragment_size();
            (
                found.blocks_available().saturating_mul(block),
                found.blocks().saturating_mul(block),
            )
        });
    Facts {
        in_ram: volume.purpose == Purpose::Machines
            && ram::report(&Paths::new(root)).is_some_and(|report| {
                report.state == ram::State::Used && report.volume == volume.name
            }),
        errors: device.and_then(|device| errors(root, device)),
        users: users(root, &volume),
        volume,
        choice,
        mount,
        space,
    }
}

/// Returns the counters that are not zero.
fn errors(root: &Path, device: &Device) -> Option<Vec<String>> {
    if device.kind != "btrfs" {
        let path = root
            .join("sys/fs/ext4")
            .join(&device.name)
            .join("errors_count");
        let count = fs::read_to_string(path).ok()?;
        return Some(match count.trim() {
            "0" => Vec::new(),
            count => vec![format!("{count} errors")],
        });
    }
    let directory = root.join("sys/fs/btrfs").join(&device.uuid).join("devinfo");
    let mut disks: Vec<PathBuf> = fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    disks.sort();
    let mut found = Vec::new();
    for disk in disks {
        let number = disk.file_name().unwrap_or_default().to_string_lossy();
        let text = |name: &str| fs::read_to_string(disk.join(name)).unwrap_or_default();
        if text("missing").trim() == "1" {
            found.push(format!("disk {number} is missing"));
        }
        for line in text("error_stats").lines() {
            match line.split_once(' ') {
                Some((_, "0")) | None => {}
                Some((name, count)) => {
                    found.push(format!("disk {number}: {name} {count}"));
                }
            }
        }
    }
    Some(found)
}

fn users(root: &Path, volume: &Volume) -> Vec<Finding> {
    match volume.purpose {
        Purpose::State => match report::read(root) {
            Some(report) if report.state.is_fault() => vec![Finding::Bad(report.reason)],
            Some(report) => vec![Finding::Good(report.reason)],
            None => Vec::new(),
        },
        Purpose::Machines => {
            let volumes: Volumes = state::read(&Paths::new(root).placed()).unwrap_or_default();
            let Some(found) = volumes.volume(&volume.name) else {
                return Vec::new();
            };
            let used = found.machines.iter().filter(|machine| machine.used).count();
            let revisions = found.machines.len();
            let of_volume = format!("volume {}: ", volume.name);
            let problems = volumes.problems.iter();
            let problems = problems.filter(|problem| problem.starts_with(&of_volume));
            let text = format!("{revisions} revisions of machines, {used} in use");
            [Finding::Good(text)]
                .into_iter()
                .chain(problems.map(|problem| Finding::Bad(problem.clone())))
                .collect()
        }
    }
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let label = &facts.volume.label;
    let mut findings = vec![match &facts.choice {
        Choice::Refused(refusal) => Finding::Bad(refusal.to_string()),
        Choice::Device(device) if facts.in_ram => Finding::Bad(format!(
            "{} has the label, but until the next boot the volume is in RAM",
            device.name
        )),
        Choice::Absent if facts.in_ram => Finding::Good("it is in RAM".to_owned()),
        Choice::Device(device) => {
            let name = device.node().display().to_string();
            Finding::Good(format!("{name} is the volume with the label {label}"))
        }
        Choice::Absent => Finding::Bad("it is on a virtual device".to_owned()),
    }];
    let Some(mount) = &facts.mount else {
        let unit = facts.volume.unit();
        let text = format!("it is not mounted: systemctl start {unit}");
        findings.push(Finding::Bad(text));
        return findings;
    };
    let place = facts.volume.place();
    let options: Vec<&str> = mount.options.split(',').collect();
    let mut needed = OPTIONS.to_vec();
    if facts.volume.purpose == Purpose::State {
        needed.push("noexec");
    }
    needed.retain(|option| !options.contains(option));
    findings.push(if mount.read_only {
        Finding::Bad(format!("it is mounted read-only at {place}"))
    } else if needed.is_empty() {
        Finding::Good(format!("mounted at {place} ({})", mount.options))
    } else {
        let missing = needed.join(" and ");
        Finding::Bad(format!("it is mounted at {place} without {missing}"))
    });
    findings.push(match facts.space {
        Some((free, all)) => {
            let text = format!("{} of {} free", size(free), size(all));
            match free < all / 100 * FREE {
                true => Finding::Bad(format!("only {text}")),
                false => Finding::Good(text),
            }
        }
        None => Finding::Open(format!("space: cannot read {place}")),
    });
    findings.push(match &facts.errors {
        Some(errors) if errors.is_empty() => {
            Finding::Good("the kernel has counted no errors of the disk".to_owned())
        }
        Some(errors) => Finding::Bad(format!("counted errors: {}", errors.join(", "))),
        None => Finding::Open("the kernel has no counters of errors".to_owned()),
    });
    findings.extend(facts.users.iter().map(|finding| match finding {
        Finding::Good(text) => Finding::Good(text.clone()),
        Finding::Open(text) => Finding::Open(text.clone()),
        Finding::Bad(text) => Finding::Bad(text.clone()),
    }));
    findings
}

/// Returns true if this process has the rights of root. The kernel makes the effective user the
/// owner of the directory (proc_pid(5)).
fn is_root(root: &Path) -> bool {
    fs::metadata(root.join("proc/self")).is_ok_and(|process| process.uid() == 0)
}

/// Reads the content: all of it with `scrub`, otherwise the trees of a btrfs that is not mounted.
fn content(facts: &Facts, scrub: bool, is_root: bool) -> Option<Finding> {
    let target = facts.volume.target();
    match (&facts.mount, &facts.choice) {
        (Some(_), _) if !scrub => None,
        (Some(_), Choice::Device(device)) if device.kind == "btrfs" => {
            if !is_root {
                let text = "content: only root can read all data".to_owned();
                return Some(Finding::Open(text));
            }
            Some(match btrfs::scrub(Path::new(&target)) {
                Ok(()) => Finding::Good("all data and checksums were read".to_owned()),
                Err(reason) => Finding::Bad(reason),
            })
        }
        (None, Choice::Device(device)) if device.kind == "btrfs" => {
            if let Err(error) = File::open(device.node()) {
                let text = format!("content: cannot open the disk: {error}");
                return Some(Finding::Open(text));
            }
            Some(match btrfs::check(&device.node()) {
                Ok(()) => Finding::Good("btrfs check has found no damage".to_owned()),
                Err(reason) => Finding::Bad(reason),
            })
        }
        (Some(_) | None, _) => Some(Finding::Open(
            "content: only a btrfs that is used can be read".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_volumes::choice::Refusal;

    fn good() -> Facts {
        Facts {
            volume: Volume::new(Purpose::State, None),
            choice: Choice::Device(Device {
                name: "sda".into(),
                kind: "btrfs".into(),
                ..Device::default()
            }),
            mount: Some(Mount {
                source: "/dev/sda".into(),
                target: "/state".into(),
                options: "rw,nosuid,nodev,noexec,relatime".into(),
                read_only: false,
                is_file_system_read_only: false,
            }),
            space: Some((900 << 20, 1 << 30)),
            errors: Some(Vec::new()),
            users: Vec::new(),
            in_ram: false,
        }
    }

    fn problems(facts: &Facts) -> Vec<String> {
        let findings = judge(facts).into_iter();
        findings
            .filter_map(|finding| match finding {
                Finding::Bad(text) => Some(text),
                Finding::Good(_) | Finding::Open(_) => None,
            })
            .collect()
    }

    #[test]
    fn healthy_volume_has_no_problem() {
        let findings = judge(&good());
        let expected = [
            "/dev/sda is the volume with the label buildos.state",
            "mounted at /state (rw,nosuid,nodev,noexec,relatime)",
            "900 MiB of 1.00 GiB free",
            "the kernel has counted no errors of the disk",
        ];
        assert_eq!(findings, expected.map(|text| Finding::Good(text.into())));
    }

    #[test]
    fn volume_in_ram_is_no_problem_until_a_disk_has_its_label() {
        let in_ram = Facts {
            in_ram: true,
            choice: Choice::Absent,
            ..good()
        };
        assert_eq!(problems(&in_ram), [""; 0]);
        let with_disk = Facts {
            in_ram: true,
            ..good()
        };
        assert_eq!(
            problems(&with_disk),
            ["sda has the label, but until the next boot the volume is in RAM"]
        );
        let on_loop = Facts {
            in_ram: false,
            ..in_ram
        };
        assert_eq!(problems(&on_loop), ["it is on a virtual device"]);
    }

    #[test]
    fn scrub_without_rights_of_root_is_open() {
        let text = "content: only root can read all data".to_owned();
        assert_eq!(content(&good(), true, false), Some(Finding::Open(text)));
        assert_eq!(content(&good(), false, false), None);
    }

    #[test]
    fn each_fault_is_a_problem() {
        let mount = good().mount.unwrap();
        let with_mount = |mount: Mount| Facts {
            mount: Some(mount),
            ..good()
        };
        for (facts, problem) in [
            (
                Facts {
                    choice: Choice::Refused(Refusal::ReadOnly("sda".into())),
                    ..good()
                },
                "sda is read-only",
            ),
            (
                Facts {
                    mount: None,
                    ..good()
                },
                "it is not mounted: systemctl start buildos-volumes",
            ),
            (
                with_mount(Mount {
                    read_only: true,
                    is_file_system_read_only: false,
                    ..mount.clone()
                }),
                "it is mounted read-only at /state",
            ),
            (
                with_mount(Mount {
                    options: "rw,nosuid".into(),
                    ..mount
                }),
                "it is mounted at /state without nodev and noexec",
            ),
            (
                Facts {
                    space: Some((49 << 20, 1 << 30)),
                    ..good()
                },
                "only 49.0 MiB of 1.00 GiB free",
            ),
            (
                Facts {
                    errors: Some(vec!["disk 1: write_errs 3".into()]),
                    ..good()
                },
                "counted errors: disk 1: write_errs 3",
            ),
        ] {
            assert_eq!(problems(&facts), [problem]);
        }
        // Without the state file or the right to read, nothing is known to be wrong.
        let unknown = Facts {
            errors: None,
            space: None,
            ..good()
        };
        assert_eq!(problems(&unknown), [""; 0]);
    }

    #[test]
    fn counters_of_errors_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let device = |kind: &str| Device {
            name: "sda".into(),
            kind: kind.into(),
            uuid: "u".into(),
            ..Device::default()
        };
        assert_eq!(errors(root, &device("btrfs")), None);
        assert_eq!(errors(root, &device("ext4")), None);
        let info = root.join("sys/fs/btrfs/u/devinfo");
        let stats = "write_errs 0\nread_errs 2\nflush_errs 0\n";
        for (number, stats, missing) in [(1, stats, "0"), (2, "", "1")] {
            let disk = info.join(number.to_string());
            fs::create_dir_all(&disk).unwrap();
            fs::write(disk.join("error_stats"), stats).unwrap();
            fs::write(disk.join("missing"), format!("{missing}\n")).unwrap();
        }
        assert_eq!(
            errors(root, &device("btrfs")).unwrap(),
            ["disk 1: read_errs 2", "disk 2 is missing"]
        );
        let ext4 = root.join("sys/fs/ext4/sda");
        fs::create_dir_all(&ext4).unwrap();
        for (count, expected) in [("0\n", vec![]), ("4\n", vec!["4 errors".to_owned()])] {
            fs::write(ext4.join("errors_count"), count).unwrap();
            assert_eq!(errors(root, &device("ext4")), Some(expected));
        }
    }
}
