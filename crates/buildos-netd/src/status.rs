//! What netd tells others: one value, from which the bus, `state.json`,
//! `STATUS=` and the files in `/run/buildos/netd` are made.

use std::net::Ipv4Addr;

use buildos_dbus_api::network1::{LinkRole, Network, State};
use buildos_dhcp::{Instant, Lease};
use ipnet::Ipv6Net;
use serde::Serialize;

use crate::config::Settings;
use crate::exports;
use crate::mac::MacAddress;
use crate::observed::Link;
use crate::plan::{Observed, PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use crate::private::PrivateNetwork;
use crate::uplink::candidate;
use crate::uplink::election::Race;

/// The network of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Picture {
    /// In one word.
    pub state: State,
    /// In one line for people.
    pub reason: String,
    /// Name and hardware address of the port of br0.
    pub uplink: Option<(String, MacAddress)>,
    /// Address of the host on br1, once it is there.
    pub private: Option<PrivateNetwork>,
    /// The lease in force.
    pub lease: Option<Lease>,
    /// When it was acquired, CLOCK_REALTIME microseconds.
    pub acquired_usec: u64,
    /// IPv6 addresses of br0 in use, which the kernel configures.
    pub ipv6: Vec<Ipv6Net>,
    /// Names of the ports of br0: the uplink, and what others put there.
    pub public_ports: Vec<String>,
    /// Names of the ports of br1.
    pub private_ports: Vec<String>,
    /// All links but the loopback.
    pub links: Vec<LinkPicture>,
    /// Errors in the configuration.
    pub configuration_problems: Vec<String>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkPicture {
    /// Kernel index.
    pub index: u32,
    /// Kernel name.
    pub name: String,
    /// Hardware address.
    pub mac: Option<MacAddress>,
    /// Whether it has carrier.
    pub carrier: bool,
    /// What netd does with it.
    pub role: LinkRole,
    /// RFC 2131 state of its client.
    pub dhcp_state: Option<&'static str>,
    /// Why, in one line.
    pub reason: String,
}

/// Draws the picture.
#[must_use]
pub fn draw(
    observed: &Observed,
    race: &Race,
    settings: &Settings,
    private: Option<PrivateNetwork>,
    problems: Vec<String>,
    clocks: Clocks,
) -> Picture {
    let links = links(observed, race, settings);
    // A lease counts once its address is on br0.
    let public = observed.bridge(PUBLIC_BRIDGE).map(|bridge| bridge.index);
    let applied = |lease: &&Lease| {
        observed
            .addresses
            .iter()
            .any(|a| Some(a.link) == public && a.net.addr() == lease.address)
    };
    let lease = race.lease().filter(applied).cloned();
    let carrier = race.port().is_some_and(|port| port.candidate.carrier);
    let state = match &lease {
        Some(_) if carrier => State::Online,
        Some(_) => State::CarrierLost,
        None if race.runners().any(|runner| runner.candidate.carrier) => State::Acquiring,
        None => State::NoCarrier,
    };
    let bridge = observed.bridge(PRIVATE_BRIDGE).map(|bridge| bridge.index);
    let private = private.filter(|network| {
        observed
            .addresses
            .iter()
            .any(|a| Some(a.link) == bridge && a.net == network.interface())
    });
    let ports = |bridge: Option<u32>| {
        let links = observed.links.values();
        links
            .filter(|link| bridge.is_some() && link.controller == bridge)
            .map(|link| link.name.clone())
            .collect()
    };
    let ipv6 = observed.ipv6.iter();
    Picture {
        reason: reason(state, race, lease.as_ref()),
        state,
        uplink: race
            .port()
            .map(|port| (port.candidate.name.clone(), port.candidate.mac)),
        private,
        acquired_usec: lease
            .as_ref()
            .map_or(0, |lease| clocks.seconds_usec(lease.acquired)),
        lease,
        ipv6: ipv6
            .filter(|(link, _)| Some(*link) == public)
            .map(|(_, net)| *net)
            .collect(),
        public_ports: ports(public),
        private_ports: ports(bridge),
        links,
        configuration_problems: problems,
    }
}

impl Picture {
    /// What other daemons act on, as the bus has it.
    #[must_use]
    pub fn published(&self) -> Network {
        let lease = self.lease.as_ref();
        let servers = |servers: &[Ipv4Addr]| servers.iter().map(ToString::to_string).collect();
        Network {
            state: self.state.as_str().to_owned(),
            reason: self.reason.clone(),
            online: self.state == State::Online,
            uplink: text(self.uplink.as_ref().map(|(name, _)| name)),
            uplink_address: text(self.uplink.as_ref().map(|(_, mac)| mac)),
            public_bridge: PUBLIC_BRIDGE.to_owned(),
            private_bridge: PRIVATE_BRIDGE.to_owned(),
            private_network: text(self.private),
            address: text(lease.map(|l| format!("{}/{}", l.address, l.prefix))),
            gateway: text(lease.and_then(Lease::gateway)),
            dns: lease.map(|l| servers(&l.dns)).unwrap_or_default(),
            search_domains: exports::search_domains(self),
            hostname: text(lease.and_then(|l| l.hostname.as_ref())),
            fqdn: text(lease.and_then(|l| l.fqdn.as_ref())),
        }
    }
}

/// The text of what there is, or nothing.
pub(crate) fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// The two clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// CLOCK_BOOTTIME.
    pub boottime: Instant,
    /// CLOCK_REALTIME since the epoch.
    pub realtime: Instant,
}

impl Clocks {
    /// CLOCK_REALTIME in microseconds.
    #[must_use]
    pub fn realtime_usec(self) -> u64 {
        u64::try_from(self.realtime.as_micros()).unwrap_or(u64::MAX)
    }

    /// A point of CLOCK_BOOTTIME as CLOCK_REALTIME, to the second so that it
    /// stays the same from one look to the next.
    fn seconds_usec(self, at: Instant) -> u64 {
        let ago = self.boottime.saturating_sub(at);
        self.realtime
            .saturating_sub(ago)
            .as_secs()
            .saturating_mul(1_000_000)
    }
}

fn links(observed: &Observed, race: &Race, settings: &Settings) -> Vec<LinkPicture> {
    let public = observed.bridge(PUBLIC_BRIDGE).map(|bridge| bridge.index);
    let port = race.port().map(|port| port.candidate.index);
    let private = observed.bridge(PRIVATE_BRIDGE).map(|bridge| bridge.index);
    let is_machines = |link: &Link| private.is_some() && link.controller == private;
    let mut pictures = Vec::new();
    for link in observed.links.values().filter(|link| link.name != "lo") {
        let runner = race
            .runners()
            .find(|runner| runner.candidate.index == link.index);
        let (role, reason) = match runner {
            Some(runner) if !link.carrier => (role(port, link.index), {
                let lease = runner
                    .client
                    .lease()
                    .map(|_| format!("; {}", runner.client.status()));
                format!("no carrier{}", lease.unwrap_or_default())
            }),
            Some(runner) => (
                role(port, link.index),
                format!("carrier; DHCP {}", runner.client.status()),
            ),
            None if [PUBLIC_BRIDGE, PRIVATE_BRIDGE].contains(&link.name.as_str()) => {
                (LinkRole::Bridge, "made by buildos-netd".to_owned())
            }
            None if is_machines(link) => (
                LinkRole::Ignored,
                format!("port of {PRIVATE_BRIDGE}, put there by others"),
            ),
            None => {
                let verdict = candidate::check(link, public, &settings.include, &settings.exclude);
                let why = verdict.err().map(|exclusion| exclusion.to_string());
                (
                    LinkRole::Ignored,
                    why.unwrap_or_else(|| "about to be looked at".to_owned()),
                )
            }
        };
        pictures.push(LinkPicture {
            index: link.index,
            name: link.name.clone(),
            mac: link.mac,
            carrier: link.up && link.carrier,
            role,
            dhcp_state: runner.map(|runner| runner.client.state().as_str()),
            reason,
        });
    }
    pictures
}

fn role(port: Option<u32>, index: u32) -> LinkRole {
    if port == Some(index) {
        LinkRole::Uplink
    } else {
        LinkRole::Candidate
    }
}

fn reason(state: State, race: &Race, lease: Option<&Lease>) -> String {
    let port = race.port().map_or("", |port| port.candidate.name.as_str());
    let with_carrier = || {
        race.runners()
            .filter(|runner| runner.candidate.carrier)
            .map(|r| (&r.candidate, &r.client))
    };
    match (state, lease) {
        (State::Online, Some(lease)) => {
            format!(
                "br0 has {}/{} by {port} from {}",
                lease.address, lease.prefix, lease.server
            )
        }
        (State::CarrierLost, Some(lease)) => {
            format!(
                "no carrier on {port}; br0 keeps {}/{}",
                lease.address, lease.prefix
            )
        }
        (State::NoCarrier, _) => {
            let names: Vec<_> = race.runners().map(|r| r.candidate.name.as_str()).collect();
            match names.as_slice() {
                [] => "no Ethernet NIC".to_owned(),
                names => format!("no carrier on {}", names.join(", ")),
            }
        }
        (State::Acquiring | State::Online | State::CarrierLost, _) => {
            let each: Vec<_> = with_carrier()
                .map(|(c, client)| format!("{}: {}", c.name, client.status()))
                .collect();
            format!("no lease yet; {}", each.join("; "))
        }
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Pictures for the tests of what is made from them.

    use super::*;
    use buildos_dhcp::{Options, Term};
    use buildos_types::Route;
    use std::time::Duration;

    /// A host that is online by `enp1s0`.
    pub(crate) fn online() -> Picture {
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
            broadcast: None,
            hostname: Some("host7".into()),
            fqdn: None,
            acquired: Duration::from_secs(5),
            term: Some(Term {
                renew: Duration::from_secs(1800),
                rebind: Duration::from_secs(3150),
                lease: Duration::from_secs(3600),
            }),
            options: Options::default(),
        };
        Picture {
            state: State::Online,
            reason: "br0 has 192.0.2.10/24 by enp1s0 from 192.0.2.1".into(),
            uplink: Some(("enp1s0".into(), mac)),
            private: Some("172.23.0.1/16".parse().unwrap()),
            lease: Some(lease),
            acquired_usec: 1_700_000_000_000_000,
            ipv6: vec!["fe80::dcad:beff:feef:b8da/64".parse().unwrap()],
            public_ports: vec!["enp1s0".into()],
            private_ports: Vec::new(),
            links: vec![LinkPicture {
                index: 2,
                name: "enp1s0".into(),
                mac: Some(mac),
                carrier: true,
                role: LinkRole::Uplink,
                dhcp_state: Some("BOUND"),
                reason: "carrier; DHCP 192.0.2.10 from 192.0.2.1".into(),
            }],
            configuration_problems: Vec::new(),
        }
    }

    /// The same host before it has a lease.
    pub(crate) fn offline() -> Picture {
        Picture {
            state: State::NoCarrier,
            reason: "no carrier on enp1s0".into(),
            uplink: None,
            lease: None,
            acquired_usec: 0,
            ..online()
        }
    }
}
