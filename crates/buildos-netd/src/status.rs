//! Derives the status, which D-Bus, `state.json`, `STATUS=` and the files in
//! `/run/buildos/netd` show.

use std::net::Ipv4Addr;

use buildos_dbus_api::network1::{AddressOrigin, LinkRole, Network, Reachability, State};
use buildos_dhcp::{Instant, Lease};
use buildos_types::{InterfaceName, LinkIndex, MacAddress, PrivateNetwork};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::lldp::Neighbour;
use crate::observed::{Link, Observed, PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use crate::reconcile::{Reconciler, is_global};
use crate::settings::{OnlineRequires, Settings};
use crate::uplink::candidate::{self, Exclusion};
use crate::uplink::contender::Contender;
use crate::uplink::election::Election;

/// The status of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    #[allow(missing_docs)]
    pub state: State,
    /// Explanation of the state in one line, for operators.
    pub reason: String,
    /// br0 has a lease that a better one on another NIC would replace.
    pub provisional: bool,
    /// Name of the port of br0, and hardware address of br0: that of the NIC that the lease
    /// was granted on.
    pub uplink: Option<(InterfaceName, MacAddress)>,
    /// Device and port at the other end of the uplink's cable, by LLDP, or empty.
    pub uplink_neighbour: String,
    /// Hardware address of the port of br0.
    #[serde(skip)]
    pub port_mac: Option<MacAddress>,
    /// Address of the host on br1; [`None`] until br1 has it.
    pub private: Option<PrivateNetwork>,
    /// The lease of br0, or what br0 has without one; [`None`] until br0 has its address.
    pub lease: Option<Lease>,
    /// Origin of the address of br0; [`None`] without one.
    pub address_origin: Option<AddressOrigin>,
    /// Whether the gateway answers; [`None`] without a gateway.
    pub gateway_reachability: Option<Reachability>,
    /// Hardware address of the gateway, if it answered.
    #[serde(skip)]
    pub gateway_mac: Option<MacAddress>,
    /// Time of the lease, CLOCK_REALTIME in microseconds; 0 without a lease.
    pub acquired_usec: u64,
    /// IPv6 addresses of br0 in use, which the kernel configures.
    pub ipv6: Vec<Ipv6Net>,
    /// Names of the ports of br0: the uplink, and ports added by other programs.
    pub public_ports: Vec<InterfaceName>,
    /// Names of the ports of br1.
    pub private_ports: Vec<InterfaceName>,
    /// All links except the loopback interface.
    pub links: Vec<LinkStatus>,
    /// Errors in the configuration, one line each.
    pub configuration_problems: Vec<String>,
}

/// The status of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct LinkStatus {
    pub index: LinkIndex,
    pub name: InterfaceName,
    pub mac: Option<MacAddress>,
    pub carrier: bool,
    pub role: LinkRole,
    /// RFC 2131 state of its DHCP client; [`None`] unless it is a candidate.
    pub dhcp_state: Option<&'static str>,
    /// Explanation of role and state in one line, for operators.
    pub reason: String,
    /// Device at the other end of the cable, by LLDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<Neighbour>,
    /// NIC and number, if it is a VLAN that netd made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<(InterfaceName, u16)>,
}

/// Two clocks, read at the same time.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// CLOCK_BOOTTIME.
    pub boottime: Instant,
    /// CLOCK_REALTIME since the epoch.
    pub realtime: Instant,
}

impl Clocks {
    /// Returns CLOCK_REALTIME in microseconds.
    #[must_use]
    pub fn realtime_usec(self) -> u64 {
        u64::try_from(self.realtime.as_micros()).unwrap_or(u64::MAX)
    }

    /// Converts a time of CLOCK_BOOTTIME to CLOCK_REALTIME in microseconds. Rounds it to
    /// seconds, so that repeated conversions of a time agree.
    fn seconds_usec(self, at: Instant) -> u64 {
        let ago = self.boottime.saturating_sub(at);
        self.realtime
            .saturating_sub(ago)
            .as_secs()
            .saturating_mul(1_000_000)
    }
}

impl Status {
    /// Derives the status from the last observation and the election.
    #[must_use]
    pub fn new(
        reconciler: &Reconciler,
        configuration_problems: Vec<String>,
        clocks: Clocks,
    ) -> Self {
        let (observed, election) = (reconciler.observed(), reconciler.election());
        let lease = lease(reconciler);
        let private = reconciler.private_network().filter(|private| {
            has_address(observed, PRIVATE_BRIDGE, |net| *net == private.interface())
        });
        let required = reconciler.settings().online_requires;
        let state = state(election, lease, required);
        let provisional = lease.is_some() && election.is_provisional();
        let names = |bridge| observed.ports(bridge).map(|link| link.name.clone());
        let public = observed.bridge(PUBLIC_BRIDGE).map(|bridge| bridge.index);
        let ipv6 = observed.ipv6.iter();
        let ipv6 = ipv6.filter(|(link, _)| Some(*link) == public);
        Self {
            state,
            reason: format!(
                "{}{}{}{}",
                problem(reconciler),
                reason(state, election, lease, reconciler.settings()),
                ipv6_only(observed, election),
                overlap(reconciler)
            ),
            provisional,
            uplink: election
                .port()
                .map(|port| (port.candidate.name.clone(), port.client.mac())),
            uplink_neighbour: text_or_empty(
                election
                    .port()
                    .and_then(|port| reconciler.neighbours().get(port.candidate.nic)),
            ),
            port_mac: election.port().map(|port| port.candidate.mac),
            private,
            address_origin: lease.map(|lease| origin(lease, election)),
            gateway_reachability: lease.and_then(|_| election.gateway_reachability()),
            gateway_mac: election.gateway_mac(),
            acquired_usec: lease.map_or(0, |lease| clocks.seconds_usec(lease.acquired)),
            lease: lease.cloned(),
            ipv6: ipv6.map(|(_, net)| *net).collect(),
            public_ports: names(PUBLIC_BRIDGE).collect(),
            private_ports: names(PRIVATE_BRIDGE).collect(),
            links: links(reconciler),
            configuration_problems,
        }
    }

    /// Returns the part of the status that other daemons use.
    #[must_use]
    pub fn published(&self) -> Network {
        let lease = self.lease.as_ref();
        let servers = |servers: &[Ipv4Addr]| servers.iter().map(ToString::to_string).collect();
        Network {
            state: self.state.as_str().to_owned(),
            reason: self.reason.clone(),
            online: self.state == State::Online,
            uplink: text_or_empty(self.uplink.as_ref().map(|(name, _)| name)),
            uplink_address: text_or_empty(self.uplink.as_ref().map(|(_, mac)| mac)),
            candidates: self.candidates().map(ToString::to_string).collect(),
            public_bridge: PUBLIC_BRIDGE.to_owned(),
            private_bridge: PRIVATE_BRIDGE.to_owned(),
            private_network: text_or_empty(self.private),
            address: text_or_empty(lease.map(|l| format!("{}/{}", l.address, l.prefix))),
            gateway: text_or_empty(lease.and_then(Lease::gateway)),
            dns: lease.map(|l| servers(&l.dns)).unwrap_or_default(),
            search_domains: self.search_domains(),
            hostname: text_or_empty(lease.and_then(|l| l.hostname.as_ref())),
            fqdn: text_or_empty(lease.and_then(|l| l.fqdn.as_ref())),
        }
    }

    /// Returns the names of the links that are the uplink or can become it.
    pub fn candidates(&self) -> impl Iterator<Item = &InterfaceName> {
        let links = self.links.iter();
        links
            .filter(|link| matches!(link.role, LinkRole::Uplink | LinkRole::Candidate))
            .map(|link| &link.name)
    }

    /// Returns the search domains of the lease: option 119, else option 15.
    #[must_use]
    pub fn search_domains(&self) -> Vec<String> {
        match &self.lease {
            None => Vec::new(),
            Some(lease) if lease.search.is_empty() => lease.domain.iter().cloned().collect(),
            Some(lease) => lease.search.clone(),
        }
    }
}

/// Returns the text of a value, or an empty text without a value.
pub(crate) fn text_or_empty(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// Returns [`Status::lease`].
#[must_use]
pub fn lease(reconciler: &Reconciler) -> Option<&Lease> {
    let is_address = |lease: &Lease, net: &Ipv4Net| net.addr() == lease.address;
    let lease = reconciler.election().lease();
    lease.filter(|lease| {
        has_address(reconciler.observed(), PUBLIC_BRIDGE, |net| {
            is_address(lease, net)
        })
    })
}

fn has_address(observed: &Observed, bridge: &str, matches: impl Fn(&Ipv4Net) -> bool) -> bool {
    let bridge = observed.bridge(bridge).map(|bridge| bridge.index);
    let mut addresses = observed.addresses.iter();
    addresses.any(|address| Some(address.link) == bridge && matches(&address.net))
}

fn origin(lease: &Lease, election: &Election) -> AddressOrigin {
    match lease.is_configured() {
        true => AddressOrigin::Static,
        false if election.is_lease_expired() => AddressOrigin::ExpiredLease,
        false => AddressOrigin::Lease,
    }
}

fn state(election: &Election, lease: Option<&Lease>, required: OnlineRequires) -> State {
    let has_carrier = |contender: &Contender| contender.candidate.carrier;
    match lease {
        Some(_) if !election.port().is_some_and(has_carrier) => State::CarrierLost,
        Some(lease) => {
            let [has_default_route, ..] = lease.qualities();
            match required {
                OnlineRequires::DefaultRoute if !has_default_route => State::NoDefaultRoute,
                OnlineRequires::DefaultRoute | OnlineRequires::Lease => State::Online,
            }
        }
        None if election.contenders().any(has_carrier) => State::Acquiring,
        None => State::NoCarrier,
    }
}

fn links(reconciler: &Reconciler) -> Vec<LinkStatus> {
    let (observed, election) = (reconciler.observed(), reconciler.election());
    let (settings, neighbours) = (reconciler.settings(), reconciler.neighbours());
    let port = election.port().map(|port| port.candidate.index);
    let links = observed.links.values().filter(|link| link.name != "lo");
    links
        .map(|link| {
            let contender = election.contender(link.index);
            let (role, reason) = match contender {
                Some(contender) => (
                    match port == Some(link.index) {
                        true => LinkRole::Uplink,
                        false => LinkRole::Candidate,
                    },
                    contender_reason(link, contender),
                ),
                None => other_link(link, observed, settings),
            };
            LinkStatus {
                index: link.index,
                name: link.name.clone(),
                mac: link.mac,
                carrier: link.up && link.carrier,
                role,
                dhcp_state: contender.map(|contender| contender.client.state().as_str()),
                reason,
                neighbour: neighbours.get(observed.nic_of(link.index)).cloned(),
                vlan: own_vlan(link, observed),
            }
        })
        .collect()
}

/// Returns [`LinkStatus::vlan`].
fn own_vlan(link: &Link, observed: &Observed) -> Option<(InterfaceName, u16)> {
    let vlan = link.own_vlan()?;
    let nic = observed.links.get(&vlan.nic)?;
    Some((nic.name.clone(), vlan.id))
}

fn contender_reason(link: &Link, contender: &Contender) -> String {
    let claims = claims(contender);
    let dhcp = format!("{}{claims}", contender.client.status());
    match contender.client.lease() {
        _ if link.carrier => format!("carrier; DHCP {dhcp}"),
        Some(_) => format!("no carrier; {dhcp}"),
        None => "no carrier".to_owned(),
    }
}

/// Returns an addition about another host that claims the address; empty without one.
fn claims(contender: &Contender) -> String {
    let Some(detector) = contender.detector() else {
        return String::new();
    };
    let proxy = detector.proxy().map(|by| {
        format!("; {by} answers ARP for every address, which is ignored (detect_conflicts)")
    });
    let contest = detector
        .contested_by()
        .map(|by| format!("; {by} claims this address, too"));
    proxy.into_iter().chain(contest).collect()
}

/// Returns role and reason of a link that is not a contender.
fn other_link(link: &Link, observed: &Observed, settings: &Settings) -> (LinkRole, String) {
    let is_ours = [PUBLIC_BRIDGE, PRIVATE_BRIDGE].contains(&link.name.as_str());
    if is_ours && link.bridge.is_none() {
        let reason = "has the name of a bridge of buildos-netd, but is not a bridge; remove or \
                      rename it";
        return (LinkRole::Ignored, reason.to_owned());
    }
    if is_ours {
        return (LinkRole::Bridge, "made by buildos-netd".to_owned());
    }
    let mut private_ports = observed.ports(PRIVATE_BRIDGE);
    let reason = if private_ports.any(|port| port.index == link.index) {
        format!("port of {PRIVATE_BRIDGE}, added by another program")
    } else {
        match candidate::check_with_settings(link, observed, settings) {
            Ok(()) => "not examined yet".to_owned(),
            Err(exclusion @ Exclusion::NicOfVlan(..)) => {
                return (LinkRole::Nic, exclusion.to_string());
            }
            Err(exclusion) => exclusion.to_string(),
        }
    };
    (LinkRole::Ignored, reason)
}

fn reason(state: State, election: &Election, lease: Option<&Lease>, settings: &Settings) -> String {
    let port = text_or_empty(election.port().map(|port| &port.candidate.name));
    match (state, lease) {
        (State::Online | State::NoDefaultRoute, Some(lease)) => {
            let net = format!("{}/{}", lease.address, lease.prefix);
            let has = match origin(lease, election) {
                AddressOrigin::Lease => format!("has {net} by {port} from {}", lease.server),
                AddressOrigin::Static => {
                    format!("has the static address {net} by {port}, as no server grants a lease")
                }
                AddressOrigin::ExpiredLease => format!(
                    "keeps {net} by {port} from {}, although its lease expired (keep_expired)",
                    lease.server
                ),
            };
            let claims = election.port().map(claims).unwrap_or_default();
            let gateway = lease.gateway().filter(|_| election.is_gateway_silent());
            let gateway = gateway
                .map(|gateway| format!("; gateway {gateway} does not answer"))
                .unwrap_or_default();
            let rest = shortcomings(state, election);
            format!("br0 {has}{claims}{gateway}{rest}")
        }
        (State::CarrierLost, Some(lease)) => {
            let (address, prefix) = (lease.address, lease.prefix);
            format!("no carrier on {port}; br0 keeps {address}/{prefix}")
        }
        (State::NoCarrier, _) => {
            let names = election.contenders().map(|c| c.candidate.name.as_str());
            match names.collect::<Vec<_>>().as_slice() {
                [] => match settings.required_nic() {
                    Some(mac) => format!("no Ethernet NIC {mac}, and bootif is \"only\""),
                    None => "no Ethernet NIC".to_owned(),
                },
                names => format!("no carrier on {}", names.join(", ")),
            }
        }
        (State::Acquiring | State::Online | State::NoDefaultRoute | State::CarrierLost, _) => {
            let with_carrier = election.contenders().filter(|c| c.candidate.carrier);
            let reasons: Vec<_> = with_carrier
                .map(|c| format!("{}: {}", c.candidate.name, c.client.status()))
                .collect();
            let fallback = fallback(election, settings);
            format!("no lease yet; {}{fallback}", reasons.join("; "))
        }
    }
}

/// Returns the end of the reason while br0 waits for a lease or the static address.
fn fallback(election: &Election, settings: &Settings) -> String {
    let wait = settings.static_wait.as_secs();
    match (election.fallback_claim(), settings.fallback_address()) {
        (Some(claim), _) => format!("; {} is in use by {}", claim.address, claim.by),
        (None, Some(_)) => format!("; the static address is used after {wait} s"),
        (None, None) => String::new(),
    }
}

/// Returns the end of the reason if no private network is free.
fn overlap(reconciler: &Reconciler) -> String {
    let private = reconciler.private_network().zip(reconciler.overlap());
    text_or_empty(private.map(|(private, with)| {
        format!(
            "; br1 has {private}, which overlaps with the {with}, as no private network is free"
        )
    }))
}

/// Returns the end of the reason if people reach the host by IPv6 only.
fn ipv6_only(observed: &Observed, election: &Election) -> String {
    let public = observed.bridge(PUBLIC_BRIDGE).map(|bridge| bridge.index);
    let port = election.port().filter(|_| election.lease().is_none());
    let mut addresses = observed.ipv6.iter();
    let is_of_br0 = |(link, _): &&(LinkIndex, Ipv6Net)| Some(*link) == public;
    let address = addresses.find(|entry| is_of_br0(entry) && is_global(&entry.1.addr()));
    match port.zip(address) {
        Some((port, (_, net))) => {
            let (address, port) = (net.addr(), &port.candidate.name);
            format!("; br0 has {address} by {port}, for IPv6 only")
        }
        None => String::new(),
    }
}

/// Returns the beginning of the reason if br0 or its address cannot be made.
fn problem(reconciler: &Reconciler) -> String {
    let refused = reconciler.refused().first();
    text_or_empty(refused.map(|op| format!("cannot {}; ", op.describe(reconciler.observed()))))
}

/// Returns the end of the reason of a lease that is not the best possible.
fn shortcomings(state: State, election: &Election) -> String {
    let rank = election.rank().filter(|_| election.is_provisional());
    match rank {
        Some(_) if election.is_gateway_silent() => "; searching on other NICs".to_owned(),
        Some(rank) => format!("; provisional: {rank}"),
        None if state == State::NoDefaultRoute => {
            "; no default route, and online_requires is \"default-route\"".to_owned()
        }
        None => String::new(),
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Examples for tests.

    use super::*;
    use buildos_dhcp::{Options, Term};
    use buildos_types::Route;
    use std::time::Duration;

    /// Returns the status of a host that is online by `enp1s0`.
    pub(crate) fn online() -> Status {
        let mac = MacAddress([0xde, 0xad, 0xbe, 0xef, 0xb8, 0xda]);
        let gateway = "192.0.2.1".parse().unwrap();
        let lease = Lease {
            address: "192.0.2.10".parse().unwrap(),
            prefix: 24,
            server: gateway,
            routes: vec![Route {
                destination: "0.0.0.0/0".parse().unwrap(),
                gateway: Some(gateway),
                onlink: false,
            }],
            dns: vec![gateway, "192.0.2.2".parse().unwrap()],
            domain: Some("example.org".into()),
            search: Vec::new(),
            ntp: Vec::new(),
            mtu: None,
            relay: None,
            hostname: Some("host7".to_owned().into()),
            fqdn: None,
            acquired: Duration::from_secs(5),
            term: Some(Term {
                renew: Duration::from_secs(1800),
                rebind: Duration::from_secs(3150),
                lease: Duration::from_secs(3600),
            }),
            options: Options::default(),
        };
        Status {
            state: State::Online,
            reason: "br0 has 192.0.2.10/24 by enp1s0 from 192.0.2.1".into(),
            provisional: false,
            uplink: Some(("enp1s0".parse().unwrap(), mac)),
            uplink_neighbour: String::new(),
            port_mac: Some(mac),
            private: Some("172.23.0.1/16".parse().unwrap()),
            lease: Some(lease),
            address_origin: Some(AddressOrigin::Lease),
            gateway_reachability: Some(Reachability::Reachable),
            gateway_mac: Some(MacAddress([2, 0, 0, 0, 0, 0xfe])),
            acquired_usec: 1_700_000_000_000_000,
            ipv6: vec!["fe80::dcad:beff:feef:b8da/64".parse().unwrap()],
            public_ports: vec!["enp1s0".parse().unwrap()],
            private_ports: Vec::new(),
            links: vec![LinkStatus {
                index: LinkIndex::new(2).unwrap(),
                name: "enp1s0".parse().unwrap(),
                mac: Some(mac),
                carrier: true,
                role: LinkRole::Uplink,
                dhcp_state: Some("BOUND"),
                reason: "carrier; DHCP 192.0.2.10 from 192.0.2.1".into(),
                neighbour: None,
                vlan: None,
            }],
            configuration_problems: Vec::new(),
        }
    }

    /// Returns the status of that host before it has a lease.
    pub(crate) fn offline() -> Status {
        Status {
            state: State::NoCarrier,
            reason: "no carrier on enp1s0".into(),
            uplink: None,
            port_mac: None,
            lease: None,
            address_origin: None,
            gateway_reachability: None,
            gateway_mac: None,
            acquired_usec: 0,
            ..online()
        }
    }
}
