//! Detects other programs that configure the network of this machine.
//!
//! The image contains no such program. A Debian host on which the packages are installed
//! has one, and the operator might be logged in through it. Two programs that configure
//! the same links undo each other's changes. Therefore netd does not start while such a
//! program runs.
//!
//! | program | detected by |
//! |---|---|
//! | netplan | its configuration, while systemd-networkd runs |
//! | services | the control group of their unit, which exists while they run; netd is ordered after them |
//! | ifupdown | its configuration and `/run/network/ifstate`: udev may bring up interfaces at any time |

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Services that configure links as soon as they run.
const SERVICES: [&str; 4] = [
    NETWORKD,
    "NetworkManager.service",
    "connman.service",
    "dhcpcd.service",
];
const NETWORKD: &str = "systemd-networkd.service";
/// Directories of netplan's configuration (netplan(5)).
const NETPLAN: [&str; 3] = ["etc/netplan", "run/netplan", "usr/lib/netplan"];
const IFUPDOWN: &str = "usr/sbin/ifup";
const INTERFACES: &str = "etc/network/interfaces";
const IFSTATE: &str = "run/network/ifstate";
/// netd writes this file ([`crate::exports`]): it is not a configuration of ifupdown.
const EXPORTED_INTERFACES: &str = "/run/buildos/netd/interfaces";

/// A program that configures the network. Its `Display` text explains how to disable it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OtherManager {
    /// A running service.
    Service(&'static str),
    /// systemd-networkd, started by netplan's generator. `systemctl disable` has no effect.
    Netplan,
    /// Interfaces that ifupdown configures.
    Ifupdown(BTreeSet<String>),
}

impl fmt::Display for OtherManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netplan => f.write_str(
                "netplan starts systemd-networkd at every boot; to have buildos configure the \
                 network from the next boot on, remove the files of /etc/netplan, \
                 /run/netplan and /usr/lib/netplan, or the package netplan.io",
            ),
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
                     remove that from /etc/network/interfaces",
                    interfaces.join(", ")
                )
            }
        }
    }
}

/// Returns the first other manager found below `root`.
#[must_use]
pub fn find(root: &Path) -> Option<OtherManager> {
    let cgroups = root.join("sys/fs/cgroup/system.slice");
    let service = SERVICES
        .into_iter()
        .find(|service| cgroups.join(service).is_dir());
    if let Some(service) = service {
        return Some(match service == NETWORKD && has_netplan(root) {
            true => OtherManager::Netplan,
            false => OtherManager::Service(service),
        });
    }
    let interfaces = ifupdown(root);
    (!interfaces.is_empty()).then_some(OtherManager::Ifupdown(interfaces))
}

/// Returns true if netplan has a configuration, from which its generator starts
/// systemd-networkd (netplan-generate(8)).
fn has_netplan(root: &Path) -> bool {
    let is_yaml = |entry: fs::DirEntry| entry.path().extension().is_some_and(|end| end == "yaml");
    NETPLAN.iter().any(|directory| {
        let entries = fs::read_dir(root.join(directory));
        entries.is_ok_and(|entries| entries.flatten().any(is_yaml))
    })
}

/// Returns the interfaces that ifupdown configures, or has configured in this boot.
fn ifupdown(root: &Path) -> BTreeSet<String> {
    if !root.join(IFUPDOWN).exists() {
        return BTreeSet::new();
    }
    let mut interfaces = BTreeSet::new();
    let main = root.join(INTERFACES);
    let is_exported =
        fs::read_link(&main).is_ok_and(|target| target == Path::new(EXPORTED_INTERFACES));
    if !is_exported {
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

/// Returns the interfaces of `iface` stanzas of interfaces(5), except the loopback interface.
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

/// Returns the arguments of `source` and `source-directory` in interfaces(5).
fn sourced(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| line.trim_start().starts_with("source"))
        .flat_map(|line| line.split_whitespace().skip(1))
}

/// Returns the files that an argument of `source` matches. Patterns in directory names do
/// not occur in practice and match nothing.
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

/// Returns the interfaces that ifupdown has configured: one line `INTERFACE=LOGICAL` each.
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
                OtherManager::Ifupdown(names) => Some(names.into_iter().collect()),
                OtherManager::Service(_) | OtherManager::Netplan => None,
            }
        }
    }

    const IFUP: (&str, &str) = (IFUPDOWN, "");
    const DEBIAN: &str = "# This file describes the network interfaces\n\n\
        source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n";

    #[test]
    fn bare_machine_has_no_other_manager() {
        assert_eq!(find(Machine::new(&[]).0.path()), None);
    }

    #[test]
    fn service_is_detected_while_it_runs() {
        for service in SERVICES {
            let procs = format!("sys/fs/cgroup/system.slice/{service}/cgroup.procs");
            let machine = Machine::new(&[(procs.as_str(), "1\n")]);
            let other_manager = find(machine.0.path()).unwrap();
            assert_eq!(other_manager, OtherManager::Service(service));
            assert!(
                other_manager
                    .to_string()
                    .ends_with(&format!("systemctl disable {service}"))
            );
        }
        let stopped = Machine::new(&[("run/systemd/netif/state", "OPER_STATE=off\n")]);
        assert_eq!(find(stopped.0.path()), None);
    }

    #[test]
    fn networkd_started_by_netplan_is_named_netplan() {
        let networkd = ("sys/fs/cgroup/system.slice/systemd-networkd.service/x", "");
        let yaml = ("etc/netplan/50-cloud-init.yaml", "network: {version: 2}\n");
        let both = Machine::new(&[networkd, yaml]);
        assert_eq!(find(both.0.path()), Some(OtherManager::Netplan));
        let stopped = Machine::new(&[yaml]);
        assert_eq!(find(stopped.0.path()), None);
    }

    #[test]
    fn ifupdown_with_loopback_only_is_ignored() {
        let machine = Machine::new(&[IFUP, (INTERFACES, DEBIAN), (IFSTATE, "lo=lo\n")]);
        assert_eq!(find(machine.0.path()), None);
    }

    #[test]
    fn interfaces_of_debian_installer_are_detected() {
        let text = format!("{DEBIAN}\nallow-hotplug ens3\niface ens3 inet dhcp\n");
        let machine = Machine::new(&[IFUP, (INTERFACES, &text)]);
        assert_eq!(machine.interfaces().unwrap(), ["ens3"]);
        let without = Machine::new(&[(INTERFACES, &text)]);
        assert_eq!(find(without.0.path()), None, "ifupdown is not installed");
    }

    #[test]
    fn interfaces_in_sourced_files_are_detected() {
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
    fn interface_up_but_no_longer_configured_is_detected() {
        let machine = Machine::new(&[IFUP, (INTERFACES, DEBIAN), (IFSTATE, "lo=lo\neth1=eth1\n")]);
        assert_eq!(machine.interfaces().unwrap(), ["eth1"]);
    }

    #[test]
    fn exported_interfaces_file_is_ignored() {
        let machine = Machine::new(&[IFUP, (IFSTATE, "")]);
        let path = machine.0.path().join(INTERFACES);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(EXPORTED_INTERFACES, path).unwrap();
        assert_eq!(find(machine.0.path()), None);
    }
}
