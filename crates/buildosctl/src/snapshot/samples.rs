//! Provides hosts for the tests.

use std::collections::BTreeMap;

use super::model::{
    Agent, Controller, Daemon, Host, HostKey, Instance, Lease, Link, Manager, Naming, Nat, Network,
    SCHEMA, Usage,
};

/// 2026-11-24 07:00 UTC.
pub(crate) const NOW: u64 = 1_795_503_600_000_000;

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// Returns a host whose only agent, bbot@default, waits for a task.
pub(crate) fn ready() -> Host {
    let network = Network {
        state: "online".into(),
        reason: "br0 has 192.0.2.7/24 by eth0 from 192.0.2.1".into(),
        online: true,
        uplink: "eth0".into(),
        uplink_address: "de:ad:be:ef:b8:da".into(),
        uplink_neighbour: "sw1 port Gi1/0/12".into(),
        public_bridge: "br0".into(),
        public_ports: strings(&["eth0"]),
        private_bridge: "br1".into(),
        private_ports: strings(&["tap0"]),
        private_network: "172.23.0.1/16".into(),
        address: "192.0.2.7/24".into(),
        address_origin: "lease".into(),
        gateway: "192.0.2.1".into(),
        gateway_reachability: "reachable".into(),
        dns: strings(&["192.0.2.1"]),
        lease: Lease {
            server: "192.0.2.1".into(),
            acquired_usec: NOW - 60_000_000,
            renew_usec: NOW + 1_740_000_000,
            rebind_usec: NOW + 3_090_000_000,
            expires_usec: NOW + 3_540_000_000,
        },
        ..Network::default()
    };
    let link = |name: &str, index, role: &str, carrier, reason: &str| Link {
        name: name.into(),
        index,
        hardware_address: "de:ad:be:ef:b8:da".into(),
        carrier,
        role: role.into(),
        reason: reason.into(),
        ..Link::default()
    };
    Host {
        schema: SCHEMA,
        taken_usec: NOW,
        version: "0.1.0".into(),
        image: "Debian GNU/Linux 13 (trixie)".into(),
        clock_synchronised: true,
        network: Some(network),
        links: vec![
            Link {
                neighbour_system: "sw1".into(),
                neighbour_port: "Gi1/0/12".into(),
                neighbour_untagged_vlan: 42,
                neighbour_tagged_vlans: vec![10, 20],
                ..link("eth0", 2, "uplink", true, "carrier; DHCP BOUND")
            },
            link("eth1", 3, "candidate", false, "no carrier"),
        ],
        name: Some(Naming {
            hostname: "build-adbeefb8da".into(),
            source: "mac".into(),
            reason: "build-adbeefb8da by the hardware address of the uplink".into(),
            ..Naming::default()
        }),
        nat: Some(Nat {
            state: "active".into(),
            reason: "172.23.0.0/16 on br1 goes out through br0".into(),
            ready: true,
            table_installed: true,
            dhcp_serving: true,
            probe: "passed".into(),
            probe_result: "passed in 48 ms".into(),
            probe_usec: NOW - 120_000_000,
            ..Nat::default()
        }),
        usage: Usage {
            machines: vec![(
                "172.23.0.9".into(),
                "02:00:00:00:00:09".into(),
                NOW / 1_000_000 + 3600,
            )],
            counters: BTreeMap::from([("new connections".into(), (5, 300))]),
            tracked_connections: (7, 65_536),
        },
        manager: Some(Manager {
            reason: "1 agent runs".into(),
            ..Manager::default()
        }),
        agents: vec![agent("bbot@default", "running", &[])],
        ssh_host_keys: vec![HostKey {
            kind: "ED25519".into(),
            fingerprint: "SHA256:Bbpk8cdSyWlh6jV9N5oJh4IzLGpaEqAPcSdqJYEsdLI".into(),
        }],
        ..Host::default()
    }
}

/// Returns a host on which no daemon answers.
pub(crate) fn silent() -> Host {
    let daemons = [
        Daemon::Netd,
        Daemon::Hostnamed,
        Daemon::Natd,
        Daemon::Agentd,
    ];
    Host {
        silent: daemons
            .map(|daemon| (daemon, "it is not running".to_owned()))
            .into(),
        ..Host::default()
    }
}

/// Returns an agent in a state, with missing requirements.
pub(crate) fn agent(id: &str, state: &str, needs: &[(&str, &str)]) -> Agent {
    let (kind, name) = id.split_once('@').unwrap();
    Agent {
        instance: Instance {
            kind: kind.into(),
            name: name.into(),
            unit: format!("buildos-{id}.service"),
            wanted: !matches!(state, "stopped" | "drained" | "draining"),
            state: state.into(),
            reason: match needs {
                [] => format!("{state} since 06:59"),
                [(_, reason), ..] => format!("waits: {reason}"),
            },
            needs: needs
                .iter()
                .map(|(need, reason)| (need.to_string(), reason.to_string()))
                .collect(),
            main_pid: u32::from(state == "running") * 77,
            ..Instance::default()
        },
        task_processes: 0,
        controllers: match kind {
            "bbot" => vec![Controller {
                url: "https://ci.example.com/".into(),
                failure: Some(String::new()),
            }],
            _ => Vec::new(),
        },
        ..Agent::default()
    }
}
