//! What a host says of itself, as one value: everything that is shown, judged or
//! counted is made of it, and of nothing else.
//!
//! In JSON keys are in lower case with underscores; `docs/buildosctl.schema.json`
//! has them all. Times are CLOCK_REALTIME microseconds since 1970, 0 for none.

use std::collections::BTreeMap;

use buildos_dbus_api::watch::Snapshot;
use serde::{Deserialize, Serialize};
use zbus::zvariant::{Type, as_value};

/// Counted up when a key changes its meaning or goes; new keys do not count.
pub(crate) const SCHEMA: u32 = 1;

/// A build host at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Host {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// The moment.
    pub(crate) taken_usec: u64,
    /// Version of buildos.
    pub(crate) version: String,
    /// What the host has booted, by its os-release(5).
    pub(crate) image: String,
    /// Whether a time server has been heard.
    pub(crate) clock_synchronised: bool,
    /// Daemons that do not answer, and why.
    pub(crate) silent: BTreeMap<Daemon, String>,
    /// buildos-netd, if it answers.
    pub(crate) network: Option<Network>,
    /// The links that it looks at.
    pub(crate) links: Vec<Link>,
    /// buildos-hostnamed, if it answers.
    pub(crate) name: Option<Naming>,
    /// buildos-natd, if it answers.
    pub(crate) nat: Option<Nat>,
    /// Who uses br1, and how much.
    pub(crate) usage: Usage,
    /// buildos-agentd, if it answers.
    pub(crate) manager: Option<Manager>,
    /// The agents.
    pub(crate) agents: Vec<Agent>,
}

/// One of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Daemon {
    /// buildos-netd.
    #[serde(rename = "netd")]
    Netd,
    /// buildos-hostnamed.
    #[serde(rename = "hostnamed")]
    Hostnamed,
    /// buildos-natd.
    #[serde(rename = "natd")]
    Natd,
    /// buildos-agentd.
    #[serde(rename = "agentd")]
    Agentd,
}

impl Daemon {
    /// Its unit without `.service`, which is also the name of its package.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Netd => "buildos-netd",
            Self::Hostnamed => "buildos-hostnamed",
            Self::Natd => "buildos-natd",
            Self::Agentd => "buildos-agentd",
        }
    }
}

/// Reads a struct out of a dictionary of variants and writes it with plain values.
macro_rules! dictionary {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$fmeta:meta])* $field:ident as $property:literal: $type:ty),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
        #[zvariant(signature = "a{sv}")]
        #[serde(default)]
        pub(crate) struct $name {
            $($(#[$fmeta])*
            #[serde(rename(deserialize = $property), deserialize_with = "as_value::deserialize")]
            pub(crate) $field: $type),+
        }
    };
}

/// The same for the properties of an interface.
macro_rules! properties {
    ($(#[$meta:meta])* $name:ident of $interface:literal { $($fields:tt)+ }) => {
        dictionary! { $(#[$meta])* $name { $($fields)+ } }

        impl Snapshot for $name {
            const INTERFACE: &'static str = $interface;
        }
    };
}

properties! {
    /// network1: uplink, lease, bridges.
    Network of "org.build2.buildos.network1.Manager" {
        state as "State": String,
        reason as "Reason": String,
        online as "Online": bool,
        uplink as "Uplink": String,
        uplink_address as "UplinkAddress": String,
        public_bridge as "PublicBridge": String,
        public_ports as "PublicPorts": Vec<String>,
        private_bridge as "PrivateBridge": String,
        private_ports as "PrivatePorts": Vec<String>,
        private_network as "PrivateNetwork": String,
        address as "Address": String,
        ipv6_addresses as "IPv6Addresses": Vec<String>,
        gateway as "Gateway": String,
        dns as "DNS": Vec<String>,
        search_domains as "SearchDomains": Vec<String>,
        ntp as "NTP": Vec<String>,
        lease as "Lease": Lease,
        configuration_problems as "ConfigurationProblems": Vec<String>,
    }
}

dictionary! {
    /// When the lease on br0 was got and what comes next.
    Lease {
        /// The DHCP server, or empty without a lease.
        server as "Server": String,
        /// When it was acknowledged.
        acquired_usec as "AcquiredUSec": u64,
        /// When its server is asked to extend it.
        renew_usec as "RenewUSec": u64,
        /// When every server is asked to.
        rebind_usec as "RebindUSec": u64,
        /// When it ends; 0 for never.
        expires_usec as "ExpiresUSec": u64,
    }
}

properties! {
    /// network1: a link.
    Link of "org.build2.buildos.network1.Link" {
        name as "Name": String,
        index as "Index": u32,
        hardware_address as "HardwareAddress": String,
        carrier as "Carrier": bool,
        role as "Role": String,
        dhcp_state as "DHCPState": String,
        reason as "Reason": String,
    }
}

properties! {
    /// hostname1: the name.
    Naming of "org.build2.buildos.hostname1.Manager" {
        hostname as "Hostname": String,
        source as "Source": String,
        reason as "Reason": String,
        refused as "Refused": Vec<String>,
        configuration_problems as "ConfigurationProblems": Vec<String>,
    }
}

properties! {
    /// nat1: what machines on br1 have.
    Nat of "org.build2.buildos.nat1.Manager" {
        state as "State": String,
        reason as "Reason": String,
        ready as "Ready": bool,
        table_installed as "TableInstalled": bool,
        dhcp_serving as "DHCPServing": bool,
        private_network as "PrivateNetwork": String,
        dhcp_range as "DHCPRange": Vec<String>,
        dns as "DNS": Vec<String>,
        foreign_drops as "ForeignDrops": Vec<String>,
        foreign_suspects as "ForeignSuspects": Vec<String>,
        bridge_netfilter as "BridgeNetfilter": bool,
        probe as "Probe": String,
        probe_step as "ProbeStep": String,
        probe_result as "ProbeResult": String,
        probe_usec as "ProbeUSec": u64,
        configuration_problems as "ConfigurationProblems": Vec<String>,
    }
}

properties! {
    /// nat1: who uses br1.
    Usage of "org.build2.buildos.nat1.Usage" {
        /// Address, hardware address, end of the lease (seconds since 1970, 0 for never).
        machines as "Machines": Vec<(String, String, u64)>,
        /// Packets and bytes by what was done with them.
        counters as "Counters": BTreeMap<String, (u64, u64)>,
        /// Tracked now, and how many can be.
        tracked_connections as "TrackedConnections": (u32, u32),
    }
}

properties! {
    /// agent1: the manager of the agents.
    Manager of "org.build2.buildos.agent1.Manager" {
        reason as "Reason": String,
        configuration_problems as "ConfigurationProblems": Vec<String>,
    }
}

/// An agent, and what systemd knows of its unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Agent {
    /// What agentd says.
    #[serde(flatten)]
    pub(crate) instance: Instance,
    /// Processes of the unit beside its main one: while there are any, a task runs.
    pub(crate) task_processes: usize,
    /// The controllers on its command line, and whether they were reached.
    pub(crate) controllers: Vec<Controller>,
}

impl Agent {
    /// As in the configuration: `bbot@default`.
    pub(crate) fn id(&self) -> String {
        format!("{}@{}", self.instance.kind, self.instance.name)
    }
}

properties! {
    /// agent1: an agent.
    Instance of "org.build2.buildos.agent1.Instance" {
        name as "Name": String,
        kind as "Kind": String,
        unit as "Unit": String,
        wanted as "Wanted": bool,
        state as "State": String,
        since_usec as "SinceUSec": u64,
        reason as "Reason": String,
        /// Word and sentence of each need that is not met.
        needs as "Needs": Vec<(String, String)>,
        restarts as "Restarts": u32,
        failures as "Failures": u32,
        crash_loop as "CrashLoop": bool,
        last_exit as "LastExit": String,
        main_pid as "MainPID": u32,
        next_start_usec as "NextStartUSec": u64,
        drain_deadline_usec as "DrainDeadlineUSec": u64,
    }
}

/// A controller of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Controller {
    /// As on the agent's command line, without the priority.
    pub(crate) url: String,
    /// What came of trying to connect: null when it was not tried, empty when it
    /// was reached, else why not.
    pub(crate) failure: Option<String>,
}

#[cfg(test)]
pub(crate) mod samples {
    //! Hosts for the tests.

    use super::*;

    /// 2026-11-24 07:00 UTC.
    pub(crate) const NOW: u64 = 1_795_503_600_000_000;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    /// A host whose only agent, bbot@default, waits for a task.
    pub(crate) fn ready() -> Host {
        let network = Network {
            state: "online".into(),
            reason: "br0 has 192.0.2.7/24 by eth0 from 192.0.2.1".into(),
            online: true,
            uplink: "eth0".into(),
            uplink_address: "de:ad:be:ef:b8:da".into(),
            public_bridge: "br0".into(),
            public_ports: strings(&["eth0"]),
            private_bridge: "br1".into(),
            private_ports: strings(&["tap0"]),
            private_network: "172.23.0.1/16".into(),
            address: "192.0.2.7/24".into(),
            gateway: "192.0.2.1".into(),
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
                link("eth0", 2, "uplink", true, "carrier; DHCP BOUND"),
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
            ..Host::default()
        }
    }

    /// A host on which nothing of ours runs.
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

    /// An agent in that state, with these unmet needs.
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
                    [(_, what), ..] => format!("waits: {what}"),
                },
                needs: needs
                    .iter()
                    .map(|(need, what)| (need.to_string(), what.to_string()))
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
        }
    }
}
