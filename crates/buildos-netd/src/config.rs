//! What may be configured (buildos-netd.conf(5)).

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::ClientName;
use buildos_service::config::Schema;
use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::pattern::Pattern;
use buildos_types::MacAddress;
use buildos_types::PrivateNetwork;

/// Settings of buildos-netd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Private networks in the order of preference.
    pub private: Vec<PrivateNetwork>,
    /// Links that count although they are no physical NICs.
    pub include: Vec<Pattern>,
    /// Links that take no part.
    pub exclude: Vec<Pattern>,
    /// NIC that the machine booted from.
    pub bootif: Option<MacAddress>,
    /// How long the offers of other NICs wait for one of `bootif`.
    pub head_start: Duration,
    /// How long an uplink without carrier keeps other NICs from taking over.
    pub carrier_grace: Duration,
    /// Whether addresses that others use are found and declined.
    pub detect_conflicts: bool,
    /// DHCP servers to take leases from; empty for all.
    pub allow_servers: Vec<Ipv4Addr>,
    /// Networks in which no lease is taken.
    pub deny_networks: Vec<Ipv4Net>,
    /// How servers are told the host's name.
    pub send_name: SendName,
}

/// How a DHCP server is told the host's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SendName {
    /// As host name (option 12).
    #[default]
    Hostname,
    /// As fully qualified name (option 81).
    Fqdn,
    /// Not at all.
    None,
}

impl SendName {
    /// What a server is told of a host of that name.
    #[must_use]
    pub fn told(self, name: String) -> Option<ClientName> {
        match self {
            Self::Hostname => Some(ClientName::Host(name)),
            Self::Fqdn => Some(ClientName::Fqdn(name)),
            Self::None => None,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            private: PrivateNetwork::DEFAULTS
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
            include: Vec::new(),
            exclude: Vec::new(),
            bootif: None,
            // A server that probes an address before it offers it takes that long.
            head_start: Duration::from_millis(1000),
            // A switch port that restarts with spanning tree is back within this.
            carrier_grace: Duration::from_secs(35),
            detect_conflicts: true,
            allow_servers: Vec::new(),
            deny_networks: Vec::new(),
            send_name: SendName::default(),
        }
    }
}

/// The keys.
#[must_use]
pub fn schema() -> Schema<Settings> {
    Schema::new("netd")
        .key(
            "private",
            "Address of the host on br1 with its prefix; others are taken only when it overlaps with the uplink's networks.",
            |s: &mut Settings, network: PrivateNetwork| s.private.insert(0, network),
        )
        .key(
            "include",
            "Names of links that may become the uplink although they are no physical NICs (\"eth*\").",
            |s: &mut Settings, patterns| s.include = patterns,
        )
        .key(
            "exclude",
            "Names of links that take no part (\"enp9*\").",
            |s: &mut Settings, patterns| s.exclude = patterns,
        )
        .key(
            "bootif",
            "Hardware address of the NIC whose offers are preferred.",
            |s: &mut Settings, mac| s.bootif = Some(mac),
        )
        .alias("BOOTIF")
        .key(
            "bootif_head_start_ms",
            "Milliseconds that offers on other NICs wait for one on bootif.",
            |s: &mut Settings, ms: u32| s.head_start = Duration::from_millis(ms.into()),
        )
        .key(
            "carrier_grace_s",
            "Seconds that an uplink without carrier keeps its place before other NICs are tried.",
            |s: &mut Settings, seconds: u32| s.carrier_grace = Duration::from_secs(seconds.into()),
        )
        .key(
            "allow_servers",
            "DHCP servers (option 54) to take leases from; all when empty.",
            |s: &mut Settings, servers| s.allow_servers = servers,
        )
        .key(
            "deny_networks",
            "Networks in which no lease is taken (\"192.168.0.0/16\").",
            |s: &mut Settings, networks| s.deny_networks = networks,
        )
        .key(
            "detect_conflicts",
            "Whether addresses that another host uses are found by ARP and declined (true).",
            |s: &mut Settings, detect| s.detect_conflicts = detect,
        )
        .key(
            "send_name",
            "How servers are told the host's name: \"hostname\" (option 12), \"fqdn\" (option 81) or \"none\".",
            |s: &mut Settings, how| s.send_name = how,
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_service::config::{Fragment, Origin, evaluate};

    fn evaluated(cmdline: &str) -> (Settings, Vec<String>) {
        let fragment = Fragment {
            origin: Origin::KernelCommandLine,
            text: cmdline.into(),
        };
        let loaded = evaluate(&schema(), &[fragment]);
        (
            loaded.settings,
            loaded.problems.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn every_default_is_a_private_network() {
        assert_eq!(
            Settings::default().private.len(),
            PrivateNetwork::DEFAULTS.len()
        );
    }

    #[test]
    fn the_kernel_command_line_of_a_booted_host() {
        let (settings, problems) = evaluated(
            "BOOT_IMAGE=/buildos/buildos-image BOOTIF=01-de-ad-be-ef-b8-da buildos.netd.private=10.1.0.1/16",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(settings.bootif, Some("de:ad:be:ef:b8:da".parse().unwrap()));
        assert_eq!(settings.private[0], "10.1.0.1/16".parse().unwrap());
        assert_eq!(settings.private[1..], Settings::default().private);
    }

    #[test]
    fn lists_and_words_on_the_kernel_command_line() {
        let (settings, problems) = evaluated(
            "buildos.netd.allow_servers=192.0.2.1,192.0.2.2 buildos.netd.deny_networks=192.168.0.0/16 \
             buildos.netd.detect_conflicts=false buildos.netd.send_name=fqdn",
        );
        assert_eq!(problems, [""; 0]);
        let servers = [[192, 0, 2, 1], [192, 0, 2, 2]].map(Ipv4Addr::from);
        assert_eq!(settings.allow_servers, servers);
        assert_eq!(
            settings.deny_networks,
            ["192.168.0.0/16".parse::<Ipv4Net>().unwrap()]
        );
        assert!(!settings.detect_conflicts);
        assert_eq!(settings.send_name, SendName::Fqdn);
    }

    #[test]
    fn a_bad_value_leaves_the_default() {
        let (settings, problems) = evaluated("buildos.netd.private=10.1.0.0/16");
        assert_eq!(settings, Settings::default());
        assert_eq!(
            problems,
            [
                "kernel command line: buildos.netd.private: 10.1.0.0/16: this is the network's own or its broadcast address; try 10.1.0.1/16"
            ]
        );
    }
}
