//! Tests the text of table `inet buildos`, and its verdicts on packets.
//!
//! The text is what `nft --stateless --terse list table inet buildos` prints for the
//! installed table; the system lane compares both.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_natd::dnsmasq::config as dnsmasq;
use buildos_natd::firewall::arp_policy;
use buildos_natd::firewall::bytecode::{Expression, KernelTable};
use buildos_natd::firewall::model::{
    CompareOp, ConnectionState, Hash, Hook, Link, Match, Rule, Table, Transport, Verdict,
};
use buildos_natd::firewall::policy;
use buildos_natd::firewall::port_policy::{self, Dispatch};
use buildos_natd::open_port::OpenPort;
use buildos_natd::ports::{Bridge, Ports};
use buildos_natd::settings::{LeaseTime, Port, Settings};
use buildos_natd::uplink_network::UplinkNetwork;
use buildos_types::{DomainName, InterfaceName, PrivateNetwork};
use ipnet::Ipv4Net;
use proptest::prelude::*;
use proptest::sample::select;

fn network() -> UplinkNetwork {
    UplinkNetwork {
        public_bridge: InterfaceName::new("br0").unwrap(),
        uplinks: vec![InterfaceName::new("eth0").unwrap()],
        address: Some(Ipv4Addr::new(192, 0, 2, 7)),
        private_bridge: InterfaceName::new("br1").unwrap(),
        private_network: "172.23.0.1/16".parse::<PrivateNetwork>().unwrap(),
        public_network: Some("11.77.0.0/16".parse().unwrap()),
        dns: vec!["192.0.2.1".parse().unwrap()],
        search_domains: ["lan.example", "example"]
            .map(|name| DomainName::try_from(name.to_owned()).unwrap())
            .to_vec(),
        uplink: Err(String::new()),
    }
}

/// Settings with every optional rule.
fn strict() -> Settings {
    Settings {
        open: vec![
            Port::try_from("tcp:8080".to_owned()).unwrap(),
            Port::try_from("udp:123".to_owned()).unwrap(),
        ],
        isolate: true,
        block_private: true,
        allow_private: vec!["10.5.0.0/16".parse().unwrap()],
        ..Settings::default()
    }
}

/// Bridges of one MTU.
fn bridges() -> Ports {
    let bridge = |index| Some(Bridge { index, mtu: 1500 });
    Ports {
        uplinks: vec![Link {
            name: InterfaceName::new("eth0").unwrap(),
            index: 4,
        }],
        private_bridge: bridge(3),
        public_bridge: bridge(2),
        ..Ports::default()
    }
}

fn plain() -> Table {
    policy::table(&network(), &Settings::default(), &bridges(), &[])
}

/// Has the rule for an uplink with a smaller MTU, and none with numbers of bridges.
fn strictest() -> Table {
    policy::table(&network(), &strict(), &Ports::default(), &[])
}

#[track_caller]
fn check_golden(actual: &str, file: &str) {
    let path = format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BUILDOS_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    assert_eq!(actual, std::fs::read_to_string(&path).unwrap());
}

#[test]
fn default_table_prints_as_nft_lists_it() {
    check_golden(&plain().to_string(), "ruleset.nft");
}

#[test]
fn strictest_table_prints_as_nft_lists_it() {
    check_golden(&strictest().to_string(), "ruleset-strict.nft");
}

/// nft(8) lists this table only on kernels with NFT_BRIDGE_META. `tests/bench/nat-guest`
/// loads the file on such a kernel.
#[test]
fn table_of_ports_matches_golden_file() {
    let table = port_policy::table(
        &network(),
        &Settings::default(),
        &bridges(),
        Dispatch::Bridge,
    );
    check_golden(&table.to_string(), "ports.nft");
}

/// Tables inet and arp have the rule that closes the way past a bridge.
#[test]
fn table_of_arp_prints_as_nft_lists_it() {
    check_golden(&arp_policy::table().to_string(), "arp.nft");
}

#[test]
fn dnsmasq_configuration_matches_golden_file() {
    let configuration = dnsmasq::configuration(&network(), None);
    check_golden(&configuration, "dnsmasq.conf");
}

#[test]
fn dnsmasq_lease_limit_fits_small_network() {
    let private_network = "192.168.213.1/28".parse::<PrivateNetwork>().unwrap();
    let network = UplinkNetwork {
        private_network,
        ..network()
    };
    let configuration = dnsmasq::configuration(&network, LeaseTime::try_from(120).ok());
    let expected =
        "dhcp-range=192.168.213.2,192.168.213.14,255.255.255.240,120\ndhcp-lease-max=13\n";
    assert!(configuration.contains(expected), "{configuration}");
}

#[test]
fn compiled_table_has_known_expressions_and_short_comments() {
    let tables = [plain(), strictest()].map(|table| KernelTable::compile(&table));
    for rule in tables
        .iter()
        .flat_map(|table| &table.chains)
        .flat_map(|chain| &chain.rules)
    {
        // NFTNL_UDATA_COMMENT_MAXLEN is 128 with the NUL; encoding drops longer comments.
        assert!(
            rule.comment.len() < 128 && !rule.comment.contains('\0'),
            "{rule:?}"
        );
        assert!(
            !rule
                .expressions
                .iter()
                .any(|e| matches!(e, Expression::Other(_)))
        );
    }
}

/// Fields of a packet that rules match on.
#[derive(Debug, Clone)]
struct Packet {
    input: &'static str,
    output: &'static str,
    ipv4: bool,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: Protocol,
    source_port: u16,
    state: Option<ConnectionState>,
    redirected: bool,
    over_limit: bool,
    to_reserved_address: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Protocol {
    Port(Transport, u16),
    Echo,
    Other,
}

fn holds(condition: &Match, packet: &Packet) -> bool {
    let is = |is: CompareOp, equal: bool| (is == CompareOp::Equal) == equal;
    let within = |net: &Ipv4Net, address| packet.ipv4 && net.contains(address);
    match condition {
        Match::Input(wanted, name) => is(*wanted, packet.input == name.as_str()),
        Match::Output(wanted, name) => is(*wanted, packet.output == name.as_str()),
        Match::InputLink(link) => packet.input == link.name.as_str(),
        Match::OutputLink(link) => packet.output == link.name.as_str(),
        Match::Ipv4(wanted) => is(*wanted, packet.ipv4),
        Match::Source(wanted, net) => packet.ipv4 && is(*wanted, within(net, &packet.source)),
        Match::Destination(wanted, net) => {
            packet.ipv4 && is(*wanted, within(net, &packet.destination))
        }
        Match::Protocol(wanted, transport) => is(
            *wanted,
            matches!(packet.protocol, Protocol::Port(t, _) if t == *transport),
        ),
        Match::SourcePort(transport, port) => {
            matches!(packet.protocol, Protocol::Port(t, _) if t == *transport)
                && packet.source_port == *port
        }
        Match::Port(transport, port) => packet.protocol == Protocol::Port(*transport, *port),
        Match::Ports(transport, first, last) => matches!(
            packet.protocol,
            Protocol::Port(t, port) if t == *transport && (*first..=*last).contains(&port)
        ),
        Match::Syn => {
            matches!(packet.protocol, Protocol::Port(Transport::Tcp, _))
                && packet.state == Some(ConnectionState::New)
        }
        Match::ConnectionsOver { hash, .. } => {
            let has_hash = match hash {
                Hash::Connection => true,
                Hash::SourcePort => matches!(packet.protocol, Protocol::Port(Transport::Tcp, _)),
            };
            packet.ipv4 && packet.over_limit && has_hash
        }
        Match::RateOver { .. } => packet.ipv4 && packet.over_limit,
        Match::EchoRequest => packet.ipv4 && packet.protocol == Protocol::Echo,
        Match::State(states) => packet.state.is_some_and(|state| states.contains(&state)),
        Match::DestinationNat => packet.redirected,
        Match::ToReservedAddress => packet.to_reserved_address,
        Match::NotFrom(_)
        | Match::InputIn(..)
        | Match::OutputNotIn(_)
        | Match::InputBridge(..)
        | Match::OutputBridge(_)
        | Match::EthernetSource(..)
        | Match::Key(..)
        | Match::DhcpAcknowledgement
        | Match::DhcpAddress(_)
        | Match::Ipv4Frame
        | Match::Arp
        | Match::ArpSource(..) => panic!("no match of table inet buildos: {condition}"),
    }
}

/// Returns the verdict of the chain at that hook; every base chain has policy accept.
fn verdict(table: &Table, hook: Hook, packet: &Packet) -> Verdict {
    verdict_of(table, hook, packet).unwrap_or(Verdict::Accept)
}

/// Returns [`None`] if no rule of the chain decides.
fn verdict_of(table: &Table, hook: Hook, packet: &Packet) -> Option<Verdict> {
    let mut chains = table.chains.iter();
    let rules = &chains.find(|chain| chain.hook == hook).unwrap().rules;
    let applies = |rule: &&Rule| rule.matches.iter().all(|c| holds(c, packet));
    rules
        .iter()
        .filter(applies)
        .find_map(|rule| match rule.verdict {
            Verdict::Jump(chain) => verdict_of(table, Hook::Called(chain), packet),
            Verdict::ClampSegmentSize => None,
            verdict @ (Verdict::Accept
            | Verdict::Drop
            | Verdict::Continue
            | Verdict::Masquerade
            | Verdict::MasqueradePorts(..)
            | Verdict::DestinationNat(..)) => Some(verdict),
        })
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        any::<u32>().prop_map(Ipv4Addr::from),
        any::<u16>().prop_map(|n| Ipv4Addr::from(0xac17_0000 | u32::from(n))),
        select(vec![
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(172, 23, 0, 1),
            Ipv4Addr::new(196, 254, 111, 222),
            Ipv4Addr::new(10, 5, 0, 1),
            Ipv4Addr::new(10, 6, 0, 1),
            Ipv4Addr::new(0, 0, 0, 1),
            Ipv4Addr::new(127, 0, 0, 1),
            Ipv4Addr::new(169, 254, 169, 254),
            Ipv4Addr::new(224, 0, 0, 251),
            Ipv4Addr::new(240, 0, 0, 1),
        ]),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    let port = prop_oneof![
        select(vec![53, 66, 67, 68, 69, 123, 546, 547, 548, 8080]),
        any::<u16>()
    ];
    prop_oneof![
        (
            select(vec![Transport::Tcp, Transport::Udp, Transport::Sctp]),
            port
        )
            .prop_map(|(t, p)| Protocol::Port(t, p)),
        Just(Protocol::Echo),
        Just(Protocol::Other),
    ]
}

prop_compose! {
    fn packet()(
        input in select(vec!["br0", "br1", "br10", "lo", ""]),
        output in select(vec!["br0", "br1", "br10", "lo", ""]),
        ipv4: bool,
        source in address(),
        destination in address(),
        protocol in protocol(),
        source_port in prop_oneof![Just(68_u16), any::<u16>()],
        state in select(vec![
            None,
            Some(ConnectionState::New),
            Some(ConnectionState::Established),
            Some(ConnectionState::Related),
        ]),
        redirected: bool,
        over_limit in proptest::bool::weighted(0.2),
        to_reserved_address in proptest::bool::weighted(0.2),
    ) -> Packet {
        Packet {
            input, output, ipv4, source, destination, protocol, source_port, state, redirected,
            over_limit, to_reserved_address,
        }
    }
}

fn is_private(address: Ipv4Addr) -> bool {
    network().private_network.network().contains(&address)
}

fn is_special(address: Ipv4Addr) -> bool {
    policy::SPECIAL_RANGES
        .iter()
        .any(|net| net.contains(&address))
}

fn is_dhcp(protocol: Protocol) -> bool {
    matches!(
        protocol,
        Protocol::Port(Transport::Udp, 67 | 68 | 546 | 547)
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn only_packets_from_machines_to_outside_are_masqueraded(packet in packet()) {
        let going_out = packet.input == "br1" && packet.output == "br0";
        let expected = match packet.protocol {
            _ if !going_out || !packet.ipv4 || !is_private(packet.source) => Verdict::Accept,
            Protocol::Port(..) => Verdict::MasqueradePorts(1024, 65_535),
            Protocol::Echo | Protocol::Other => Verdict::Masquerade,
        };
        prop_assert_eq!(verdict(&plain(), Hook::Postrouting, &packet), expected);
    }

    #[test]
    fn machines_reach_only_uplink_and_each_other(packet in packet()) {
        let passes = verdict(&plain(), Hook::Forward, &packet) == Verdict::Accept;
        let to_agent = packet.ipv4 && packet.destination == Ipv4Addr::new(196, 254, 111, 222);
        let refused = packet.state == Some(ConnectionState::New)
            && (is_special(packet.destination) || is_dhcp(packet.protocol) || packet.over_limit);
        if packet.input == "br1" && packet.output != "br1" {
            let may = packet.output == "br0"
                && packet.ipv4
                && packet.state.is_some()
                && !to_agent
                && !refused;
            prop_assert_eq!(passes, may);
        }
        if packet.output == "br1" && packet.input != "br1" {
            let answer = matches!(
                packet.state,
                Some(ConnectionState::Established | ConnectionState::Related)
            );
            prop_assert_eq!(passes, packet.input == "br0" && packet.ipv4 && answer);
        }
        let new = packet.state == Some(ConnectionState::New);
        match (packet.input, packet.output) {
            ("br0", "br0") => prop_assert!(!passes),
            ("br1", "br1") => {
                prop_assert_eq!(passes, !(packet.ipv4 && packet.over_limit && new));
            }
            (input, output) if input != "br1" && output != "br1" => prop_assert!(passes),
            _ => {}
        }
    }

    #[test]
    fn machines_reach_only_offered_services_of_host(packet in packet()) {
        let reaches = verdict(&plain(), Hook::Input, &packet) == Verdict::Accept;
        let offered = matches!(
            packet.protocol,
            Protocol::Echo
                | Protocol::Port(Transport::Udp, 53 | 67 | 69)
                | Protocol::Port(Transport::Tcp, 53)
        );
        let answer = matches!(
            packet.state,
            Some(ConnectionState::Established | ConnectionState::Related)
        );
        let new = packet.state == Some(ConnectionState::New);
        let asks = packet.source == Ipv4Addr::UNSPECIFIED
            && packet.protocol == Protocol::Port(Transport::Udp, 67);
        let names = packet.protocol == Protocol::Port(Transport::Udp, 53);
        let refused = packet.over_limit && (names || (new && !asks));
        let may = packet.ipv4 && !refused && (offered || answer || packet.redirected);
        prop_assert_eq!(reaches, packet.input != "br1" || may);
    }

    #[test]
    fn prerouting_drops_forged_addresses(packet in packet()) {
        let passes = verdict(&plain(), Hook::Prerouting, &packet) == Verdict::Accept;
        let host = packet.source == network().private_network.address();
        let asks = packet.source == Ipv4Addr::UNSPECIFIED
            && packet.destination == Ipv4Addr::BROADCAST
            && packet.source_port == 68
            && packet.protocol == Protocol::Port(Transport::Udp, 67);
        let honest = match packet.input {
            _ if !packet.ipv4 => !packet.to_reserved_address,
            "br1" => asks || (is_private(packet.source) && !host),
            "br0" => !is_private(packet.source) && !is_private(packet.destination),
            _ => !packet.to_reserved_address,
        };
        prop_assert_eq!(passes, honest);
    }

    #[test]
    fn settings_change_only_verdicts_that_they_name(packet in packet()) {
        let strict = strictest();
        for hook in [Hook::Prerouting, Hook::Postrouting] {
            prop_assert_eq!(verdict(&plain(), hook, &packet), verdict(&strict, hook, &packet));
        }
        let opened = verdict(&plain(), Hook::Input, &packet) == Verdict::Drop
            && verdict(&strict, Hook::Input, &packet) == Verdict::Accept;
        let configured = matches!(
            packet.protocol,
            Protocol::Port(Transport::Tcp, 8080) | Protocol::Port(Transport::Udp, 123)
        );
        prop_assert!(!opened || configured && packet.ipv4 && packet.input == "br1");
        let passed = verdict(&plain(), Hook::Forward, &packet) == Verdict::Accept;
        let passes = verdict(&strict, Hook::Forward, &packet) == Verdict::Accept;
        prop_assert!(passed || !passes, "strict settings forward additional packets");
        if passed && !passes {
            let among = packet.input == "br1" && packet.output == "br1";
            let private = packet.ipv4
                && policy::private_ranges(&network())
                    .iter()
                    .any(|net| net.contains(&packet.destination))
                && packet.destination.octets()[..2] != [10, 5]
                && packet.input == "br1"
                && packet.output == "br0"
                && packet.state == Some(ConnectionState::New);
            prop_assert!(among || private);
        }
    }
}

#[test]
fn table_with_open_port_prints_as_nft_lists_it() {
    let open = &[OpenPort {
        outside: 61_000,
        link: "tap0".to_owned(),
        index: 7,
        address: Ipv4Addr::new(172, 23, 0, 9),
        port: 22,
        until: Duration::ZERO,
        until_usec: 0,
    }];
    let table = |network: &UplinkNetwork| {
        policy::table(network, &Settings::default(), &bridges(), open).to_string()
    };
    check_golden(&table(&network()), "ruleset-open-port.nft");
    // Without an address, nothing outside leads to a machine.
    let no_lease = UplinkNetwork {
        address: None,
        ..network()
    };
    assert!(!table(&no_lease).contains("destination_nat"));
}
