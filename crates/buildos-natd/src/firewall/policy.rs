//! Builds table `inet buildos`: NAT from br1 to br0, and what br1 can reach.
//!
//! Build machines are untrusted: they run the code of packages.
//!
//! | chain | packets from machines | packets to machines |
//! |---|---|---|
//! | prerouting | only from their own network's addresses | none from br0 with addresses of br1's network |
//! | input | DHCP, DNS, TFTP, echo and the ports in `open` | |
//! | forward | to br0; new connections not to DHCP ports, special and blocked private networks | answers from br0 |
//! | postrouting | masqueraded behind the host's address, from unprivileged ports | |
//!
//! The host does not route between computers on br0. Other traffic without br1 passes
//! unchanged.
//!
//! # Limits
//!
//! Accepting a packet here does not keep other tables from dropping it.
//!
//! [`OUTSIDE_CONNECTIONS`] and [`HOST_CONNECTIONS`] limit the tracked connections of each
//! address. The kernel does not count connections that TCP has closed, which it keeps for
//! two minutes at most. A machine with several addresses has the limit several times.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::firewall::model::{
    Chain, CompareOp, ConnectionState, Elements, Family, Field, Hook, Interval, KeyPart, Kind,
    Match, Priority, RateLimit, Rule, Set, Table, Transport, Verdict,
};
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
    let rules = Rules { network, settings };
    let is_limit = |condition: &Match| {
        matches!(
            condition,
            Match::ConnectionsOver { .. } | Match::RateOver { .. }
        )
    };
    let mut input = rules.input();
    input.retain(|rule| !rule.matches.iter().any(is_limit));
    let forward = [
        rules.between_machines(),
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

/// Builds the table for an uplink network and the operator's settings.
#[must_use]
pub fn table(network: &UplinkNetwork, settings: &Settings) -> Table {
    let rules = Rules { network, settings };
    Table {
        family: Family::Inet,
        name: TABLE,
        sets: sets(),
        chains: vec![
            chain(
                Hook::Prerouting,
                Kind::Filter,
                Priority::Raw,
                rules.prerouting(),
            ),
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
        ],
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
}

impl Rules<'_> {
    /// Drops packets with forged addresses, before connection tracking keeps
    /// state for them. Rules for the most frequent packets come first, because
    /// every packet passes this chain.
    fn prerouting(&self) -> Vec<Rule> {
        let host = self.network.private_network.address().into();
        let dropped =
            |matches, comment| Rule::new(matches, Verdict::Drop).counted().comment(comment);
        vec![
            Rule::new(
                vec![
                    self.private_input(),
                    Match::Source(CompareOp::Equal, self.network()),
                    Match::Source(CompareOp::NotEqual, host),
                ],
                Verdict::Accept,
            ),
            // Answers to masqueraded connections still carry the host's address here.
            Rule::new(
                vec![
                    self.public_input(),
                    Match::Source(CompareOp::NotEqual, self.network()),
                    Match::Destination(CompareOp::NotEqual, self.network()),
                ],
                Verdict::Accept,
            ),
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
        ]
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
            self.limit(vec![], HOST_CONNECTIONS)
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

    /// Forwards from br1 to br0 and answers back; established connections first.
    fn forward(&self) -> Vec<Rule> {
        let established =
            || Match::State(vec![ConnectionState::Established, ConnectionState::Related]);
        let agent = |is| Match::Destination(is, AGENT_TFTP.into());
        let mut rules = vec![
            Rule::new(
                vec![
                    self.private_input(),
                    self.public_output(),
                    agent(CompareOp::NotEqual),
                    established(),
                ],
                Verdict::Accept,
            )
            .counted()
            .comment(TO_OUTSIDE),
            Rule::new(
                vec![
                    self.public_input(),
                    self.private_output(),
                    Match::Ipv4(CompareOp::Equal),
                    established(),
                ],
                Verdict::Accept,
            )
            .counted()
            .comment(FROM_OUTSIDE),
            self.limit(vec![self.private_input()], OUTSIDE_CONNECTIONS)
                .comment(TOO_MANY_OUTSIDE),
            self.between_machines(),
            Rule::new(
                vec![self.private_input(), agent(CompareOp::Equal)],
                Verdict::Drop,
            )
            .counted()
            .comment("for an agent on this host; its redirection is missing"),
        ];
        rules.extend(self.never_forwarded());
        rules.push(self.clamp_segment_size());
        rules.extend(self.private_ranges());
        rules.extend([
            // NAT ignores packets without a connection: they would leave with a
            // private source address.
            Rule::new(
                vec![
                    self.private_input(),
                    self.public_output(),
                    Match::Ipv4(CompareOp::Equal),
                    Match::State(vec![ConnectionState::New]),
                ],
                Verdict::Accept,
            )
            .counted()
            .comment(TO_OUTSIDE),
            Rule::new(vec![self.private_input()], Verdict::Drop)
                .counted()
                .comment("machines have no other way"),
            Rule::new(vec![self.private_output()], Verdict::Drop)
                .counted()
                .comment("new connections to machines"),
            Rule::new(
                vec![self.public_input(), self.public_output()],
                Verdict::Drop,
            )
            .counted()
            .comment("the host is no router of br0's network"),
        ]);
        rules
    }

    /// Drops new connections of addresses with too many connections.
    fn limit(&self, mut matches: Vec<Match>, set: &'static str) -> Rule {
        matches.extend([
            Match::State(vec![ConnectionState::New]),
            Match::ConnectionsOver {
                set,
                groups: GROUPS,
                limit: self.settings.connections.get() / GROUPS,
            },
        ]);
        Rule::new(matches, Verdict::Drop).counted()
    }

    /// Drops new TCP connections to the name server of addresses with too many.
    fn limit_name_connections(&self) -> Rule {
        let matches = vec![
            Match::Port(Transport::Tcp, DNS),
            Match::State(vec![ConnectionState::New]),
            Match::ConnectionsOver {
                set: NAME_CONNECTIONS,
                groups: 1,
                limit: NAME_LIMIT,
            },
        ];
        let rule = Rule::new(matches, Verdict::Drop).counted();
        rule.comment(TOO_MANY_TO_NAMES)
    }

    /// Drops packets to the outside that could only be meant for the uplink's network
    /// or for the host itself.
    fn never_forwarded(&self) -> Vec<Rule> {
        let dropped = |condition, comment| {
            let matches = vec![self.private_input(), self.public_output(), condition];
            Rule::new(matches, Verdict::Drop).counted().comment(comment)
        };
        let ports = [(DHCP_SERVER, DHCP_CLIENT), (DHCPV6_CLIENT, DHCPV6_SERVER)]
            .map(|(first, last)| Match::Ports(Transport::Udp, first, last))
            .map(|ports| dropped(ports, "DHCP for the network of the uplink"));
        let ranges = SPECIAL_RANGES
            .map(|net| Match::Destination(CompareOp::Equal, net))
            .map(|range| dropped(range, "an address that has no meaning outside"));
        ports.into_iter().chain(ranges).collect()
    }

    /// Makes servers send segments that pass br0, because a path can lose larger
    /// packets without an error message (RFC 2923, section 2.1).
    ///
    /// Machines get the host's error message for their larger packets, so this rule
    /// need not see the answers.
    fn clamp_segment_size(&self) -> Rule {
        let matches = vec![self.private_input(), self.public_output(), Match::Syn];
        Rule::new(matches, Verdict::ClampSegmentSize)
    }

    /// Accepts or drops packets from br1 to br1: frames that br_netfilter passes
    /// to iptables, and packets routed back into the bridge.
    fn between_machines(&self) -> Rule {
        let matches = vec![self.private_input(), self.private_output()];
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
            let matches = vec![
                self.private_input(),
                self.public_output(),
                Match::Destination(CompareOp::Equal, *net),
                Match::State(vec![ConnectionState::New]),
            ];
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

    /// Replaces machines' source addresses by the host's, and their system ports.
    fn postrouting(&self) -> Vec<Rule> {
        let masqueraded = |protocol: Option<Transport>| {
            let mut matches = vec![
                self.private_input(),
                self.public_output(),
                Match::Source(CompareOp::Equal, self.network()),
            ];
            matches.extend(protocol.map(Match::Protocol));
            let verdict = match protocol {
                Some(_) => Verdict::MasqueradePorts(FIRST_USER_PORT, u16::MAX),
                None => Verdict::Masquerade,
            };
            Rule::new(matches, verdict)
                .counted()
                .comment(NEW_CONNECTIONS)
        };
        [
            Some(Transport::Tcp),
            Some(Transport::Udp),
            Some(Transport::Sctp),
            Some(Transport::Dccp),
            // ICMP and the protocols without ports.
            None,
        ]
        .map(masqueraded)
        .into()
    }

    fn private_input(&self) -> Match {
        Match::Input(CompareOp::Equal, self.network.private_bridge.clone())
    }

    fn public_input(&self) -> Match {
        Match::Input(CompareOp::Equal, self.network.public_bridge.clone())
    }

    fn private_output(&self) -> Match {
        Match::Output(self.network.private_bridge.clone())
    }

    fn public_output(&self) -> Match {
        Match::Output(self.network.public_bridge.clone())
    }

    fn network(&self) -> Ipv4Net {
        self.network.private_network.network()
    }
}
