//! Defines the state of a host as one value, from which all output derives.
//!
//! The doc comments of the types here are the descriptions in
//! `docs/buildosctl.schema.json`. Times are CLOCK_REALTIME microseconds since 1970; 0
//! means that there is no such time.

use std::collections::BTreeMap;
use std::path::PathBuf;

use buildos_agentd::machine::qemu::Console;
use buildos_dbus_api::watch::Snapshot;
use buildos_updated::state::Updated;
use serde::{Deserialize, Serialize};
use zbus::zvariant::{Type, as_value};

/// Version of the JSON format: raised if a key changes its meaning or is removed.
pub(crate) const SCHEMA: u32 = 1;

/// buildosctl status --json
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "status"))]
pub(crate) struct Host {
    /// Version of this format: 1. It is raised if a key changes its meaning or is removed;
    /// new keys do not raise it.
    pub(crate) schema: u32,
    /// Time of the reading, in microseconds since 1970
    pub(crate) taken_usec: u64,
    /// Version of buildos
    pub(crate) version: String,
    /// System that the host has booted, by os-release(5)
    pub(crate) image: String,
    /// True if the kernel reports a synchronised clock
    pub(crate) clock_synchronised: bool,
    /// Daemons that do not answer, with the reason
    pub(crate) silent: BTreeMap<Daemon, String>,
    /// buildos-netd; null if it does not answer
    pub(crate) network: Option<Network>,
    /// Links that buildos-netd observes
    pub(crate) links: Vec<Link>,
    /// buildos-hostnamed; null if it does not answer
    pub(crate) name: Option<Naming>,
    /// buildos-natd; null if it does not answer
    pub(crate) nat: Option<Nat>,
    /// Use of br1
    pub(crate) usage: Usage,
    /// Ports of machines that are open on br0
    pub(crate) open_ports: OpenPorts,
    /// buildos-agentd; null if it does not answer
    pub(crate) manager: Option<Manager>,
    /// All agents
    pub(crate) agents: Vec<Agent>,
    /// Machines on the bridges. Only `machines` reads them.
    #[serde(skip)]
    pub(crate) machines: Vec<Machine>,
    /// Host keys of the SSH server; empty if it does not run
    pub(crate) ssh_host_keys: Vec<HostKey>,
    /// State volume, as in buildos-volumes(8); null if no disk has had its label in this boot
    pub(crate) state_volume: Option<StateVolume>,
    /// Choices of an operator about updates
    pub(crate) choices: Choices,
    /// Machine volume in RAM, as in buildos-updated(8); null without `machines.ram_mib`
    pub(crate) ram_volume: Option<RamVolume>,
    /// Trial of an operating system in this boot, or the return from one; null without
    pub(crate) os_trial: Option<OsTrial>,
    /// Last run of buildos-updated. Only `metrics` reads it.
    #[serde(skip)]
    pub(crate) update: Option<Updated>,
}

/// State volume, as in buildos-volumes(8)
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct StateVolume {
    /// absent, refused, failed, mounted, active, full, read-only, slow, failing or gone
    pub(crate) state: String,
    /// True if an operator has to act
    pub(crate) fault: bool,
    /// Node of its device, or empty
    pub(crate) device: String,
    /// State in one line, for people
    pub(crate) reason: String,
    /// Remark for the operator although the volume is in use, or empty
    pub(crate) warning: String,
    /// Time of the last saving, in microseconds since 1970, or 0
    pub(crate) saved_usec: u64,
    /// Size of the file system in bytes, or 0
    pub(crate) size: u64,
    /// Free bytes
    pub(crate) free: u64,
}

/// Choices of an operator about updates, as in buildos-updated(8)
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Choices {
    /// Reason of the hold; null if updates are not held
    pub(crate) hold: Option<String>,
    /// Machines that stay at a revision
    pub(crate) pinned: BTreeMap<String, u64>,
    /// Machines that are taken although `machines.select` does not match them
    pub(crate) added: Vec<String>,
    /// Machines that are not taken
    pub(crate) removed: Vec<String>,
    /// Why the choices end with this boot, or empty
    pub(crate) not_kept: String,
    /// Why the choices are not known, or empty
    pub(crate) problem: String,
}

/// Machine volume in RAM, as in buildos-updated(8)
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RamVolume {
    /// used, disk (a disk has the label of the volume) or failed
    pub(crate) state: String,
    /// True if an operator has to act
    pub(crate) fault: bool,
    /// Name of the volume
    pub(crate) volume: String,
    /// Size in MiB, or 0
    pub(crate) mib: u64,
    /// State in one line, for people
    pub(crate) reason: String,
}

/// Trial of an operating system, as in buildos-updated(8)
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct OsTrial {
    /// trial, proven, or returned
    pub(crate) state: String,
    /// Version on trial; empty after a return
    pub(crate) version: String,
    /// What is not good, or why the host returned; empty otherwise
    pub(crate) reason: String,
    /// SHA-256 digest of its kernel
    pub(crate) image: String,
    /// SHA-256 digest of its initrd
    pub(crate) initrd: String,
    /// End of the trial, in microseconds since 1970, or 0
    pub(crate) deadline_usec: u64,
}

/// Host key of the SSH server
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct HostKey {
    /// Type, as ssh-keygen(1) shows it: ED25519, ECDSA, RSA
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Fingerprint, as ssh(1) shows it: SHA256:…
    pub(crate) fingerprint: String,
}

/// A daemon of buildos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub(crate) enum Daemon {
    Netd,
    Hostnamed,
    Natd,
    Agentd,
}

impl Daemon {
    /// Returns the name of its unit without `.service`, which is also that of its package.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Netd => "buildos-netd",
            Self::Hostnamed => "buildos-hostnamed",
            Self::Natd => "buildos-natd",
            Self::Agentd => "buildos-agentd",
        }
    }
}

/// Defines a struct that is read from a dictionary of variants and written with plain
/// values.
macro_rules! dictionary {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$fmeta:meta])* $field:ident as $property:literal: $type:ty),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[zvariant(signature = "a{sv}")]
        #[serde(default)]
        pub(crate) struct $name {
            $($(#[$fmeta])*
            #[serde(rename(deserialize = $property), deserialize_with = "as_value::deserialize")]
            pub(crate) $field: $type),+
        }
    };
}

/// Defines a struct of the properties of a D-Bus interface: of a manager, or of an object.
macro_rules! properties {
    ($(#[$meta:meta])* $name:ident of manager $interface:literal { $($fields:tt)+ }) => {
        dictionary! { $(#[$meta])* $name { $($fields)+ } }

        impl Snapshot for $name {
            const INTERFACE: &'static str = $interface;
            const CACHED: bool = true;
        }
    };
    ($(#[$meta:meta])* $name:ident of object $interface:literal { $($fields:tt)+ }) => {
        dictionary! { $(#[$meta])* $name { $($fields)+ } }

        impl Snapshot for $name {
            const INTERFACE: &'static str = $interface;
        }
    };
}

properties! {
    /// Uplink, lease and bridges, as in org.build2.buildos.network1(5)
    Network of manager "org.build2.buildos.network1.Manager" {
        /// no-carrier, acquiring, online, no-default-route or carrier-lost
        state as "State": String,
        /// State in one line, for people
        reason as "Reason": String,
        /// True in the state online
        online as "Online": bool,
        /// True if a better lease on another NIC would replace the lease of br0
        provisional as "Provisional": bool,
        /// NIC in br0, or empty
        uplink as "Uplink": String,
        /// Hardware address of the uplink, or empty
        uplink_address as "UplinkAddress": String,
        /// Device and port at the other end of the uplink's cable by LLDP, or empty
        uplink_neighbour as "UplinkNeighbour": String,
        /// br0
        public_bridge as "PublicBridge": String,
        /// Ports of br0
        public_ports as "PublicPorts": Vec<String>,
        /// br1
        private_bridge as "PrivateBridge": String,
        /// Ports of br1
        private_ports as "PrivatePorts": Vec<String>,
        /// Address of the host on br1 with its prefix, or empty
        private_network as "PrivateNetwork": String,
        /// Address of br0 with its prefix, or empty
        address as "Address": String,
        /// lease, expired-lease or static; empty without an address
        address_origin as "AddressOrigin": String,
        /// IPv6 addresses of br0 with their prefixes
        ipv6_addresses as "IPv6Addresses": Vec<String>,
        /// Default gateway, or empty
        gateway as "Gateway": String,
        /// unknown, reachable or unreachable by ARP; empty without a gateway
        gateway_reachability as "GatewayReachability": String,
        /// Name servers of the lease
        dns as "DNS": Vec<String>,
        /// Search domains of the lease
        search_domains as "SearchDomains": Vec<String>,
        /// Time servers of the lease
        ntp as "NTP": Vec<String>,
        /// Lease on br0
        lease as "Lease": Lease,
        /// Mistakes in the configuration, one line each
        configuration_problems as "ConfigurationProblems": Vec<String>,
    }
}

dictionary! {
    /// Lease on br0; times in microseconds since 1970
    Lease {
        /// DHCP server, or empty without a lease
        server as "Server": String,
        /// Time of the last acknowledgement
        acquired_usec as "AcquiredUSec": u64,
        /// Time of the renewal with this server (T1)
        renew_usec as "RenewUSec": u64,
        /// Time of the request to any server (T2)
        rebind_usec as "RebindUSec": u64,
        /// End of the lease; 0 if it never ends
        expires_usec as "ExpiresUSec": u64,
    }
}

properties! {
    /// Network interface, as in org.build2.buildos.network1(5)
    Link of object "org.build2.buildos.network1.Link" {
        /// Kernel name
        name as "Name": String,
        /// Kernel index
        index as "Index": u32,
        /// MAC address
        hardware_address as "HardwareAddress": String,
        /// True if the link has carrier
        carrier as "Carrier": bool,
        /// ignored, candidate, uplink, nic (of a VLAN) or bridge
        role as "Role": String,
        /// State of its DHCP client as in RFC 2131, or empty
        dhcp_state as "DHCPState": String,
        /// Reason for role and state, in one line
        reason as "Reason": String,
        /// Number of the VLAN, if netd made the link for one; otherwise 0
        vlan as "VLAN": u16,
        /// NIC of that VLAN, or empty
        vlan_parent as "VLANParent": String,
        /// Device at the other end of the cable by LLDP, or empty
        neighbour_system as "NeighbourSystem": String,
        /// Its port, or empty
        neighbour_port as "NeighbourPort": String,
        /// VLAN of frames without a tag on that port; 0 if the device does not say
        neighbour_untagged_vlan as "NeighbourUntaggedVLAN": u16,
        /// VLANs of frames with a tag on that port
        neighbour_tagged_vlans as "NeighbourTaggedVLANs": Vec<u16>,
    }
}

properties! {
    /// Host name, as in org.build2.buildos.hostname1(5)
    Naming of manager "org.build2.buildos.hostname1.Manager" {
        /// Current name, or empty
        hostname as "Hostname": String,
        /// static, configuration, dhcp-fqdn, dhcp-hostname, mac or none
        source as "Source": String,
        /// Reason for the choice, in one line
        reason as "Reason": String,
        /// Refused names, with the reason
        refused as "Refused": Vec<String>,
        /// Mistakes in the configuration, one line each
        configuration_problems as "ConfigurationProblems": Vec<String>,
    }
}

properties! {
    /// NAT, DHCP and DNS for machines on br1, as in org.build2.buildos.nat1(5)
    Nat of manager "org.build2.buildos.nat1.Manager" {
        /// waiting, active or degraded
        state as "State": String,
        /// State in one line, for people
        reason as "Reason": String,
        /// True if a machine on br1 can work
        ready as "Ready": bool,
        /// True if table inet buildos is in the kernel
        table_installed as "TableInstalled": bool,
        /// True if dnsmasq serves br1
        dhcp_serving as "DHCPServing": bool,
        /// Address of the host on br1 with its prefix, or empty
        private_network as "PrivateNetwork": String,
        /// First and last address that machines get
        dhcp_range as "DHCPRange": Vec<String>,
        /// Name servers that dnsmasq asks
        dns as "DNS": Vec<String>,
        /// Rules of other tables that drop packets of machines
        foreign_drops as "ForeignDrops": Vec<String>,
        /// Rules of other tables that can drop packets of machines
        foreign_suspects as "ForeignSuspects": Vec<String>,
        /// True if bridged frames pass iptables
        bridge_netfilter as "BridgeNetfilter": bool,
        /// off, pending, passed or failed
        probe as "Probe": String,
        /// Step at which the last probe failed, or empty
        probe_step as "ProbeStep": String,
        /// Result of the last probe, in one line
        probe_result as "ProbeResult": String,
        /// End of the last probe, in microseconds since 1970, or 0
        probe_usec as "ProbeUSec": u64,
        /// Resources that are nearly used up (addresses, connections, machine-connections,
        /// names), with one line each
        shortages as "Shortages": BTreeMap<String, String>,
        /// Mistakes in the configuration, one line each
        configuration_problems as "ConfigurationProblems": Vec<String>,
    }
}

properties! {
    /// Use of br1, as in org.build2.buildos.nat1(5)
    Usage of object "org.build2.buildos.nat1.Usage" {
        /// Machines on br1 with a lease: address, hardware address, and end of the lease in
        /// seconds since 1970 (0: never)
        machines as "Machines": Vec<(String, String, u64)>,
        /// Packets and bytes by treatment
        counters as "Counters": BTreeMap<String, (u64, u64)>,
        /// Connections that the kernel tracks now, and the largest possible number
        tracked_connections as "TrackedConnections": (u32, u32),
    }
}

properties! {
    /// Ports of machines that are open on br0, as in org.build2.buildos.nat1(5)
    OpenPorts of manager "org.build2.buildos.nat1.Ports" {
        /// Port of br0, address of the machine, its port of br1, its TCP port, and end in
        /// microseconds since 1970
        list as "OpenPorts": Vec<(u16, String, String, u16, u64)>,
    }
}

properties! {
    /// Manager of the agents, as in org.build2.buildos.agent1(5)
    Manager of manager "org.build2.buildos.agent1.Manager" {
        /// State in one line, for people
        reason as "Reason": String,
        /// Mistakes in the configuration, one line each
        configuration_problems as "ConfigurationProblems": Vec<String>,
    }
}

/// Agent, as in org.build2.buildos.agent1(5), with the processes of its unit
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Agent {
    #[serde(flatten)]
    pub(crate) instance: Instance,
    /// Processes of the unit apart from its main process. If there are any, a task runs.
    pub(crate) task_processes: usize,
    /// Controllers on its command line
    pub(crate) controllers: Vec<Controller>,
    /// Commands that sudo refused in its present or last run, the newest first; null if the
    /// journal was not read. Only `why` and `agents` read it.
    pub(crate) refused_commands: Option<Vec<String>>,
    /// Fingerprint of the key that signs its answers, as controllers compute it: the SHA-256
    /// sum of the public RSA key in DER. A sentence if the key has none; null if it has no
    /// key, does not run, or the key may not be read. Only `agents` reads it.
    pub(crate) auth_key: Option<String>,
    /// Faults that the log of its present run names, the newest first; null if the journal
    /// was not read. Only `why` reads it.
    pub(crate) complaints: Option<Vec<Complaint>>,
    /// Its present or last run
    #[serde(skip)]
    pub(crate) run: Run,
}

/// Line of a log that names a fault
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Complaint {
    /// Time of the line, in microseconds since 1970
    pub(crate) usec: u64,
    #[allow(missing_docs)]
    pub(crate) fault: Fault,
    /// The line
    pub(crate) text: String,
}

/// Fault that a line of a log names
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// 401: the controller demands a key
    Unauthorized,
    /// 400: the controller refuses what the request contains
    BadRequest,
    /// 413: the request is too long
    TooLong,
    /// The certificate of the controller is not valid yet
    NotYetValid,
    /// The certificate of the controller has expired
    Expired,
    /// No known authority has issued the certificate of the controller
    UnknownIssuer,
    /// The certificate is the one of a different host
    WrongName,
    /// No answer in time, although the connection exists
    Stalled,
}

/// Present or last run of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// `$INVOCATION_ID` of systemd.exec(5), or empty
    pub(crate) invocation: String,
    /// User of its processes, or [`None`] if none runs
    pub(crate) uid: Option<u32>,
    /// Its start
    pub(crate) start_usec: u64,
    /// File with the key that signs its answers
    pub(crate) key_file: Option<PathBuf>,
    /// Most RAM that it has used, in bytes; [`None`] if the kernel does not report it
    pub(crate) memory_peak: Option<u64>,
}

impl Agent {
    /// Returns the name as in the configuration: `bbot@default`.
    pub(crate) fn id(&self) -> String {
        format!("{}@{}", self.instance.kind, self.instance.name)
    }
}

properties! {
    /// Agent, as in org.build2.buildos.agent1(5)
    Instance of object "org.build2.buildos.agent1.Instance" {
        /// Name in the configuration
        name as "Name": String,
        /// bbot or bslave
        kind as "Kind": String,
        /// Its unit
        unit as "Unit": String,
        /// True if it is to run: neither stopped nor drained
        wanted as "Wanted": bool,
        /// waiting, starting, running, delayed, stopped, draining, drained or invalid
        state as "State": String,
        /// Time of the last change of the state, in microseconds since 1970
        since_usec as "SinceUSec": u64,
        /// State in one line, for people
        reason as "Reason": String,
        /// Missing requirements: key and sentence
        needs as "Needs": Vec<(String, String)>,
        /// Restarts after it ended by itself
        restarts as "Restarts": u32,
        /// Ends by itself in a row
        failures as "Failures": u32,
        /// True if it ends repeatedly
        crash_loop as "CrashLoop": bool,
        /// Result of its last run, or empty
        last_exit as "LastExit": String,
        /// Main process, or 0
        main_pid as "MainPID": u32,
        /// Time of the next start, in microseconds since 1970, or 0
        next_start_usec as "NextStartUSec": u64,
        /// Virtual machines: process of QEMU, its taps, start, and time since which it got no
        /// CPU time (0: it is not suspended), in microseconds since 1970
        machines as "Machines": Vec<(u32, Vec<String>, u64, u64)>,
        /// Sums over the machines that have ended since buildos-agentd was started: ended,
        /// time_usec, cpu_usec, received, sent; and memory_peak, most RAM of one of them
        machine_totals as "MachineTotals": BTreeMap<String, u64>,
        /// Time when a drain stops its tasks, in microseconds since 1970, or 0
        drain_deadline_usec as "DrainDeadlineUSec": u64,
    }
}

/// Port of a bridge with its machine
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Machine {
    /// Port of the bridge, or empty if the machine has no known port
    pub(crate) port: String,
    /// Bridge of the port, or empty
    pub(crate) bridge: String,
    /// IPv4 address of a lease or of a neighbour of the host, or empty if none is known
    pub(crate) address: String,
    /// MAC address, or empty if the machine has sent nothing
    pub(crate) hardware_address: String,
    /// Agent in whose unit its process is, or empty
    pub(crate) agent: String,
    /// Unit of its process, or empty
    pub(crate) unit: String,
    /// qemu, container, or unknown if no process was found
    pub(crate) kind: MachineKind,
    /// Process of QEMU, or first process of a container; 0 if none was found
    pub(crate) process: u32,
    /// Start of the process, in microseconds since 1970, or 0
    pub(crate) since_usec: u64,
    /// CPU time that it used, in microseconds
    pub(crate) cpu_usec: u64,
    /// RAM that it uses, in bytes
    pub(crate) memory: u64,
    /// Time since which it got no CPU time, in microseconds since 1970; 0 if it is not suspended
    pub(crate) suspended_usec: u64,
    /// Bytes that the machine received by this port
    pub(crate) received: u64,
    /// Bytes that the machine sent by this port
    pub(crate) sent: u64,
    /// Open TCP ports: that of the machine, that of br0, and end in microseconds since 1970
    pub(crate) open_ports: Vec<(u16, u16, u64)>,
    /// Sockets that QEMU serves
    #[serde(skip)]
    pub(crate) consoles: Vec<Console>,
}

/// Kind of a machine
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub(crate) enum MachineKind {
    Qemu,
    Container,
    #[default]
    Unknown,
}

/// Controller of an agent
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Controller {
    /// URL on the agent's command line, without the priority
    pub(crate) url: String,
    /// Null if no connection was tried, empty if it succeeded, otherwise the error
    pub(crate) failure: Option<String>,
}
