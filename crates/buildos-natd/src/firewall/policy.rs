//! Builds table `inet buildos`: NAT from br1 to br0, and what br1 can reach.
//!
//! Build machines are untrusted: they run the code of packages.
//!
//! | chain | packets from machines | packets to machines |
//! |---|---|---|
//! | prerouting | only from their own network's addresses | none from br0 with addresses of br1's network |
//! | input | DHCP, DNS, TFTP, echo and the ports in `open` | |
//! | forward | to br0; new connections not to blocked private networks | answers from br0 |
//! | postrouting | masqueraded behind the host's address | |
//!
//! # Limits
//!
//! Traffic without br1 passes unchanged. Accepting a packet here does not keep
//! other tables from dropping it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::firewall::model::{
    Chain, CompareOp, ConnectionState, Hook, Kind, Match, Priority, Rule, Table, Transport, Verdict,
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

/// Networks that the Internet does not route: private (RFC 1918, section 3),
/// shared with the provider (RFC 6598) and link-local (RFC 3927).
pub const PRIVATE_RANGES: [Ipv4Net; 5] = [
    range(10, 0, 8),
    range(172, 16, 12),
    range(192, 168, 16),
    range(100, 64, 10),
    range(169, 254, 16),
];

const fn range(first: u8, second: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), prefix)
}

const DHCP_SERVER: u16 = 67;
const DNS: u16 = 53;
const TFTP: u16 = 69;

/// Comment of the rules that count packets from machines to the outside; a key
/// of the D-Bus property `Counters`.
pub const TO_OUTSIDE: &str = "machines to the outside";
/// Like [`TO_OUTSIDE`], for packets from the outside to machines.
pub const FROM_OUTSIDE: &str = "the outside to machines";
/// Like [`TO_OUTSIDE`], for the first packet of each connection.
pub const NEW_CONNECTIONS: &str = "new connections";

/// Builds the table for an uplink network and the operator's settings.
#[must_use]
pub fn table(network: &UplinkNetwork, settings: &Settings) -> Table {
    let rules = Rules { network, settings };
    Table {
        name: TABLE,
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
            Rule::new(
                vec![Match::State(vec![
                    ConnectionState::Established,
                    ConnectionState::Related,
                ])],
                Verdict::Accept,
            ),
            Rule::new(vec![Match::DestinationNat], Verdict::Accept)
                .comment("the host redirects it to itself, as an agent does for TFTP"),
            offered(Transport::Udp, DHCP_SERVER),
            offered(Transport::Udp, DNS),
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
            self.between_machines(),
            Rule::new(
                vec![self.private_input(), agent(CompareOp::Equal)],
                Verdict::Drop,
            )
            .counted()
            .comment("for an agent on this host; its redirection is missing"),
        ];
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
        ]);
        rules
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
        let blocked = PRIVATE_RANGES.iter();
        let blocked =
            blocked.map(|net| to(net, Verdict::Drop).comment("a private network of the uplink"));
        exceptions.chain(blocked).collect()
    }

    /// Replaces machines' source addresses by the host's.
    fn postrouting(&self) -> Vec<Rule> {
        vec![
            Rule::new(
                vec![
                    self.private_input(),
                    self.public_output(),
                    Match::Source(CompareOp::Equal, self.network()),
                ],
                Verdict::Masquerade,
            )
            .counted()
            .comment(NEW_CONNECTIONS),
        ]
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
