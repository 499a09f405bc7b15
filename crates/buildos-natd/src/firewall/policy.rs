//! Builds table `inet buildos`: NAT from br1 to br0, and what br1 can reach.
//!
//! Build machines are untrusted: they run the code of packages.
//!
//! | chain | packets from machines | packets to machines |
//! |---|---|---|
//! | prerouting | only from their own network's addresses, only through br1 | none from br0 with addresses of br1's network |
//! | input | DHCP, DNS, TFTP, echo and the ports in `open` | |
//! | forward | to br0; new connections not to DHCP ports, special and blocked private networks | answers from br0, new connections to open ports |
//! | destination_nat, while ports are open | | to the host's address: to the open port of a machine |
//! | postrouting | masqueraded behind the host's address, from unprivileged ports | |
//!
//! The host does not route between computers on br0. Other traffic without br1 passes
//! unchanged.
//!
//! # Cost
//!
//! `tests/bench/nat-guest` measures it. The packets of established connections come first,
//! and new connections have chains of their own, which compare a bridge once. Most
//! expensive are names of interfaces, twice as much as all other comparisons, and the limit
//! of connections.
//!
//! # Limits
//!
//! Accepting a packet here does not keep other tables from dropping it.
//!
//! [`OUTSIDE_CONNECTIONS`] and [`HOST_CONNECTIONS`] limit the tracked connections of each
//! address. The kernel does not count connections that TCP has closed, which it keeps for
//! two minutes at most. A machine with several addresses has the limit several times.

use std::net::Ipv4Addr;

use buildos_types::InterfaceName;
use ipnet::Ipv4Net;

use crate::firewall::model::{
    Chain, CompareOp, ConnectionState, Elements, Family, Field, Hash, Hook, Interval, KeyPart,
    Kind, Link, Match, Priority, RateLimit, Rule, Set, Table, Transport, Verdict,
};
use crate::open_port::OpenPort;
use crate::ports::{Bridge, Ports};
use crate::settings::Settings;
use crate::uplink_network::UplinkNetwork;

/// Name of the table.
pub const TABLE: &str = "buildos";

/// Address to which a build machine sends its TFTP request for the agent.
///
/// The agent redirects the request to itself. The address is routable on the
/// Internet: without the redirection the request must not leave the host.
const AGENT_TFTP: Ipv4Addr = Ipv4Addr::new(196, 254, 111, 222);

/// Source address of a DHCP client without a lease (RFC 2131, section 4.1).
const UNSPECIFIED: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Networks that the Internet does not route (RFC 6890, section 2.2.2): private, shared
/// with the provider, for protocols, for documentation, for benchmarks.
const PRIVATE_RANGES: [Ipv4Net; 9] = [
    range([10, 0, 0], 8),
    range([100, 64, 0], 10),
    range([172, 16, 0], 12),
    range([192, 0, 0], 24),
    range([192, 0, 2], 24),
    range([192, 168, 0], 16),
    range([198, 18, 0], 15),
    range([198, 51, 100], 24),
    range([203, 0, 113], 24),
];

/// Returns the networks that `block_private` closes: [`PRIVATE_RANGES`] and the network of
/// the uplink, which can have public addresses.
#[must_use]
pub fn private_ranges(network: &UplinkNetwork) -> Vec<Ipv4Net> {
    let mut ranges = Vec::from(PRIVATE_RANGES);
    let public = network.public_network;
    let is_new = |net: &Ipv4Net| !PRIVATE_RANGES.iter().any(|range| range.contains(net));
    ranges.extend(public.filter(is_new));
    ranges
}

/// Destinations that no machine has a use for outside (RFC 6890, section 2.2.2):
/// "this network", loopback, link-local, multicast with reserved.
///
/// Link-local addresses answer for the host that asks: clouds serve its credentials
/// at 169.254.169.254.
pub const SPECIAL_RANGES: [Ipv4Net; 4] = [
    range([0, 0, 0], 8),
    range([127, 0, 0], 8),
    range([169, 254, 0], 16),
    range([224, 0, 0], 3),
];

const fn range([first, second, third]: [u8; 3], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(first, second, third, 0), prefix)
}

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;
const DHCPV6_SERVER: u16 = 547;
/// First port that needs no privilege on a host (RFC 6335, section 6: System Ports
/// end below it). A LAN may trust a host's system ports.
const FIRST_USER_PORT: u16 = 1024;
const DNS: u16 = 53;
const TFTP: u16 = 69;

/// Set of the machines' connections that the host forwards.
pub const OUTSIDE_CONNECTIONS: &str = "outside_connections";
/// Set of the machines' connections to the host.
pub const HOST_CONNECTIONS: &str = "host_connections";
/// Set of the machines' TCP connections to the host's name server.
pub const NAME_CONNECTIONS: &str = "name_connections";
/// TCP connections of an address to the name server. dnsmasq has a process for each, 200
/// in all.
const NAME_LIMIT: u32 = 5;
/// Set of the addresses that ask the host's name server by UDP.
pub const NAMES: &str = "names";
/// Questions of an address to the name server. dnsmasq waits ten seconds for the answer of a
/// silent server, so an address takes a tenth of its queries. The bucket is for a build
/// that begins.
const NAME_RATE: RateLimit = RateLimit {
    tokens: 50,
    interval: Interval::Second,
    burst: 500,
};
/// Chain for forwarded packets of machines.
const FROM_MACHINES: &str = "from_machines";
/// Chain for new connections of machines to the outside.
const NEW_TO_OUTSIDE: &str = "new_to_outside";
/// Chain for forwarded packets to machines.
const TO_MACHINES: &str = "to_machines";
/// Chain for new connections that get the host's address.
const MASQUERADE: &str = "masqueraded";

/// Groups of an address's connections, see [`Match::ConnectionsOver`].
const GROUPS: u32 = 16;
/// Room for every address of a /16. Without room for an element, its connections are not
/// limited.
const SET_SIZE: u32 = 65_536;

/// Comment of the rules that count packets from machines to the outside; a key
/// of the D-Bus property `Counters`.
pub const TO_OUTSIDE: &str = "machines to the outside";
/// Like [`TO_OUTSIDE`], for packets from the outside to machines.
pub const FROM_OUTSIDE: &str = "the outside to machines";
/// Like [`TO_OUTSIDE`], for the first packet of each connection.
pub const NEW_CONNECTIONS: &str = "new connections";

/// Like [`NEW_CONNECTIONS`], for connections from the outside to open ports of machines.
pub const OPEN_PORTS: &str = "new connections to open ports";

const TOO_MANY_OUTSIDE: &str = "a machine with too many connections to the outside";
const TOO_MANY_TO_HOST: &str = "a machine with too many connections to the host";
const TOO_MANY_TO_NAMES: &str = "a machine with too many TCP connections to the name server";
const TOO_MANY_NAMES: &str = "a machine with too many questions to the name server";
/// Comments of the rules that limit connections of machines.
pub const DROPPED_CONNECTIONS: [&str; 2] = [TOO_MANY_OUTSIDE, TOO_MANY_TO_HOST];
/// Comments of the rules that limit questions to the name server.
pub const DROPPED_NAMES: [&str; 2] = [TOO_MANY_NAMES, TOO_MANY_TO_NAMES];

/// Name of the table that keeps the host closed while [`TABLE`] cannot be installed.
pub const CLOSED_TABLE: &str = "buildos_closed";

/// Builds the table for the time without [`TABLE`]: machines reach what the host offers
/// them, and nothing is forwarded. It has no limits, so that it needs few parts of the
/// kernel.
#[must_use]
pub fn closed_table(network: &UplinkNetwork, settings: &Settings) -> Table {
    let rules = Rules {
        network,
        settings,
        ports: &Ports::default(),
        open: &[],
    };
    let is_limit = |condition: &Match| {
        matches!(
            condition,
            Match::ConnectionsOver { .. } | Match::RateOver { .. }
        )
    };
    let mut input = rules.input();
    input.retain(|rule| !rule.matches.iter().any(is_limit));
    input.insert(0, past_bridge());
    let mut among = rules.between_machines();
    among.matches.insert(0, rules.private_input());
    let forward = [
        among,
        Rule::new(vec![rules.private_input()], Verdict::Drop),
        Rule::new(vec![rules.private_output()], Verdict::Drop),
    ];
    Table {
        family: Family::Inet,
        name: CLOSED_TABLE,
        sets: Vec::new(),
        chains: vec![
            chain(Hook::Input, Kind::Filter, Priority::Filter, input),
            chain(
                Hook::Forward,
                Kind::Filter,
                Priority::Filter,
                forward.into(),
            ),
        ],
    }
}

/// Builds the table for an uplink network, the operator's settings and the bridges.
#[must_use]
pub fn table(
    network: &UplinkNetwork,
    settings: &Settings,
    ports: &Ports,
    open: &[OpenPort],
) -> Table {
    let rules = Rules {
        network,
        settings,
        ports,
        open,
    };
    let called = |name, rules| chain(Hook::Called(name), Kind::Filter, Priority::Filter, rules);
    let mut chains = vec![
        called(FROM_MACHINES, rules.forward_from_machines()),
        called(NEW_TO_OUTSIDE, rules.new_to_outside()),
        called(TO_MACHINES, rules.forward_to_machines()),
        called(MASQUERADE, masquerade()),
        chain(
            Hook::Prerouting,
            Kind::Filter,
            Priority::Raw,
            rules.prerouting(),
        ),
    ];
    let destination_nat = rules.destination_nat();
    // Without open ports, new connections need not pass this chain.
    if !destination_nat.is_empty() {
        chains.push(chain(
            Hook::Prerouting,
            Kind::Nat,
            Priority::DestinationNat,
            destination_nat,
        ));
    }
    chains.extend([
        chain(Hook::Input, Kind::Filter, Priority::Filter, rules.input()),
        chain(
            Hook::Forward,
            Kind::Filter,
            Priority::Filter,
            rules.forward(),
        ),
        chain(
            Hook::Postrouting,
            Kind::Nat,
            Priority::SourceNat,
            rules.postrouting(),
        ),
    ]);
    Table {
        family: Family::Inet,
        name: TABLE,
        sets: sets(),
        chains,
    }
}

fn sets() -> Vec<Set> {
    let connections = |name, groups| Set {
        name,
        elements: Elements::AddedAddresses(SET_SIZE * groups),
    };
    vec![
        connections(OUTSIDE_CONNECTIONS, GROUPS),
        connections(HOST_CONNECTIONS, GROUPS),
        connections(NAME_CONNECTIONS, 1),
        Set {
            name: NAMES,
            elements: Elements::Learned(&[KeyPart::Address], SET_SIZE),
        },
    ]
}

fn chain(hook: Hook, kind: Kind, priority: Priority, rules: Vec<Rule>) -> Chain {
    Chain {
        hook,
        kind,
        priority,
        rules,
    }
}

struct Rules<'a> {
    network: &'a UplinkNetwork,
    settings: &'a Settings,
    ports: &'a Ports,
    open: &'a [OpenPort],
}

impl Rules<'_> {
    /// Drops packets with forged addresses, before connection tracking keeps
    /// state for them. Rules for the most frequent packets come first, because
    /// every packet passes this chain.
    fn prerouting(&self) -> Vec<Rule> {
        let host = self.network.private_network.address().into();
        let dropped =
            |matches, comment| Rule::new(matches, Verdict::Drop).counted().comment(comment);
        let accepted = |input: Match, addresses: [Match; 2]| {
            let [first, second] = addresses;
            Rule::new(vec![input, first, second], Verdict::Accept)
        };
        let of_machines = [
            Match::Source(CompareOp::Equal, self.network()),
            Match::Source(CompareOp::NotEqual, host),
        ];
        // Answers to masqueraded connections still carry the host's address here.
        let of_others = [
            Match::Source(CompareOp::NotEqual, self.network()),
            Match::Destination(CompareOp::NotEqual, self.network()),
        ];
        let mut rules = Vec::new();
        if let Some((private, public)) = self.links() {
            rules.extend([
                accepted(Match::InputLink(private), of_machines.clone()),
                accepted(Match::InputLink(public), of_others.clone()),
            ]);
        }
        rules.extend([
            accepted(self.private_input(), of_machines),
            accepted(self.public_input(), of_others),
            Rule::new(
                vec![
                    self.private_input(),
                    Match::Source(CompareOp::Equal, UNSPECIFIED.into()),
                    // With other ports and destinations, such packets could fill
                    // connection tracking.
                    Match::Destination(CompareOp::Equal, Ipv4Addr::BROADCAST.into()),
                    Match::SourcePort(Transport::Udp, DHCP_CLIENT),
                    Match::Port(Transport::Udp, DHCP_SERVER),
                ],
                Verdict::Accept,
            )
            .comment("asks for an address"),
            dropped(
                vec![self.private_input(), Match::Source(CompareOp::Equal, host)],
                "a machine under the host's address",
            ),
            dropped(
                vec![self.private_input(), Match::Ipv4(CompareOp::Equal)],
                "a machine under a foreign address",
            ),
            dropped(
                vec![
                    self.public_input(),
                    Match::Source(CompareOp::Equal, self.network()),
                ],
                "an outsider under a machine's address",
            ),
            dropped(
                vec![self.public_input(), Match::Ipv4(CompareOp::Equal)],
                "an outsider past the NAT",
            ),
            // The input interface is the port.
            past_bridge(),
        ]);
        rules
    }

    /// Accepts the host's services for machines, and drops the rest.
    fn input(&self) -> Vec<Rule> {
        let offered =
            |transport, port| Rule::new(vec![Match::Port(transport, port)], Verdict::Accept);
        let mut rules = vec![
            Rule::new(
                vec![Match::Input(
                    CompareOp::NotEqual,
                    self.network.private_bridge.clone(),
                )],
                Verdict::Accept,
            )
            .comment("not from a machine"),
            Rule::new(vec![Match::Ipv4(CompareOp::NotEqual)], Verdict::Drop),
            // All questions from one port are one connection.
            Rule::new(
                vec![
                    Match::Port(Transport::Udp, DNS),
                    Match::RateOver {
                        set: NAMES,
                        key: &[Field::Source],
                        limit: NAME_RATE,
                    },
                ],
                Verdict::Drop,
            )
            .counted()
            .comment(TOO_MANY_NAMES),
            Rule::new(
                vec![Match::State(vec![
                    ConnectionState::Established,
                    ConnectionState::Related,
                ])],
                Verdict::Accept,
            ),
            // All machines without an address share one connection.
            Rule::new(
                vec![
                    Match::Source(CompareOp::Equal, UNSPECIFIED.into()),
                    Match::Port(Transport::Udp, DHCP_SERVER),
                ],
                Verdict::Accept,
            )
            .comment("asks for an address"),
            self.limit(vec![], HOST_CONNECTIONS, Hash::Connection)
                .comment(TOO_MANY_TO_HOST),
            Rule::new(vec![Match::DestinationNat], Verdict::Accept)
                .comment("the host redirects it to itself, as an agent does for TFTP"),
            offered(Transport::Udp, DHCP_SERVER),
            offered(Transport::Udp, DNS),
            self.limit_name_connections(),
            offered(Transport::Tcp, DNS),
            offered(Transport::Udp, TFTP),
            Rule::new(vec![Match::EchoRequest], Verdict::Accept),
        ];
        rules.extend(
            self.settings
                .open
                .iter()
                .map(|port| offered(port.transport, port.number).comment("configured")),
        );
        rules.push(
            Rule::new(vec![], Verdict::Drop)
                .counted()
                .comment("not for machines"),
        );
        rules
    }

    /// Forwards from br1 to br0 and answers back.
    fn forward(&self) -> Vec<Rule> {
        let [to_outside, from_outside] = self.established();
        let private_to_public =
            |rule| self.between_links(rule, |private, public| [private, public]);
        let public_to_private =
            |rule| self.between_links(rule, |private, public| [public, private]);
        let mut rules = Vec::new();
        rules.extend(private_to_public(to_outside));
        rules.extend(public_to_private(from_outside));
        rules.extend(private_to_public(new_connection()));
        rules.extend([
            Rule::new(vec![self.private_input()], Verdict::Jump(FROM_MACHINES)),
            Rule::new(vec![self.private_output()], Verdict::Jump(TO_MACHINES)),
            Rule::new(
                vec![self.public_input(), self.public_output()],
                Verdict::Drop,
            )
            .counted()
            .comment("the host is no router of br0's network"),
        ]);
        rules
    }

    /// Limits a rule to packets between two links; [`None`] while natd does not know their
    /// numbers. A rule that compares names follows for the same packets: a new bridge has
    /// its name at once, and another number.
    fn between_links(
        &self,
        mut rule: Rule,
        input_output: impl Fn(Link, Link) -> [Link; 2],
    ) -> Option<Rule> {
        let (private, public) = self.links()?;
        let [input, output] = input_output(private, public);
        let links = [Match::InputLink(input), Match::OutputLink(output)];
        rule.matches.splice(0..0, links);
        Some(rule)
    }

    /// Returns br1 and br0.
    fn links(&self) -> Option<(Link, Link)> {
        let link = |name: &InterfaceName, bridge: Option<Bridge>| {
            bridge.map(|Bridge { index, .. }| Link {
                name: name.clone(),
                index,
            })
        };
        let private = link(&self.network.private_bridge, self.ports.private_bridge);
        private.zip(link(&self.network.public_bridge, self.ports.public_bridge))
    }

    /// Returns the rules that accept packets of established connections, without their
    /// interfaces: those to the outside and those from there.
    fn established(&self) -> [Rule; 2] {
        let established =
            Match::State(vec![ConnectionState::Established, ConnectionState::Related]);
        let accepted = |matches, comment| {
            Rule::new(matches, Verdict::Accept)
                .counted()
                .comment(comment)
        };
        let not_agent = Match::Destination(CompareOp::NotEqual, AGENT_TFTP.into());
        [
            accepted(vec![established.clone(), not_agent], TO_OUTSIDE),
            accepted(
                vec![established, Match::Ipv4(CompareOp::Equal)],
                FROM_OUTSIDE,
            ),
        ]
    }

    /// Forwards to br0, and new connections there only as [`Self::new_to_outside`] allows.
    fn forward_from_machines(&self) -> Vec<Rule> {
        let [mut to_outside, _] = self.established();
        to_outside.matches.push(self.public_output());
        let mut new = new_connection();
        new.matches.push(self.public_output());
        let mut rules = vec![to_outside, new];
        rules.extend(self.limit_forwarded().map(|mut rule| {
            rule.matches.insert(0, self.private_output());
            rule
        }));
        rules.extend([
            self.between_machines(),
            Rule::new(vec![], Verdict::Drop)
                .counted()
                .comment("machines have no other way"),
        ]);
        rules
    }

    /// Accepts new connections to the outside, except those that are closed.
    fn new_to_outside(&self) -> Vec<Rule> {
        let mut rules = Vec::from(self.limit_forwarded());
        rules.push(
            Rule::new(
                vec![Match::Destination(CompareOp::Equal, AGENT_TFTP.into())],
                Verdict::Drop,
            )
            .counted()
            .comment("for an agent on this host; its redirection is missing"),
        );
        rules.extend(never_forwarded());
        if self.ports.has_smaller_uplink() {
            rules.push(clamp_segment_size());
        }
        rules.extend(self.private_ranges());
        rules.push(
            Rule::new(vec![], Verdict::Accept)
                .counted()
                .comment(TO_OUTSIDE),
        );
        rules
    }

    /// Accepts answers from br0, and new connections to open ports.
    fn forward_to_machines(&self) -> Vec<Rule> {
        let [_, mut from_outside] = self.established();
        from_outside.matches.push(self.public_input());
        let mut rules = vec![from_outside];
        rules.extend(self.open.iter().map(|open| {
            let matches = vec![
                self.public_input(),
                Match::State(vec![ConnectionState::New]),
                // Not for packets that the host would route without the rule below.
                Match::DestinationNat,
                Match::Destination(CompareOp::Equal, open.address.into()),
                Match::Port(Transport::Tcp, open.port),
            ];
            Rule::new(matches, Verdict::Accept)
                .counted()
                .comment(OPEN_PORTS)
        }));
        rules.push(
            Rule::new(vec![], Verdict::Drop)
                .counted()
                .comment("new connections to machines"),
        );
        rules
    }

    /// Sends connections to the host's address on br0 to the open ports of machines.
    fn destination_nat(&self) -> Vec<Rule> {
        let Some(address) = self.network.address else {
            return Vec::new();
        };
        let rule = |open: &OpenPort| {
            let matches = vec![
                self.public_input(),
                Match::Destination(CompareOp::Equal, address.into()),
                Match::Port(Transport::Tcp, open.outside),
            ];
            Rule::new(matches, Verdict::DestinationNat(open.address, open.port))
                .comment("an open port of a machine")
        };
        self.open.iter().map(rule).collect()
    }

    /// Drops forwarded new connections of addresses with too many connections.
    fn limit_forwarded(&self) -> [Rule; 2] {
        let other = Match::Protocol(CompareOp::NotEqual, Transport::Tcp);
        [
            self.limit(vec![], OUTSIDE_CONNECTIONS, Hash::SourcePort),
            self.limit(vec![other], OUTSIDE_CONNECTIONS, Hash::Connection),
        ]
        .map(|rule| rule.comment(TOO_MANY_OUTSIDE))
    }

    /// Drops new connections of addresses with too many connections.
    fn limit(&self, other: Vec<Match>, set: &'static str, hash: Hash) -> Rule {
        let mut matches = vec![Match::State(vec![ConnectionState::New])];
        matches.extend(other);
        matches.push(Match::ConnectionsOver {
            set,
            hash,
            groups: GROUPS,
            limit: self.settings.connections.get() / GROUPS,
        });
        Rule::new(matches, Verdict::Drop).counted()
    }

    /// Drops new TCP connections to the name server of addresses with too many.
    fn limit_name_connections(&self) -> Rule {
        let matches = vec![
            Match::Port(Transport::Tcp, DNS),
            Match::State(vec![ConnectionState::New]),
            Match::ConnectionsOver {
                set: NAME_CONNECTIONS,
                hash: Hash::Connection,
                groups: 1,
                limit: NAME_LIMIT,
            },
        ];
        let rule = Rule::new(matches, Verdict::Drop).counted();
        rule.comment(TOO_MANY_TO_NAMES)
    }

    /// Accepts or drops packets of machines to br1: frames that br_netfilter passes
    /// to iptables, and packets routed back into the bridge.
    fn between_machines(&self) -> Rule {
        let matches = vec![self.private_output()];
        match self.settings.isolate {
            false => Rule::new(matches, Verdict::Accept)
                .comment("frames within the bridge, when br_netfilter shows them"),
            true => Rule::new(matches, Verdict::Drop)
                .counted()
                .comment("machines are kept apart"),
        }
    }

    /// Drops new connections to private networks behind the uplink, except those
    /// in `allow_private`.
    fn private_ranges(&self) -> Vec<Rule> {
        if !self.settings.block_private {
            return Vec::new();
        }
        let to = |net: &Ipv4Net, verdict| {
            let matches = vec![Match::Destination(CompareOp::Equal, *net)];
            Rule::new(matches, verdict).counted()
        };
        let exceptions = self.settings.allow_private.iter();
        let exceptions = exceptions.map(|net| to(net, Verdict::Accept).comment("configured"));
        let blocked = private_ranges(self.network);
        let blocked = blocked.iter();
        let blocked =
            blocked.map(|net| to(net, Verdict::Drop).comment("a private network of the uplink"));
        exceptions.chain(blocked).collect()
    }

    /// Masquerades new connections from br1 to br0.
    fn postrouting(&self) -> Vec<Rule> {
        let source = Match::Source(CompareOp::Equal, self.network());
        let rule = |matches| Rule::new(matches, Verdict::Jump(MASQUERADE));
        let by_number = self.between_links(rule(vec![source.clone()]), |private, public| {
            [private, public]
        });
        let by_name = rule(vec![self.private_input(), self.public_output(), source]);
        by_number.into_iter().chain([by_name]).collect()
    }

    fn private_input(&self) -> Match {
        Match::Input(CompareOp::Equal, self.network.private_bridge.clone())
    }

    fn public_input(&self) -> Match {
        Match::Input(CompareOp::Equal, self.network.public_bridge.clone())
    }

    fn private_output(&self) -> Match {
        Match::Output(CompareOp::Equal, self.network.private_bridge.clone())
    }

    fn public_output(&self) -> Match {
        Match::Output(CompareOp::Equal, self.network.public_bridge.clone())
    }

    fn network(&self) -> Ipv4Net {
        self.network.private_network.network()
    }
}

/// Drops a packet in a frame that the rules for bridges did not see.
pub(super) fn past_bridge() -> Rule {
    Rule::new(vec![Match::ToReservedAddress], Verdict::Drop)
        .counted()
        .comment("past a bridge")
}

/// Continues with the rules for new connections to the outside. NAT ignores packets without
/// a connection: they would leave with a private source address.
fn new_connection() -> Rule {
    let matches = vec![
        Match::State(vec![ConnectionState::New]),
        Match::Ipv4(CompareOp::Equal),
    ];
    Rule::new(matches, Verdict::Jump(NEW_TO_OUTSIDE))
}

/// Drops new connections to the outside that could only be meant for the uplink's network or
/// for the host itself.
fn never_forwarded() -> Vec<Rule> {
    let dropped = |condition, comment| {
        let rule = Rule::new(vec![condition], Verdict::Drop);
        rule.counted().comment(comment)
    };
    let ports = [(DHCP_SERVER, DHCP_CLIENT), (DHCPV6_CLIENT, DHCPV6_SERVER)]
        .map(|(first, last)| Match::Ports(Transport::Udp, first, last))
        .map(|ports| dropped(ports, "DHCP for the network of the uplink"));
    let ranges = SPECIAL_RANGES
        .map(|net| Match::Destination(CompareOp::Equal, net))
        .map(|range| dropped(range, "an address that has no meaning outside"));
    ports.into_iter().chain(ranges).collect()
}

/// Makes servers send segments that pass br0, because a path can lose larger packets
/// without an error message (RFC 2923, section 2.1).
///
/// Machines get the host's error message for their larger packets, so this rule need not
/// see the answers. The kernel looks up a route for each segment size, which costs as much
/// as all other rules for a new connection.
fn clamp_segment_size() -> Rule {
    Rule::new(vec![Match::Syn], Verdict::ClampSegmentSize)
}

fn masquerade() -> Vec<Rule> {
    let with_ports = [
        Transport::Tcp,
        Transport::Udp,
        Transport::Sctp,
        Transport::Dccp,
    ];
    let mut rules: Vec<Rule> = with_ports.map(|t| masqueraded(Some(t))).into();
    // ICMP and the protocols without ports.
    rules.push(masqueraded(None));
    rules
}

/// Replaces machines' source addresses by the host's, and their system ports.
fn masqueraded(protocol: Option<Transport>) -> Rule {
    let matches = protocol.map(|protocol| Match::Protocol(CompareOp::Equal, protocol));
    let verdict = match protocol {
        Some(_) => Verdict::MasqueradePorts(FIRST_USER_PORT, u16::MAX),
        None => Verdict::Masquerade,
    };
    Rule::new(matches.into_iter().collect(), verdict)
        .counted()
        .comment(NEW_CONNECTIONS)
}
