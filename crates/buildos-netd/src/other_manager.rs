//! Whether somebody else configures the network of this machine.
//!
//! The image has no such program. On a Debian host that our packages were installed
//! on there is one, and whoever installed them may be logged in through it: two
//! that configure the same links undo each other's work, and taking over unasked
//! cuts people off. So netd keeps its hands off the kernel while there is one.
//!
//! Services count while they run, as their unit's control group shows: netd is
//! ordered after them. ifupdown is no service: its interfaces also come up by
//! udev's events, at any time, so what counts is what its files configure, and what it
//! has configured (`/run/network/ifstate`).

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Services that configure links as soon as they run.
const SERVICES: [&str; 4] = [
    "systemd-networkd.service",
    "NetworkManager.service",
    "connman.service",
    "dhcpcd.service",
];
const IFUPDOWN: &str = "usr/sbin/ifup";
const INTERFACES: &str = "etc/network/interfaces";
const IFSTATE: &str = "run/network/ifstate";
/// What [`crate::exports`] writes is no configuration of somebody else.
const OURS: &str = "/run/buildos/netd/interfaces";

/// Somebody who configures this machine's network. Its text tells how to end that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rival {
    /// A service that runs.
    Service(&'static str),
    /// Interfaces that ifupdown configures.
    Ifupdown(BTreeSet<String>),
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(
                f,
                "{service} configures the network of this machine; to have buildos do \
                 it from the next boot on: systemctl disable {service}"
            ),
            Self::Ifupdown(interfaces) => {
                let interfaces: Vec<_> = interfaces.iter().map(String::as_str).collect();
                write!(
                    f,
                    "ifupdown configures {}; to have buildos do it from the next boot on, \
                     take that out of /etc/network/interfaces",
                    interfaces.join(", ")
                )
            }
        }
    }
}

/// The first that is found below `root`.
#[must_use]
pub fn find(root: &Path) -> Option<Rival> {
    let cgroups = root.join("sys/fs/cgroup/system.slice");
    let service = SERVICES
        .into_iter()
        .find(|service| cgroups.join(service).is_dir());
    if let Some(service) = service {
        return Some(Rival::Service(service));
    }
    let interfaces = ifupdown(root);
    (!interfaces.is_empty()).then_some(Rival::Ifupdown(interfaces))
}

/// Interfaces that ifupdown configures, or has configured in this boot.
fn ifupdown(root: &Path) -> BTreeSet<String> {
    if !root.join(IFUPDOWN).exists() {
        return BTreeSet::new();
    }
    let mut interfaces = BTreeSet::new();
    let main = root.join(INTERFACES);
    let view = fs::read_link(&main).is_ok_and(|target| target == Path::new(OURS));
    if !view {
        let text = fs::read_to_string(&main).unwrap_or_default();
        interfaces.append(&mut configured(&text));
        for pattern in sourced(&text) {
            for file in files(root, &main, pattern) {
                interfaces.append(&mut configured(
                    &fs::read_to_string(file).unwrap_or_default(),
                ));
            }
        }
    }
    let state = fs::read_to_string(root.join(IFSTATE)).unwrap_or_default();
    interfaces.append(&mut up(&state));
    interfaces
}

/// The interfaces of `iface` stanzas of interfaces(5), but the loopback device.
fn configured(text: &str) -> BTreeSet<String> {
    let stanzas = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("iface"))
            .then(|| words.next())
            .flatten()
    });
    stanzas
        .filter(|name| *name != "lo")
        .map(str::to_owned)
        .collect()
}

/// The arguments of `source` and `source-directory` in interfaces(5).
fn sourced(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| line.trim_start().starts_with("source"))
        .flat_map(|line| line.split_whitespace().skip(1))
}

/// The files that an argument of `source` stands for. Patterns of directories do
/// not occur in practice and stand for nothing here.
fn files(root: &Path, main: &Path, pattern: &str) -> Vec<PathBuf> {
    let path = match pattern.strip_prefix('/') {
        Some(absolute) => root.join(absolute),
        None => main.with_file_name(pattern),
    };
    let directory = match path.file_name() {
        Some(name) if name.to_string_lossy().contains('*') => path.parent().map(Path::to_owned),
        _ if path.is_dir() => Some(path.clone()),
        _ => return vec![path],
    };
    directory
        .and_then(|directory| fs::read_dir(directory).ok())
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// The interfaces that ifupdown has configured: a line `INTERFACE=LOGICAL` each.
fn up(ifstate: &str) -> BTreeSet<String> {
    ifstate
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name != "lo")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(files: &[(&str, &str)]) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            for (path, text) in files {
                let path = machine.0.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            machine
        }

        fn interfaces(&self) -> Option<Vec<String>> {
            match find(self.0.path())? {
                Rival::Ifupdown(names) => Some(names.into_iter().collect()),
                Rival::Service(_) => None,
            }
        }
    }

    const IFUP: (&str, &str) = (IFUPDOWN, "");
    const DEBIAN: &str = "# This file describes the network interfaces\n\n\
        source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n";

    #[test]
    fn nobody_on_a_bare_machine() {
        assert_eq!(find(Machine::new(&[]).0.path()), None);
    }

    #[test]
    fn a_service_counts_while_it_runs() {
        for service in SERVICES {
            let procs = format!("sys/fs/cgroup/system.slice/{service}/cgroup.procs");
            let machine = Machine::new(&[(procs.as_str(), "1\n")]);
            let rival = find(machine.0.path()).unwrap();
            assert_eq!(rival, Rival::Service(service));
            assert!(
                rival
                    .to_string()
                    .ends_with(&format!("systemctl disable {service}"))
            );
        }
        let stopped = Machine::new(&[("run/systemd/netif/state", "OPER_STATE=off\n")]);
        assert_eq!(find(stopped.0.path()), None);
    }

    #[test]
    fn ifupdown_with_nothing_but_the_loopback_device_does_nothing() {
        let machine = Machine::new(&[IFUP, (INTERFACES, DEBIAN), (IFSTATE, "lo=lo\n")]);
        assert_eq!(find(machine.0.path()), None);
    }

    #[test]
    fn what_the_debian_installer_writes() {
        let text = format!("{DEBIAN}\nallow-hotplug ens3\niface ens3 inet dhcp\n");
        let machine = Machine::new(&[IFUP, (INTERFACES, &text)]);
        assert_eq!(machine.interfaces().unwrap(), ["ens3"]);
        let without = Machine::new(&[(INTERFACES, &text)]);
        assert_eq!(find(without.0.path()), None, "ifupdown is not installed");
    }

    #[test]
    fn files_that_are_sourced() {
        let there = (
            "etc/network/interfaces.d/50-cloud-init",
            "iface eth0 inet6 auto\n",
        );
        for source in [
            "source /etc/network/interfaces.d/*",
            "source-directory /etc/network/interfaces.d",
            "  source interfaces.d/50-cloud-init",
        ] {
            let machine = Machine::new(&[IFUP, (INTERFACES, source), there]);
            assert_eq!(machine.interfaces().unwrap(), ["eth0"], "{source}");
        }
    }

    #[test]
    fn what_is_up_counts_when_it_is_not_in_the_files_any_more() {
        let machine = Machine::new(&[IFUP, (INTERFACES, DEBIAN), (IFSTATE, "lo=lo\neth1=eth1\n")]);
        assert_eq!(machine.interfaces().unwrap(), ["eth1"]);
    }

    #[test]
    fn our_own_view_is_not_somebody_elses_configuration() {
        let machine = Machine::new(&[IFUP, (IFSTATE, "")]);
        let path = machine.0.path().join(INTERFACES);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(OURS, path).unwrap();
        assert_eq!(find(machine.0.path()), None);
    }
}
