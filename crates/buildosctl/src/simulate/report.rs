//! Renders the result of a simulation: the timeline and the final state of the host.

use std::fmt::Write as _;

use buildos_netd::exports::{interfaces, resolv_conf};
use buildos_netd::observed::{InstalledRoute, Link, PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use serde::Serialize;

use super::world::World;
use crate::snapshot::model::SCHEMA;
use crate::term::{Style, Tone, columns};

/// buildosctl simulate --json
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "simulate"))]
pub(crate) struct Report {
    /// Version of this format, as in status
    schema: u32,
    /// Simulated time
    duration_ms: u64,
    /// Mistakes in the configuration of the daemons; the exit status is 1
    configuration_problems: Vec<String>,
    /// Events in order
    timeline: Vec<Line>,
    /// Final state, as property State of org.build2.buildos.network1(5)
    state: &'static str,
    /// Final reason, as property Reason of org.build2.buildos.network1(5)
    reason: String,
    /// NICs and ports of bridges
    links: Vec<LinkLine>,
    /// br0 and br1
    bridges: Vec<BridgeLine>,
    /// IPv4 routes that netd adds
    routes: Vec<RouteLine>,
    /// Name that hostnamed chooses; null before there is one
    hostname: Option<NameLine>,
    /// /run/buildos/netd/resolv.conf
    resolv_conf: String,
    /// /run/buildos/netd/interfaces
    interfaces: String,
    /// Files and table that natd installs
    nat: NatLine,
}

/// Event of a simulation
#[derive(Debug, Serialize)]
#[cfg_attr(
    test,
    derive(schemars::JsonSchema),
    schemars(rename = "SimulatedEvent")
)]
struct Line {
    /// Time since the start
    at_ms: u64,
    /// NIC, daemon that decides, or kernel that is changed
    who: String,
    /// Description
    what: String,
}

/// Network interface at the end of a simulation
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "SimulatedLink"))]
struct LinkLine {
    /// Kernel name
    name: String,
    /// MAC address
    mac: String,
    /// True if it has carrier
    carrier: bool,
    /// ignored, candidate, uplink or bridge
    role: &'static str,
    /// State of its DHCP client as in RFC 2131, or empty
    dhcp_state: String,
    /// Reason for role and state, in one line
    reason: String,
}

/// Bridge at the end of a simulation
#[derive(Debug, Serialize)]
#[cfg_attr(
    test,
    derive(schemars::JsonSchema),
    schemars(rename = "SimulatedBridge")
)]
struct BridgeLine {
    /// Kernel name
    name: &'static str,
    /// MAC address
    mac: String,
    /// Largest packet in bytes
    mtu: u32,
    /// Names of its ports
    ports: Vec<String>,
    /// IPv4 addresses
    addresses: Vec<AddressLine>,
}

/// IPv4 address at the end of a simulation
#[derive(Debug, Serialize)]
#[cfg_attr(
    test,
    derive(schemars::JsonSchema),
    schemars(rename = "SimulatedAddress")
)]
struct AddressLine {
    /// Address with its prefix
    address: String,
    /// Seconds left of its lifetime; null if it has no end
    remaining_s: Option<u64>,
}

/// IPv4 route at the end of a simulation
#[derive(Debug, Serialize)]
#[cfg_attr(
    test,
    derive(schemars::JsonSchema),
    schemars(rename = "SimulatedRoute")
)]
struct RouteLine {
    /// Network, or default
    destination: String,
    /// Next hop; null for a direct route
    gateway: Option<String>,
    /// Bridge that it leaves by
    device: String,
    /// Preferred source address
    source: String,
    /// Metric; of two routes to a destination, the one with the smaller metric applies
    metric: u32,
}

/// Host name at the end of a simulation
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "SimulatedName"))]
struct NameLine {
    /// Name
    name: String,
    /// Origin, as in org.build2.buildos.hostname1(5)
    source: &'static str,
    /// Reason for the choice
    reason: String,
    /// Refused names with a higher priority
    refused: Vec<String>,
}

/// State of natd at the end of a simulation; all texts are empty while it waits
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "SimulatedNat"))]
struct NatLine {
    /// What natd waits for, or null
    waits_for: Option<String>,
    /// Table inet buildos, as nft(8) lists it
    table: String,
    /// /run/buildos/natd/dnsmasq.conf
    dnsmasq_conf: String,
    /// /run/buildos/natd/resolv.conf
    resolv_conf: String,
}

impl Report {
    /// Returns the result of a finished simulation.
    pub(crate) fn new(world: &World, configuration_problems: Vec<String>) -> Self {
        let status = world.status();
        let millis =
            |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let entries = world.timeline().entries().iter();
        let timeline = entries.map(|entry| Line {
            at_ms: millis(entry.at),
            who: entry.subject.clone(),
            what: entry.text.clone(),
        });
        let bridges = [PUBLIC_BRIDGE, PRIVATE_BRIDGE];
        let links = status.links.iter();
        let links = links.filter(|link| !bridges.contains(&link.name.as_str()));
        let (nat, waits_for) = match world.nat() {
            Ok(nat) => (nat.clone(), None),
            Err(why) => (Default::default(), Some(why.to_owned())),
        };
        Self {
            schema: SCHEMA,
            duration_ms: millis(world.duration()),
            configuration_problems,
            timeline: timeline.collect(),
            state: status.state.as_str(),
            reason: status.reason.clone(),
            links: links
                .map(|link| LinkLine {
                    name: link.name.to_string(),
                    mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
                    carrier: link.carrier,
                    role: link.role.as_str(),
                    dhcp_state: link.dhcp_state.unwrap_or_default().to_owned(),
                    reason: link.reason.clone(),
                })
                .collect(),
            bridges: bridges
                .into_iter()
                .filter_map(|name| {
                    let link = world.observed().bridge(name)?;
                    Some(bridge(world, name, link))
                })
                .collect(),
            routes: world
                .observed()
                .routes
                .iter()
                .map(|r| route(world, r))
                .collect(),
            hostname: world.choice().map(|choice| NameLine {
                name: choice.name.to_string(),
                source: choice.source.as_str(),
                reason: choice.reason.clone(),
                refused: choice.refused.iter().map(ToString::to_string).collect(),
            }),
            resolv_conf: resolv_conf::render(&status),
            interfaces: interfaces::render(&status),
            nat: NatLine {
                waits_for,
                table: nat.table,
                dnsmasq_conf: nat.dnsmasq,
                resolv_conf: nat.resolv,
            },
        }
    }

    /// Mistakes in the configuration of the daemons; the exit status is 1
    pub(crate) fn problems(&self) -> &[String] {
        &self.configuration_problems
    }

    /// Returns the result for operators.
    pub(crate) fn text(&self, style: Style) -> String {
        let mut out = String::new();
        let heading = |out: &mut String, text: &str| {
            if !out.is_empty() {
                out.push('\n');
            }
            put(out, &style.paint(Tone::Strong, text));
        };
        heading(&mut out, "Timeline, in seconds");
        let lines = self.timeline.iter();
        let rows: Vec<_> = lines
            .map(|line| {
                let at = format!("{:>6}.{:03}", line.at_ms / 1000, line.at_ms % 1000);
                vec![at, line.who.clone(), line.what.clone()]
            })
            .collect();
        out.push_str(&columns(&rows));
        let (seconds, millis) = (self.duration_ms / 1000, self.duration_ms % 1000);
        let after = match millis {
            0 => format!("After {seconds} s: {}", self.state),
            _ => format!("After {seconds}.{millis:03} s: {}", self.state),
        };
        heading(&mut out, &after);
        put(&mut out, &format!("  {}", self.reason));
        heading(&mut out, "Links");
        let rows: Vec<_> = self.links.iter().map(LinkLine::row).collect();
        out.push_str(&columns(&rows));
        heading(&mut out, "Bridges");
        let rows: Vec<_> = self.bridges.iter().map(BridgeLine::row).collect();
        out.push_str(&columns(&rows));
        heading(&mut out, "Routes");
        for route in &self.routes {
            put(&mut out, &format!("  {}", route.text()));
        }
        if self.routes.is_empty() {
            put(&mut out, "  none");
        }
        heading(&mut out, "Hostname");
        match &self.hostname {
            Some(name) => put(&mut out, &format!("  {}: {}", name.name, name.reason)),
            None => put(&mut out, "  none yet"),
        }
        let file = |out: &mut String, name: &str, text: &str| {
            heading(out, name);
            for line in text.lines() {
                put(out, format!("  {line}").trim_end());
            }
        };
        file(&mut out, "/etc/resolv.conf", &self.resolv_conf);
        file(&mut out, "/etc/network/interfaces", &self.interfaces);
        match &self.nat.waits_for {
            Some(why) => file(&mut out, "NAT", &format!("waits: {why}")),
            None => {
                file(&mut out, "nft list table inet buildos", &self.nat.table);
                file(
                    &mut out,
                    "/run/buildos/natd/dnsmasq.conf",
                    &self.nat.dnsmasq_conf,
                );
                file(
                    &mut out,
                    "/run/buildos/natd/resolv.conf",
                    &self.nat.resolv_conf,
                );
            }
        }
        if !self.configuration_problems.is_empty() {
            heading(&mut out, "Errors in the configuration");
            for problem in &self.configuration_problems {
                put(&mut out, &style.paint(Tone::Bad, &format!("  {problem}")));
            }
        }
        out
    }
}

fn bridge(world: &World, name: &'static str, link: &Link) -> BridgeLine {
    let addresses = world.observed().addresses.iter();
    let addresses = addresses.filter(|address| address.link == link.index);
    BridgeLine {
        name,
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: link.mtu,
        ports: world
            .observed()
            .ports(name)
            .map(|port| port.name.to_string())
            .collect(),
        addresses: addresses
            .map(|address| AddressLine {
                address: address.net.to_string(),
                remaining_s: address.expires.map(|at| world.seconds_until(at)),
            })
            .collect(),
    }
}

fn route(world: &World, installed: &InstalledRoute) -> RouteLine {
    let device = world.observed().links.get(&installed.link);
    let route = &installed.route;
    RouteLine {
        destination: match route.destination.prefix_len() {
            0 => "default".to_owned(),
            _ => route.destination.to_string(),
        },
        gateway: route.gateway.map(|gateway| gateway.to_string()),
        device: device.map_or_else(String::new, |link| link.name.to_string()),
        source: installed.source.to_string(),
        metric: installed.metric,
    }
}

impl LinkLine {
    fn row(&self) -> Vec<String> {
        let name = format!("  {}", self.name);
        vec![
            name,
            self.mac.clone(),
            self.role.to_owned(),
            self.reason.clone(),
        ]
    }
}

impl BridgeLine {
    fn row(&self) -> Vec<String> {
        let addresses = self.addresses.iter();
        let addresses: Vec<_> = addresses
            .map(|address| match address.remaining_s {
                Some(seconds) => format!("{} for {seconds} s", address.address),
                None => address.address.clone(),
            })
            .collect();
        let or_none = |text: String| {
            if text.is_empty() {
                "none".to_owned()
            } else {
                text
            }
        };
        vec![
            format!("  {}", self.name),
            self.mac.clone(),
            format!("MTU {}", self.mtu),
            format!("address {}", or_none(addresses.join(", "))),
            format!("ports {}", or_none(self.ports.join(", "))),
        ]
    }
}

impl RouteLine {
    fn text(&self) -> String {
        let gateway = self.gateway.as_ref();
        let via = gateway
            .map(|gateway| format!(" via {gateway}"))
            .unwrap_or_default();
        let usual = self.metric == buildos_netd::settings::Settings::default().route_metric;
        let metric = match usual {
            true => String::new(),
            false => format!(" metric {}", self.metric),
        };
        format!(
            "{}{via} dev {} src {}{metric}",
            self.destination, self.device, self.source
        )
    }
}

fn put(out: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{line}");
}
