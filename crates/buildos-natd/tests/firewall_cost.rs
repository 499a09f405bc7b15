//! Counts the expressions that the kernel evaluates for a TCP segment, and those that load
//! the name of a link. The counts do not depend on the load of a machine, unlike times.
//!
//! `tests/bench/nat-guest` measures what the expressions cost.

#![allow(clippy::unwrap_used)] // A test fails by panicking.
#![allow(clippy::wildcard_enum_match_arm)] // A segment meets few of the conditions.

use std::net::Ipv4Addr;
use std::ops::Add;

use buildos_natd::firewall::bytecode::{Expression, KernelTable, MetaKey};
use buildos_natd::firewall::model::{
    Chain, CompareOp, ConnectionState, Hook, Link, Match, Rule, Table, Transport, Verdict,
};
use buildos_natd::firewall::policy;
use buildos_natd::firewall::port_policy::{self, Dispatch};
use buildos_natd::ports::{Bridge, Ports};
use buildos_natd::settings::Settings;
use buildos_natd::uplink_network::UplinkNetwork;
use buildos_types::InterfaceName;
use ipnet::Ipv4Net;

const MACHINE: Ipv4Addr = Ipv4Addr::new(172, 23, 0, 9);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

/// A segment between a machine and a server, at one hook.
struct Segment {
    input: &'static str,
    output: &'static str,
    /// Bridge of the input interface.
    bridge: &'static str,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    state: ConnectionState,
}

/// Numbers of expressions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cost {
    all: usize,
    /// Loads of the name of a link, for which the kernel copies 16 bytes.
    names: usize,
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            all: self.all + other.all,
            names: self.names + other.names,
        }
    }
}

fn network() -> UplinkNetwork {
    let name = |name| InterfaceName::new(name).unwrap();
    UplinkNetwork {
        public_bridge: name("br0"),
        uplinks: vec![name("eth0")],
        address: Some(HOST),
        private_bridge: name("br1"),
        private_network: "172.23.0.1/16".parse().unwrap(),
        public_network: Some("192.0.2.0/24".parse().unwrap()),
        dns: Vec::new(),
        search_domains: Vec::new(),
        uplink: Err(String::new()),
    }
}

/// Returns table inet and table bridge, with or without the numbers of links.
fn tables(ports: &Ports) -> [Table; 2] {
    let settings = Settings::default();
    let inet = policy::table(&network(), &settings, ports, &[]);
    let bridge = port_policy::table(&network(), &settings, ports, Dispatch::Bridge);
    [inet, bridge]
}

fn known() -> Ports {
    let bridge = |index| Some(Bridge { index, mtu: 1500 });
    Ports {
        private_bridge: bridge(3),
        public_bridge: bridge(2),
        uplinks: vec![Link {
            name: InterfaceName::new("eth0").unwrap(),
            index: 4,
        }],
        ..Ports::default()
    }
}

fn holds(condition: &Match, segment: &Segment) -> bool {
    let is = |is: CompareOp, equal: bool| (is == CompareOp::Equal) == equal;
    let within = |net: &Ipv4Net, address| net.contains(&address);
    match condition {
        Match::Input(wanted, name) => is(*wanted, segment.input == name.as_str()),
        Match::Output(wanted, name) => is(*wanted, segment.output == name.as_str()),
        Match::InputLink(link) => segment.input == link.name.as_str(),
        Match::OutputLink(link) => segment.output == link.name.as_str(),
        Match::InputBridge(wanted, name) => is(*wanted, segment.bridge == name.as_str()),
        Match::InputIn(wanted, _) => is(*wanted, segment.input == "eth0"),
        Match::Source(wanted, net) => is(*wanted, within(net, segment.source)),
        Match::Destination(wanted, net) => is(*wanted, within(net, segment.destination)),
        Match::Ipv4(wanted) => *wanted == CompareOp::Equal,
        Match::Ipv4Frame => true,
        // The machine has a lease.
        Match::Key(wanted, ..) => is(*wanted, segment.bridge == "br1"),
        Match::State(states) => states.contains(&segment.state),
        Match::Syn => segment.state == ConnectionState::New,
        Match::ConnectionsOver { .. } | Match::Ports(Transport::Udp, ..) => false,
        Match::Protocol(wanted, transport) => is(*wanted, *transport == Transport::Tcp),
        Match::SourcePort(Transport::Udp, _) | Match::Port(Transport::Udp, _) => false,
        other => panic!("no condition for the first packets: {other}"),
    }
}

/// Returns the expressions up to the verdict of the chain at that hook.
fn evaluated(table: &Table, hook: Hook, segment: &Segment) -> Cost {
    let (cost, verdict) = evaluate(table, hook, segment);
    assert_ne!(verdict, Some(Verdict::Drop));
    cost
}

fn evaluate(table: &Table, hook: Hook, segment: &Segment) -> (Cost, Option<Verdict>) {
    let mut chains = table.chains.iter();
    let chain = chains.find(|chain| chain.hook == hook).unwrap();
    let mut cost = Cost::default();
    for rule in &chain.rules {
        let failing = rule.matches.iter().position(|c| !holds(c, segment));
        if let Some(failing) = failing {
            // The last expression of a condition fails.
            let evaluated = Rule::new(rule.matches[..=failing].to_vec(), Verdict::Continue);
            cost = cost + expressions(table, chain, evaluated);
            continue;
        }
        cost = cost + expressions(table, chain, rule.clone());
        let called = match rule.verdict {
            Verdict::Jump(called) => called,
            Verdict::ClampSegmentSize => continue,
            verdict @ (Verdict::Accept
            | Verdict::Drop
            | Verdict::Continue
            | Verdict::Masquerade
            | Verdict::MasqueradePorts(..)
            | Verdict::DestinationNat(..)) => return (cost, Some(verdict)),
        };
        let (more, verdict) = evaluate(table, Hook::Called(called), segment);
        cost = cost + more;
        if verdict.is_some() {
            return (cost, verdict);
        }
    }
    (cost, None)
}

/// Returns the expressions of a rule in that chain.
fn expressions(table: &Table, chain: &Chain, rule: Rule) -> Cost {
    let chain = Chain {
        rules: vec![rule],
        ..chain.clone()
    };
    let table = Table {
        chains: vec![chain],
        ..table.clone()
    };
    let compiled = KernelTable::compile(&table);
    let expressions = &compiled.chains[0].rules[0].expressions;
    let is_name = |expression: &&Expression| {
        matches!(
            expression,
            Expression::Meta(
                MetaKey::InputName
                    | MetaKey::OutputName
                    | MetaKey::InputBridge
                    | MetaKey::OutputBridge
            )
        )
    };
    Cost {
        all: expressions.len(),
        names: expressions.iter().filter(is_name).count(),
    }
}

/// Returns the expressions for a segment from the machine in that state of its connection.
fn from_machine(ports: &Ports, state: ConnectionState) -> Cost {
    let [inet, bridge] = tables(ports);
    let segment = |input, output, bridge| Segment {
        input,
        output,
        bridge,
        source: MACHINE,
        destination: SERVER,
        state,
    };
    let cost = evaluated(&bridge, Hook::Prerouting, &segment("tap0", "", "br1"))
        + evaluated(&inet, Hook::Prerouting, &segment("br1", "", ""))
        + evaluated(&inet, Hook::Forward, &segment("br1", "br0", ""))
        + evaluated(&bridge, Hook::Output, &segment("", "eth0", ""));
    match state {
        ConnectionState::New => {
            cost + evaluated(&inet, Hook::Postrouting, &segment("br1", "br0", ""))
        }
        ConnectionState::Established | ConnectionState::Related => cost,
    }
}

/// Returns the expressions for a segment of an established connection to the machine.
fn to_machine(ports: &Ports) -> Cost {
    let [inet, bridge] = tables(ports);
    let segment = |input, output, bridge, destination| Segment {
        input,
        output,
        bridge,
        source: SERVER,
        destination,
        state: ConnectionState::Established,
    };
    let arriving = segment("eth0", "", "br0", HOST);
    evaluated(&bridge, Hook::Prerouting, &arriving)
        + evaluated(&inet, Hook::Prerouting, &segment("br0", "", "", HOST))
        + evaluated(&inet, Hook::Forward, &segment("br0", "br1", "", MACHINE))
        + evaluated(&bridge, Hook::Output, &segment("", "tap0", "", MACHINE))
}

/// Returns the costs of segments that are established, to the machine, and new.
fn costs(ports: &Ports) -> [(usize, usize); 3] {
    [
        from_machine(ports, ConnectionState::Established),
        to_machine(ports),
        from_machine(ports, ConnectionState::New),
    ]
    .map(|cost| (cost.all, cost.names))
}

#[test]
fn connection_needs_no_names_of_links() {
    assert_eq!(costs(&known()), [(38, 0), (33, 0), (110, 0)]);
}

#[test]
fn connection_passes_by_names_without_numbers_of_links() {
    assert_eq!(costs(&Ports::default()), [(37, 3), (45, 7), (111, 5)]);
}
