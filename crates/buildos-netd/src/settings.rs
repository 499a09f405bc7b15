//! Defines the configuration (buildos-netd.conf(5)).

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{ClientName, Identity};
use buildos_service::config::Schema;
use buildos_types::{MacAddress, PrivateNetwork};
use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::pattern::Pattern;
use crate::static_address::{BootAddress, StaticAddress};
use crate::uplink::path::{self, UplinkName, Uplinks};

/// Settings of buildos-netd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Private networks in order of preference.
    pub private: Vec<PrivateNetwork>,
    /// Links that are candidates although they are not physical NICs.
    pub include: Vec<Pattern>,
    /// Links that are not candidates.
    pub exclude: Vec<Pattern>,
    /// Sections `[uplink.NAME]`: paths of NICs to their networks.
    pub uplinks: Uplinks,
    /// NIC that the machine booted from.
    pub bootif: Option<MacAddress>,
    /// Role of `bootif` in the election.
    pub bootif_mode: BootifMode,
    /// Duration for which `bootif` may replace the first uplink.
    pub bootif_wait: Duration,
    /// What the host needs to be online.
    pub online_requires: OnlineRequires,
    /// Duration for which an offer waits for a better one on another NIC.
    pub head_start: Duration,
    /// Duration for which an uplink without carrier keeps its place.
    pub carrier_grace: Duration,
    /// If true, netd detects addresses in use by other hosts and declines them.
    pub detect_conflicts: bool,
    /// Accepted DHCP servers (option 54); empty for all.
    pub allow_servers: Vec<Ipv4Addr>,
    /// Networks in which no lease is accepted.
    pub deny_networks: Vec<Ipv4Net>,
    /// MTU of br0 and of the NICs that can become the uplink; [`None`] for that of the lease.
    pub mtu: Option<Mtu>,
    /// Metric of the routes.
    pub route_metric: u32,
    /// IPv6 on br0.
    pub ipv6: Ipv6,
    /// Address of br0 while no server grants a lease.
    pub static_address: Option<StaticAddress>,
    /// The same, of the boot by PXELINUX. `static_address` has precedence.
    pub boot_address: Option<StaticAddress>,
    /// Name servers used with these addresses.
    pub static_dns: Vec<Ipv4Addr>,
    /// Duration without a lease after which one of these addresses is used.
    pub static_wait: Duration,
    /// br0 keeps the address of an expired lease until a server grants a lease.
    pub keep_expired: bool,
    /// Option that carries the hostname.
    pub send_name: SendName,
    /// Identification of the host to servers.
    pub identity: Identity,
    /// If true, br0 keeps its hardware address when its port changes within one LAN.
    pub keep_identity: bool,
    /// If true, netd receives LLDP on the NICs that can become the uplink.
    pub lldp: bool,
}

/// Role of the NIC that the machine booted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootifMode {
    /// Its offers have precedence.
    #[default]
    Prefer,
    /// No other NIC becomes the uplink.
    Only,
}

/// A value of the key `bootif`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
enum Bootif {
    Nic(MacAddress),
    Mode(BootifMode),
}

impl TryFrom<String> for Bootif {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "prefer" => Ok(Self::Mode(BootifMode::Prefer)),
            "only" => Ok(Self::Mode(BootifMode::Only)),
            mac => mac.parse().map(Self::Nic).map_err(|error| {
                format!("{error}; or \"prefer\" or \"only\", for the NIC of BOOTIF=")
            }),
        }
    }
}

/// Condition for being online.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnlineRequires {
    /// A lease with a default route.
    #[default]
    DefaultRoute,
    /// A lease.
    Lease,
}

/// Largest packet in bytes that a link carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct Mtu(u32);

impl TryFrom<u32> for Mtu {
    type Error = String;

    /// Accepts what every host must accept (RFC 791) up to the largest IPv4 packet.
    fn try_from(bytes: u32) -> Result<Self, Self::Error> {
        match bytes {
            576..=65535 => Ok(Self(bytes)),
            _ => Err(format!("{bytes} is not an MTU from 576 to 65535")),
        }
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> Self {
        mtu.0
    }
}

/// IPv6 on br0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ipv6 {
    /// By router advertisements, unless an administrator disabled IPv6 in the kernel.
    #[default]
    Auto,
    /// None.
    Off,
}

/// Option by which DHCP servers learn the hostname.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SendName {
    /// Host name (option 12).
    #[default]
    Hostname,
    /// Fully qualified domain name (option 81).
    Fqdn,
    /// No option.
    None,
}

impl SendName {
    /// Returns the option for that hostname.
    #[must_use]
    pub fn option(self, name: String) -> Option<ClientName> {
        match self {
            Self::Hostname => Some(ClientName::Host(name)),
            Self::Fqdn => Some(ClientName::Fqdn(name)),
            Self::None => None,
        }
    }
}

impl Settings {
    /// Returns the address of br0 while no server grants a lease.
    #[must_use]
    pub fn fallback_address(&self) -> Option<&StaticAddress> {
        self.static_address.as_ref().or(self.boot_address.as_ref())
    }

    /// Returns the hardware address of the only NIC that may become the uplink, if `bootif`
    /// restricts it.
    #[must_use]
    pub fn required_nic(&self) -> Option<MacAddress> {
        self.bootif.filter(|_| self.bootif_mode == BootifMode::Only)
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
            uplinks: Uplinks::new(),
            bootif: None,
            bootif_mode: BootifMode::default(),
            // A NIC has carrier some seconds after it is set up. A switch port with spanning
            // tree forwards 30 s later.
            bootif_wait: Duration::from_secs(35),
            online_requires: OnlineRequires::default(),
            // A server that probes an address before it offers it takes this long.
            head_start: Duration::from_millis(1000),
            // A switch port with spanning tree forwards again within this time.
            carrier_grace: Duration::from_secs(35),
            detect_conflicts: true,
            allow_servers: Vec::new(),
            deny_networks: Vec::new(),
            mtu: None,
            // Routes of an administrator normally have 0 and win.
            route_metric: 1024,
            ipv6: Ipv6::default(),
            static_address: None,
            boot_address: None,
            static_dns: Vec::new(),
            // A switch port with spanning tree forwards after 30 s. DISCOVERs follow each other
            // at 3 s.
            static_wait: Duration::from_secs(40),
            keep_expired: false,
            send_name: SendName::default(),
            identity: Identity::default(),
            keep_identity: true,
            lldp: true,
        }
    }
}

/// Returns the keys.
#[must_use]
pub fn schema() -> Schema<Settings> {
    Schema::new("netd")
        .key(
            "private",
            "Address of the host on br1 with its prefix. netd takes a different network only if it overlaps with the uplink's networks.",
            |s: &mut Settings, network: PrivateNetwork| s.private.insert(0, network),
        )
        .key(
            "include",
            "Names of links that may become the uplink although they are not physical NICs (\"eth*\").",
            |s: &mut Settings, patterns| s.include = patterns,
        )
        .key(
            "exclude",
            "Names of links that must not become the uplink (\"enp9*\").",
            |s: &mut Settings, patterns| s.exclude = patterns,
        )
        .key(
            "bootif",
            "Hardware address of the NIC that the machine booted from, or its role: \"prefer\" (its offers have precedence) or \"only\" (no other NIC becomes the uplink).",
            |s: &mut Settings, value| match value {
                Bootif::Nic(mac) => s.bootif = Some(mac),
                Bootif::Mode(mode) => s.bootif_mode = mode,
            },
        )
        .alias("BOOTIF")
        .key(
            "bootif_head_start_ms",
            "Milliseconds that an offer waits for a better one on another NIC, such as bootif.",
            |s: &mut Settings, ms: u32| s.head_start = Duration::from_millis(ms.into()),
        )
        .key(
            "bootif_wait_s",
            "Seconds for which bootif may take br0 over from another NIC, after the search for a lease began.",
            |s: &mut Settings, seconds: u32| s.bootif_wait = Duration::from_secs(seconds.into()),
        )
        .key(
            "online_requires",
            "Condition for being online: \"default-route\" (a lease with a default route) or \"lease\".",
            |s: &mut Settings, required| s.online_requires = required,
        )
        .key(
            "carrier_grace_s",
            "Seconds that an uplink without carrier keeps its place before other NICs are tried.",
            |s: &mut Settings, seconds: u32| s.carrier_grace = Duration::from_secs(seconds.into()),
        )
        .key(
            "allow_servers",
            "DHCP servers (option 54) from which leases are accepted; empty for all.",
            |s: &mut Settings, servers| s.allow_servers = servers,
        )
        .key(
            "deny_networks",
            "Networks in which no lease is accepted (\"192.168.0.0/16\").",
            |s: &mut Settings, networks| s.deny_networks = networks,
        )
        .key(
            "detect_conflicts",
            "Detect addresses in use by other hosts with ARP and decline them (true).",
            |s: &mut Settings, detect| s.detect_conflicts = detect,
        )
        .key(
            "mtu",
            "Largest packet in bytes, of br0 and of the NICs that can become the uplink (576 to 65535); without it that of the lease.",
            |s: &mut Settings, mtu: Mtu| s.mtu = Some(mtu),
        )
        .key(
            "route_metric",
            "Metric of the IPv4 routes of br0 (1024); a smaller one has precedence.",
            |s: &mut Settings, metric| s.route_metric = metric,
        )
        .key(
            "ipv6",
            "IPv6 on br0: \"auto\" (by router advertisements) or \"off\".",
            |s: &mut Settings, ipv6| s.ipv6 = ipv6,
        )
        .key(
            "static",
            "Address of br0 while no server grants a lease (\"192.0.2.10/24 via 192.0.2.1\").",
            |s: &mut Settings, address| s.static_address = Some(address),
        )
        .key(
            "boot_address",
            "The same in the notation of PXELINUX (CLIENT:BOOT:GATEWAY:NETMASK); static has precedence.",
            |s: &mut Settings, BootAddress(address)| s.boot_address = address,
        )
        .alias("ip")
        .key(
            "static_dns",
            "Name servers used with the address of static or boot_address.",
            |s: &mut Settings, servers| s.static_dns = servers,
        )
        .key(
            "static_wait_s",
            "Seconds without a lease after which the address of static or boot_address is used (40).",
            |s: &mut Settings, seconds: u32| s.static_wait = Duration::from_secs(seconds.into()),
        )
        .key(
            "keep_expired",
            "Keep the address of a lease that expired until a server grants a lease (false).",
            |s: &mut Settings, keep| s.keep_expired = keep,
        )
        .key(
            "send_name",
            "Option by which servers learn the hostname: \"hostname\" (12), \"fqdn\" (81) or \"none\".",
            |s: &mut Settings, option| s.send_name = option,
        )
        .key(
            "vendor_class",
            "Vendor class (option 60) that servers receive.",
            |s: &mut Settings, class| s.identity.vendor_class = Some(class),
        )
        .key(
            "user_class",
            "User class (option 77) that servers receive.",
            |s: &mut Settings, class| s.identity.user_class = Some(class),
        )
        .key(
            "client_id",
            "Client identifier (option 61): \"mac\", or its bytes in hexadecimal.",
            |s: &mut Settings, id| s.identity.client_id = id,
        )
        .key(
            "keep_identity",
            "br0 keeps hardware address, client identifier and lease when its port changes within one LAN (true).",
            |s: &mut Settings, keep| s.keep_identity = keep,
        )
        .key(
            "lldp",
            "Receive LLDP on the NICs that can become the uplink, to show the switch and port of each (true). netd never sends it.",
            |s: &mut Settings, lldp| s.lldp = lldp,
        )
        .table("uplink.*", |s: &mut Settings, name: UplinkName| {
            s.uplinks.entry(name).or_default();
        })
        .named(
            "uplink.*.links",
            "NICs that the section is for: names, patterns or hardware addresses (\"eno*\").",
            |s: &mut Settings, name, links| s.uplinks.entry(name).or_default().links = links,
        )
        .named(
            "uplink.*.vlan",
            "VLAN of these NICs (1 to 4094), whose frames have a tag; without it frames have none.",
            |s: &mut Settings, name, vlan| s.uplinks.entry(name).or_default().vlan = Some(vlan),
        )
        .check(|s| path::remove_contradictions(&mut s.uplinks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_dhcp::ClientId;
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
    fn private_network_defaults_are_valid() {
        assert_eq!(
            Settings::default().private.len(),
            PrivateNetwork::DEFAULTS.len()
        );
    }

    #[test]
    fn command_line_of_booted_host_sets_bootif_and_private_network() {
        let (settings, problems) = evaluated(
            "BOOT_IMAGE=/buildos/buildos-image BOOTIF=01-de-ad-be-ef-b8-da buildos.netd.private=10.1.0.1/16",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(settings.bootif, Some("de:ad:be:ef:b8:da".parse().unwrap()));
        assert_eq!(settings.private[0], "10.1.0.1/16".parse().unwrap());
        assert_eq!(settings.private[1..], Settings::default().private);
    }

    #[test]
    fn command_line_lists_and_keywords_are_parsed() {
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
    fn bootif_has_address_and_role_from_two_parameters() {
        let (settings, problems) =
            evaluated("buildos.netd.bootif=only BOOTIF=01-de-ad-be-ef-b8-da");
        assert_eq!(problems, [""; 0]);
        let mac = "de:ad:be:ef:b8:da".parse().unwrap();
        assert_eq!(settings.required_nic(), Some(mac));
        let (settings, problems) =
            evaluated("buildos.netd.bootif=only buildos.netd.online_requires=lease");
        assert_eq!(problems, [""; 0]);
        assert_eq!(settings.required_nic(), None, "no NIC is known");
        assert_eq!(settings.online_requires, OnlineRequires::Lease);
        let (_, problems) = evaluated("buildos.netd.bootif=always");
        assert!(problems[0].contains("\"only\""), "{problems:?}");
    }

    #[test]
    fn command_line_sets_identity_of_host() {
        let (settings, problems) = evaluated(
            "buildos.netd.vendor_class=buildos buildos.netd.user_class=ci \
             buildos.netd.client_id=ff:00:01",
        );
        assert_eq!(problems, [""; 0]);
        let class = |name: &str| Some(name.to_owned().try_into().unwrap());
        let expected = Identity {
            vendor_class: class("buildos"),
            user_class: class("ci"),
            client_id: ClientId::Bytes(vec![0xff, 0, 1]),
        };
        assert_eq!(settings.identity, expected);
        let (settings, problems) = evaluated("buildos.netd.client_id=ff");
        assert_eq!(settings, Settings::default());
        assert!(
            problems[0].contains("2 to 255 bytes in hexadecimal"),
            "{problems:?}"
        );
    }

    #[test]
    fn command_line_sets_mtu_metric_and_ipv6() {
        let (settings, problems) =
            evaluated("buildos.netd.mtu=9000 buildos.netd.route_metric=100 buildos.netd.ipv6=off");
        assert_eq!(problems, [""; 0]);
        assert_eq!(settings.mtu.map(u32::from), Some(9000));
        assert_eq!((settings.route_metric, settings.ipv6), (100, Ipv6::Off));
        for (cmdline, error) in [
            (
                "buildos.netd.mtu=575",
                "575 is not an MTU from 576 to 65535",
            ),
            ("buildos.netd.route_metric=-1", "u32"),
            ("buildos.netd.ipv6=on", "`auto` or `off`"),
        ] {
            let (settings, problems) = evaluated(cmdline);
            assert_eq!(settings, Settings::default());
            assert!(problems[0].contains(error), "{problems:?}");
        }
    }

    #[test]
    fn command_line_sets_static_address() {
        let address = |text: &str| Some(text.to_owned().try_into().unwrap());
        let (settings, problems) = evaluated(
            "\"buildos.netd.static=192.0.2.10/24 via 192.0.2.1\" buildos.netd.static_wait_s=5 \
             buildos.netd.static_dns=192.0.2.1,192.0.2.2 buildos.netd.keep_expired=true \
             ip=192.0.2.77:192.0.2.2:192.0.2.1:255.255.255.0",
        );
        assert_eq!(problems, [""; 0]);
        let expected = address("192.0.2.10/24 via 192.0.2.1");
        assert_eq!(settings.fallback_address().cloned(), expected);
        let expected = address("192.0.2.77/24 via 192.0.2.1");
        assert_eq!(settings.boot_address, expected);
        assert_eq!(settings.static_dns.len(), 2);
        assert_eq!(settings.static_wait, Duration::from_secs(5));
        assert!(settings.keep_expired);
        let (settings, problems) = evaluated("ip=dhcp");
        assert_eq!((settings, problems), (Settings::default(), Vec::new()));
        let (settings, problems) = evaluated("buildos.netd.static=192.0.2.0/24");
        assert_eq!(settings, Settings::default());
        assert!(
            problems[0].contains("192.0.2.0 is not a host's"),
            "{problems:?}"
        );
    }

    #[test]
    fn value_invalid_is_reported_and_default_kept() {
        let (settings, problems) = evaluated("buildos.netd.private=10.1.0.0/16");
        assert_eq!(settings, Settings::default());
        assert_eq!(
            problems,
            [
                "kernel command line: buildos.netd.private: 10.1.0.0/16 is the network or broadcast address; try 10.1.0.1/16"
            ]
        );
    }
}
