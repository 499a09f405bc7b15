//! Defines natd's configuration: files in `natd.conf.d`, `buildos.natd.*` on the kernel
//! command line.

use std::time::Duration;

use buildos_probe::Target;
use buildos_service::config::Schema;
use buildos_types::DomainName;
use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::firewall::model::Transport;

/// The active settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `dhcp_lease_s`; [`None`] for a time that suits the size of the network.
    pub lease: Option<LeaseTime>,
    /// `open_ports`: ports of the host that machines may use besides DHCP, DNS and TFTP.
    pub open: Vec<Port>,
    /// `isolate_machines`: machines cannot reach each other.
    pub isolate: bool,
    /// `require_lease`: machines use only the addresses that dnsmasq leased to them.
    pub require_lease: bool,
    /// `block_private`: machines cannot reach private networks behind the uplink.
    pub block_private: bool,
    /// `allow_private`: networks excepted from `block_private`.
    pub allow_private: Vec<Ipv4Net>,
    /// `machine_connections`.
    pub connections: ConnectionLimit,
    /// `machine_leases`; [`None`] for a number that suits the size of the network.
    pub leases: Option<LeaseLimit>,
    /// `bridge_netfilter`.
    pub bridge_netfilter: BridgeNetfilter,
    /// `probe_interval_s`.
    pub probe_interval: ProbeInterval,
    /// `probe_name`: a name that must resolve.
    pub probe_name: Option<DomainName>,
    /// `probe_targets`: a probe must reach one of them. Empty means the name servers and
    /// the gateway of the uplink.
    pub probe_targets: Vec<Target>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: None,
            open: Vec::new(),
            isolate: false,
            require_lease: true,
            block_private: false,
            allow_private: Vec::new(),
            connections: ConnectionLimit::default(),
            leases: None,
            bridge_netfilter: BridgeNetfilter::default(),
            probe_interval: ProbeInterval::default(),
            probe_name: None,
            probe_targets: Vec::new(),
        }
    }
}

/// A port of the host, written `tcp:8080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Port {
    /// The protocol.
    pub transport: Transport,
    /// The number.
    pub number: u16,
}

/// The text is not a port.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not tcp:NUMBER or udp:NUMBER with a number from 1 to 65535")]
pub struct NotAPort(String);

impl TryFrom<String> for Port {
    type Error = NotAPort;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let port = text.split_once(':').and_then(|(transport, number)| {
            let transport = match transport {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                _ => return None,
            };
            let number = number.parse().ok().filter(|number| *number != 0)?;
            Some(Self { transport, number })
        });
        port.ok_or(NotAPort(text))
    }
}

/// Largest number of connections that the kernel tracks for a machine: so many to the
/// outside, and so many to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct ConnectionLimit(u32);

/// A limit outside of its range.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not between 256 and 65536 connections")]
pub struct NotAConnectionLimit(u32);

impl ConnectionLimit {
    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for ConnectionLimit {
    /// A build has hundreds of connections at a time. The kernel tracks 262,144 in all
    /// (nf_conntrack_max with more than 4 GB of RAM), 128 times this limit. It tracks a
    /// DNS query for 30 s, so a machine can ask 68 names a second. While a machine opens
    /// connections at its limit, the kernel walks through them once per tick (250 Hz),
    /// which takes some per cent of a CPU.
    fn default() -> Self {
        Self(2048)
    }
}

impl TryFrom<u32> for ConnectionLimit {
    type Error = NotAConnectionLimit;

    fn try_from(number: u32) -> Result<Self, Self::Error> {
        match number {
            256..=65_536 => Ok(Self(number)),
            _ => Err(NotAConnectionLimit(number)),
        }
    }
}

/// Largest number of leases of the machines behind one port of br1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct LeaseLimit(u32);

/// A limit outside of its range.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not between 1 and 65536 leases")]
pub struct NotALeaseLimit(u32);

impl LeaseLimit {
    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for LeaseLimit {
    type Error = NotALeaseLimit;

    fn try_from(number: u32) -> Result<Self, Self::Error> {
        match number {
            1..=65_536 => Ok(Self(number)),
            _ => Err(NotALeaseLimit(number)),
        }
    }
}

/// Decides whether frames bridged on br1 pass iptables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BridgeNetfilter {
    /// While a rule matches ports of a bridge (iptables' physdev), as rules of the build
    /// bot's agent do.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Seconds between two probes; 0 switches probes off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct ProbeInterval(u32);

/// The number is not an interval between two probes.
#[derive(Debug, thiserror::Error)]
#[error("{0} is neither 0 (no probes) nor between 10 and 86400 (a day) seconds")]
pub struct NotAProbeInterval(u32);

impl ProbeInterval {
    /// Returns the interval, or [`None`] if probes are off.
    #[must_use]
    pub fn get(self) -> Option<Duration> {
        (self.0 > 0).then(|| Duration::from_secs(self.0.into()))
    }
}

impl Default for ProbeInterval {
    /// Five minutes. A probe costs about twenty packets.
    fn default() -> Self {
        Self(300)
    }
}

impl TryFrom<u32> for ProbeInterval {
    type Error = NotAProbeInterval;

    fn try_from(seconds: u32) -> Result<Self, Self::Error> {
        match seconds {
            0 | 10..=86_400 => Ok(Self(seconds)),
            _ => Err(NotAProbeInterval(seconds)),
        }
    }
}

/// The lease time of machines on br1, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct LeaseTime(u32);

/// The number is below dnsmasq's minimum or above a week.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not between 120 (two minutes, the minimum of dnsmasq) and 604800 (a week) seconds")]
pub struct NotALeaseTime(u32);

impl LeaseTime {
    /// The minimum of dnsmasq.
    pub const SHORTEST: Duration = Duration::from_secs(120);
    /// The time for networks with many addresses. Machines are short-lived: their addresses
    /// must become free soon. Longer-lived machines renew.
    pub const DEFAULT: Duration = Duration::from_secs(3600);

    /// Returns the lease time.
    #[must_use]
    pub fn get(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl TryFrom<u32> for LeaseTime {
    type Error = NotALeaseTime;

    fn try_from(seconds: u32) -> Result<Self, Self::Error> {
        match seconds {
            120..=604_800 => Ok(Self(seconds)),
            _ => Err(NotALeaseTime(seconds)),
        }
    }
}

/// Returns the schema of the configuration.
#[must_use]
pub fn schema() -> Schema<Settings> {
    Schema::new("natd")
        .key(
            "dhcp_lease_s",
            "Seconds that a machine on br1 may keep its address without renewing its lease (4 for each address, 120 to 3600).",
            |settings: &mut Settings, lease| settings.lease = Some(lease),
        )
        .key(
            "open_ports",
            "Ports of the host that machines may use besides DHCP, DNS and TFTP ([\"tcp:8080\"]).",
            |settings: &mut Settings, ports| settings.open = ports,
        )
        .key(
            "isolate_machines",
            "Prevent machines on br1 from reaching each other (false).",
            |settings: &mut Settings, isolate| settings.isolate = isolate,
        )
        .key(
            "require_lease",
            "Let machines use only the addresses that they have by DHCP (true).",
            |settings: &mut Settings, require| settings.require_lease = require,
        )
        .key(
            "block_private",
            "Prevent machines from reaching private networks behind the uplink (false).",
            |settings: &mut Settings, block| settings.block_private = block,
        )
        .key(
            "allow_private",
            "Networks that machines reach despite block_private ([\"10.0.5.0/24\"]).",
            |settings: &mut Settings, networks: Vec<Ipv4Net>| {
                settings.allow_private = networks.iter().map(Ipv4Net::trunc).collect();
            },
        )
        .key(
            "machine_connections",
            "Connections that a machine may have at a time, to the outside and to the host each (2048).",
            |settings: &mut Settings, limit| settings.connections = limit,
        )
        .key(
            "machine_leases",
            "Leases that the machines behind one port of br1 may have at a time (a quarter of the addresses, at most 64).",
            |settings: &mut Settings, limit| settings.leases = Some(limit),
        )
        .key(
            "bridge_netfilter",
            "Whether bridged frames of br1 pass iptables: auto (while a rule of iptables needs it), on, off.",
            |settings: &mut Settings, when| settings.bridge_netfilter = when,
        )
        .key(
            "probe_interval_s",
            "Seconds between two probes of the network of machines (300); 0 disables probes.",
            |settings: &mut Settings, interval| settings.probe_interval = interval,
        )
        .key(
            "probe_name",
            "Name that a probe must be able to resolve; without it, any answer except a failure passes.",
            |settings: &mut Settings, name| settings.probe_name = Some(name),
        )
        .key(
            "probe_targets",
            "Targets of which a probe must reach one ([\"echo:192.0.2.1\", \"tcp:192.0.2.2:443\", \"dns:192.0.2.3\"]).",
            |settings: &mut Settings, targets| settings.probe_targets = targets,
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_service::config::{Fragment, Origin, evaluate};

    fn load(text: &str) -> (Settings, Vec<String>) {
        let fragment = Fragment {
            origin: Origin::File("natd.toml".into()),
            text: text.to_owned(),
        };
        let loaded = evaluate(&schema(), &[fragment]);
        let problems = loaded.problems.iter().map(ToString::to_string).collect();
        (loaded.settings, problems)
    }

    #[test]
    fn lease_time_outside_limits_is_refused() {
        let (settings, problems) = load("dhcp_lease_s = 600");
        let lease = settings.lease.map(LeaseTime::get);
        assert_eq!(lease, Some(Duration::from_secs(600)));
        assert_eq!(problems, [""; 0]);
        let (settings, problems) = load("dhcp_lease_s = 60");
        assert_eq!(settings, Settings::default());
        assert!(
            problems[0].contains("60 is not between 120"),
            "{problems:?}"
        );
    }

    #[test]
    fn connection_limit_outside_its_range_is_refused() {
        let (settings, problems) = load("machine_connections = 256");
        assert_eq!((settings.connections.get(), problems), (256, vec![]));
        for bad in ["255", "65537", "-1"] {
            let (settings, problems) = load(&format!("machine_connections = {bad}"));
            assert_eq!(settings.connections.get(), 2048);
            assert_eq!(problems.len(), 1, "{problems:?}");
        }
    }

    #[test]
    fn lease_limit_outside_its_range_is_refused() {
        let (settings, problems) = load("machine_leases = 1");
        let limit = settings.leases.map(LeaseLimit::get);
        assert_eq!((limit, problems), (Some(1), vec![]));
        for bad in ["0", "65537"] {
            let (settings, problems) = load(&format!("machine_leases = {bad}"));
            assert_eq!(settings.leases, None);
            assert_eq!(problems.len(), 1, "{problems:?}");
        }
    }

    #[test]
    fn port_needs_protocol_and_number() {
        let (settings, problems) = load(r#"open_ports = ["tcp:8080", "udp:123"]"#);
        let ports: Vec<_> = settings.open.iter().map(|port| port.number).collect();
        assert_eq!((ports, problems), (vec![8080, 123], vec![]));
        for bad in ["8080", "tcp:0", "tcp:65536", "sctp:1", "tcp:http"] {
            let (settings, problems) = load(&format!("open_ports = [\"{bad}\"]"));
            assert_eq!(settings.open, []);
            assert!(problems[0].contains("is not tcp:NUMBER"), "{problems:?}");
        }
    }

    #[test]
    fn probe_keys_are_checked() {
        let (settings, problems) = load(
            "probe_interval_s = 60\nprobe_name = \"a.example\"\n\
             probe_targets = [\"tcp:192.0.2.1:443\", \"echo:192.0.2.2\"]\n\
             bridge_netfilter = \"on\"\nallow_private = [\"10.1.2.3/16\"]",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(settings.probe_interval.get(), Some(Duration::from_secs(60)));
        assert_eq!(settings.probe_targets.len(), 2);
        assert_eq!(settings.bridge_netfilter, BridgeNetfilter::On);
        assert_eq!(settings.allow_private[0].to_string(), "10.1.0.0/16");
        let (settings, problems) = load("probe_interval_s = 0");
        assert_eq!((settings.probe_interval.get(), problems), (None, vec![]));
        let (_, problems) = load("probe_interval_s = 1\nprobe_targets = [\"192.0.2.1\"]");
        assert!(problems[0].contains("1 is neither 0"), "{problems:?}");
        assert!(problems[1].contains("is not a target"), "{problems:?}");
    }
}
