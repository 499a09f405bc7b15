//! Finds the machines at the ports of the bridges: their processes, addresses and use of
//! resources.
//!
//! | what | from |
//! |---|---|
//! | ports | netd, without the uplink and the port of the probe |
//! | process of a virtual machine | the tap on the command line of QEMU |
//! | processes of a container | the network namespace of the peer of the port |
//! | agent | control group of the process |
//! | address | leases and neighbours, by MAC address |
//! | MAC addresses | forwarding table of the bridge, command line of QEMU |
//!
//! # Limits
//!
//! All sources are readable for every user. A tap that QEMU got as a file descriptor has no
//! process here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use buildos_agentd::agent::id::Id;
use buildos_agentd::machine::group::{self, Traffic};
use buildos_agentd::machine::process::{self, Memory, Stat};
use buildos_agentd::machine::qemu::CommandLine;
use buildos_netlink::{BlockingSocket, RouteNetlinkMessage, namespace};
use buildos_probe::INTERFACE as PROBE;
use buildos_service::file::read_bounded;
use buildos_types::{InterfaceName, MacAddress};

use super::model::{Host, Machine, MachineKind as Kind};

/// Largest file that is read of a process, and of the kernel's tables.
const FILE_LIMIT: usize = 1 << 20;
/// Bytes of an entry of `brforward` (`struct __fdb_entry` of linux/if_bridge.h).
const FORWARDING_ENTRY: usize = 16;

/// Observations of the kernel.
#[derive(Debug, Default)]
struct Observed {
    ports: Vec<Port>,
    processes: Vec<Process>,
    /// Addresses by MAC address: neighbours of the host.
    neighbours: BTreeMap<MacAddress, String>,
    uptime: Duration,
}

#[derive(Debug, Default)]
struct Port {
    name: String,
    bridge: String,
    macs: Vec<MacAddress>,
    /// Namespace of the peer of a veth pair.
    namespace: Option<i32>,
    traffic: Traffic,
}

#[derive(Debug, Default)]
struct Process {
    pid: u32,
    unit: String,
    qemu: Option<CommandLine>,
    /// Network namespace, if a port has its peer there.
    namespace: Option<i32>,
    stat: Stat,
    memory: Memory,
}

/// Finds the machines of the host.
pub(crate) fn find(host: &mut Host) {
    let observed = observe(host);
    host.machines = machines(host, &observed);
}

/// Joins what was observed.
fn machines(host: &Host, observed: &Observed) -> Vec<Machine> {
    let mut found = Vec::new();
    let mut with_port = Vec::new();
    for port in &observed.ports {
        let open_ports = host.open_ports.list.iter();
        let open_ports = open_ports.filter(|(_, _, link, ..)| *link == port.name);
        let open_ports = open_ports.map(|(outside, _, _, inside, end)| (*inside, *outside, *end));
        let mut machine = Machine {
            open_ports: open_ports.collect(),
            port: port.name.clone(),
            bridge: port.bridge.clone(),
            received: port.traffic.received,
            sent: port.traffic.sent,
            ..Machine::default()
        };
        let mut macs = port.macs.clone();
        let of_port = |process: &&Process| {
            let taps = process.qemu.iter().flat_map(|line| &line.taps);
            taps.into_iter().any(|tap| *tap == *port.name)
        };
        if let Some(process) = observed.processes.iter().find(of_port) {
            with_port.push(process.pid);
            machine.kind = Kind::Qemu;
            machine.describe(&[process], observed, host);
            macs.extend(process.qemu.iter().flat_map(|line| &line.macs));
        } else if port.namespace.is_some() {
            let inside = |process: &&Process| process.namespace == port.namespace;
            let inside: Vec<_> = observed.processes.iter().filter(inside).collect();
            if !inside.is_empty() {
                machine.kind = Kind::Container;
                machine.describe(&inside, observed, host);
            }
        }
        machine.add_address(&macs, observed, host);
        found.push(machine);
    }
    // Machines of agents at no port.
    for process in &observed.processes {
        let is_agents = Id::from_unit(&process.unit).is_some();
        if process.qemu.is_some() && is_agents && !with_port.contains(&process.pid) {
            let mut machine = Machine {
                kind: Kind::Qemu,
                ..Machine::default()
            };
            machine.describe(&[process], observed, host);
            found.push(machine);
        }
    }
    found
}

impl Machine {
    /// Adds what is known of its processes.
    fn describe(&mut self, processes: &[&Process], observed: &Observed, host: &Host) {
        let Some(first) = processes.iter().min_by_key(|process| process.stat.start) else {
            return;
        };
        self.process = first.pid;
        let qemu = processes.iter().find_map(|process| process.qemu.as_ref());
        self.consoles = qemu.map(|line| line.consoles.clone()).unwrap_or_default();
        self.unit = first.unit.clone();
        self.agent = Id::from_unit(&first.unit).map_or_else(String::new, |id| id.to_string());
        let age = observed.uptime.saturating_sub(first.stat.start);
        self.since_usec = host.taken_usec.saturating_sub(usec(age));
        self.cpu_usec = processes.iter().map(|process| usec(process.stat.cpu)).sum();
        self.memory = processes
            .iter()
            .map(|process| process.memory.resident)
            .sum();
        let mut known = host
            .agents
            .iter()
            .flat_map(|agent| &agent.instance.machines);
        if let Some((_, _, since, suspended)) = known.find(|machine| machine.0 == first.pid) {
            self.since_usec = *since;
            self.suspended_usec = *suspended;
        }
    }

    fn add_address(&mut self, macs: &[MacAddress], observed: &Observed, host: &Host) {
        let leased = |mac: &MacAddress| {
            let mut leases = host.usage.machines.iter();
            let text = mac.to_string();
            leases
                .find(|(_, hardware, _)| *hardware == text)
                .map(|(address, ..)| address.clone())
        };
        let address = |mac: &MacAddress| leased(mac).or(observed.neighbours.get(mac).cloned());
        let known = macs.iter().find_map(|mac| Some((*mac, address(mac)?)));
        if let Some(mac) = known.as_ref().map(|(mac, _)| mac).or(macs.first()) {
            self.hardware_address = mac.to_string();
        }
        self.address = known.map(|(_, address)| address).unwrap_or_default();
    }
}

fn usec(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn observe(host: &Host) -> Observed {
    let root = Path::new("/");
    let mut socket = BlockingSocket::open().ok();
    let peers = socket.as_mut().map(peers).unwrap_or_default();
    let mut ports = Vec::new();
    if let Some(network) = &host.network {
        for (bridge, names) in [
            (&network.private_bridge, &network.private_ports),
            (&network.public_bridge, &network.public_ports),
        ] {
            let forwarding = forwarding(root, bridge);
            let machines = names
                .iter()
                .filter(|n| **n != network.uplink && *n != PROBE);
            ports.extend(machines.map(|name| port(root, bridge, name, &forwarding, &peers)));
        }
    }
    let wanted: Vec<i32> = ports.iter().filter_map(|port| port.namespace).collect();
    let mut processes = Vec::new();
    for entry in fs::read_dir(root.join("proc"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        let qemu = group::command_line(root, pid);
        let namespace = match (&qemu, &mut socket) {
            (None, Some(socket)) if !wanted.is_empty() => namespace_of(socket, pid),
            (None | Some(_), _) => None,
        };
        let namespace = namespace.filter(|number| wanted.contains(number));
        if qemu.is_some() || namespace.is_some() {
            processes.extend(process(root, pid, qemu, namespace));
        }
    }
    Observed {
        ports,
        processes,
        neighbours: neighbours(&read(root, "proc/net/arp")),
        uptime: uptime(&read(root, "proc/uptime")),
    }
}

fn port(
    root: &Path,
    bridge: &str,
    name: &str,
    forwarding: &[(u16, MacAddress)],
    peers: &BTreeMap<String, i32>,
) -> Port {
    let number = read(root, &format!("sys/class/net/{name}/brport/port_no"));
    let number = number.trim().strip_prefix("0x").unwrap_or(number.trim());
    let number = u16::from_str_radix(number, 16).ok();
    let of_port = |(port, _): &&(u16, MacAddress)| Some(*port) == number;
    let macs = forwarding.iter().filter(of_port).map(|(_, mac)| *mac);
    let link: Vec<InterfaceName> = InterfaceName::new(name).into_iter().collect();
    Port {
        name: name.to_owned(),
        bridge: bridge.to_owned(),
        macs: macs.collect(),
        namespace: peers.get(name).copied(),
        traffic: group::traffic(root, &link),
    }
}

fn process(
    root: &Path,
    pid: u32,
    qemu: Option<CommandLine>,
    namespace: Option<i32>,
) -> Option<Process> {
    let file = |name: &str| {
        let path = root.join("proc").join(pid.to_string()).join(name);
        read_bounded(&path, FILE_LIMIT).unwrap_or_default()
    };
    Some(Process {
        pid,
        unit: unit(process::cgroup(&file("cgroup")).unwrap_or_default()).to_owned(),
        qemu,
        namespace,
        stat: process::stat(&file("stat"))?,
        memory: process::memory(&file("status")),
    })
}

/// Returns the unit of a control group: the outermost service or scope.
fn unit(cgroup: &str) -> &str {
    let mut parts = cgroup.split('/');
    let is_unit = |part: &&str| part.ends_with(".service") || part.ends_with(".scope");
    parts.find(is_unit).unwrap_or_default()
}

/// Returns the namespaces of the peers of links.
fn peers(socket: &mut BlockingSocket<RouteNetlinkMessage>) -> BTreeMap<String, i32> {
    let links = socket.dump(namespace::get_links()).unwrap_or_default();
    let peers = links.iter().filter_map(namespace::peer);
    peers.map(|(name, id)| (name.to_owned(), id)).collect()
}

fn namespace_of(socket: &mut BlockingSocket<RouteNetlinkMessage>, pid: u32) -> Option<i32> {
    namespace::number(&socket.get(namespace::get(pid)).ok()?)
}

/// Returns the learned MAC addresses of a bridge with the numbers of their ports.
fn forwarding(root: &Path, bridge: &str) -> Vec<(u16, MacAddress)> {
    let path = root.join("sys/class/net").join(bridge).join("brforward");
    // Its size in sysfs is not the size of its content.
    let table = fs::read(path).unwrap_or_default();
    parse_forwarding(&table)
}

fn parse_forwarding(table: &[u8]) -> Vec<(u16, MacAddress)> {
    let entries = table.chunks_exact(FORWARDING_ENTRY);
    entries
        .filter_map(|entry| {
            let [a, b, c, d, e, f, low, is_local, _, _, _, _, high, ..] = *entry else {
                return None;
            };
            let port = u16::from_be_bytes([high, low]);
            (is_local == 0).then_some((port, MacAddress([a, b, c, d, e, f])))
        })
        .collect()
}

/// Parses `/proc/net/arp` (proc_pid_net(5)).
fn neighbours(text: &str) -> BTreeMap<MacAddress, String> {
    let mut neighbours = BTreeMap::new();
    for line in text.lines().skip(1) {
        let mut fields = line.split_ascii_whitespace();
        let (address, mac) = (fields.next(), fields.nth(2));
        if let Some((address, mac)) = address.zip(mac.and_then(|mac| mac.parse().ok())) {
            neighbours.insert(mac, address.to_owned());
        }
    }
    neighbours
}

fn uptime(text: &str) -> Duration {
    let seconds = text
        .split_ascii_whitespace()
        .next()
        .and_then(|s| s.parse().ok());
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.unwrap_or_default()
}

fn read(root: &Path, path: &str) -> String {
    let content = read_bounded(&root.join(path), FILE_LIMIT).unwrap_or_default();
    String::from_utf8_lossy(&content).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::{NOW, ready};
    use buildos_agentd::machine::qemu::{Address, Console, ConsoleKind};

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);

    fn observed() -> Observed {
        let line = "kvm -nic tap,ifname=tap0 -device x,mac=02:00:00:00:00:09 -serial unix:/x";
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let process = |pid, unit: &str, start| Process {
            pid,
            unit: unit.into(),
            stat: Stat {
                parent: 1,
                cpu: Duration::from_secs(2),
                start: Duration::from_secs(start),
            },
            memory: Memory {
                resident: 1 << 20,
                peak: 0,
            },
            ..Process::default()
        };
        Observed {
            ports: vec![
                Port {
                    name: "tap0".into(),
                    bridge: "br1".into(),
                    traffic: Traffic {
                        received: 5,
                        sent: 6,
                    },
                    ..Port::default()
                },
                Port {
                    name: "ct0".into(),
                    bridge: "br0".into(),
                    macs: vec![MacAddress([2; 6])],
                    namespace: Some(4),
                    ..Port::default()
                },
            ],
            processes: vec![
                Process {
                    qemu: CommandLine::parse(&arguments),
                    ..process(7, "buildos-bbot@default.service", 40)
                },
                Process {
                    namespace: Some(4),
                    ..process(9, "buildos-bslave@x.service", 60)
                },
                Process {
                    namespace: Some(4),
                    ..process(8, "buildos-bslave@x.service", 50)
                },
            ],
            neighbours: [(MacAddress([2; 6]), "192.0.2.9".to_owned())].into(),
            uptime: Duration::from_secs(100),
        }
    }

    #[test]
    fn machines_are_joined_with_processes_and_addresses() {
        let mut host = ready();
        host.open_ports.list = vec![
            (61_000, "172.23.0.9".into(), "tap0".into(), 22, 99),
            (61_001, "172.23.0.8".into(), "tap1".into(), 22, 99),
        ];
        host.agents[0].instance.machines = vec![(7, vec!["tap0".into()], 77, 78)];
        let found = machines(&host, &observed());
        let qemu = Machine {
            port: "tap0".into(),
            bridge: "br1".into(),
            address: "172.23.0.9".into(),
            hardware_address: MAC.to_string(),
            agent: "bbot@default".into(),
            unit: "buildos-bbot@default.service".into(),
            kind: Kind::Qemu,
            process: 7,
            since_usec: 77,
            cpu_usec: 2_000_000,
            memory: 1 << 20,
            suspended_usec: 78,
            received: 5,
            sent: 6,
            open_ports: vec![(22, 61_000, 99)],
            consoles: vec![Console {
                kind: ConsoleKind::Serial,
                address: Address::Unix("/x".into()),
            }],
        };
        let container = Machine {
            port: "ct0".into(),
            bridge: "br0".into(),
            address: "192.0.2.9".into(),
            hardware_address: "02:02:02:02:02:02".into(),
            agent: "bslave@x".into(),
            unit: "buildos-bslave@x.service".into(),
            kind: Kind::Container,
            process: 8,
            since_usec: NOW - 50_000_000,
            cpu_usec: 4_000_000,
            memory: 2 << 20,
            ..Machine::default()
        };
        assert_eq!(found, [qemu, container]);
    }

    #[test]
    fn machine_without_port_and_port_without_machine_are_listed() {
        let mut observed = observed();
        observed.ports.remove(0);
        observed.ports[0].namespace = Some(5);
        let found = machines(&ready(), &observed);
        let brief: Vec<_> = found.iter().map(|m| (m.port.as_str(), m.kind)).collect();
        assert_eq!(brief, [("ct0", Kind::Unknown), ("", Kind::Qemu)]);
    }

    #[test]
    fn tables_of_the_kernel_are_parsed() {
        let mut table = vec![2, 0, 0, 0, 0, 9, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        table.extend([2, 0, 0, 0, 0, 8, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(parse_forwarding(&table), [(0x103, MAC)]);
        let text = "IP address HW type Flags HW address Mask Device\n\
                    172.23.0.9 0x1 0x2 02:00:00:00:00:09 * br1\nx\n";
        assert_eq!(neighbours(text), [(MAC, "172.23.0.9".to_owned())].into());
        assert_eq!(uptime("3.50 7.00\n"), Duration::from_millis(3500));
        assert_eq!(uptime("-1"), Duration::ZERO);
        assert_eq!(unit("a.slice/b@c.service/d.scope"), "b@c.service");
        assert_eq!(unit("init.scope"), "init.scope");
        assert_eq!(unit(""), "");
    }
}
