//! What our table says: NAT from br1 out of br0, and no more of the host for
//! the machines than they need.
//!
//! Build machines are strangers: they run what packages bring. They may speak
//! to the outside through the uplink, under the host's address, and to the
//! host for DHCP, DNS, TFTP and echo; they may not pretend to be somebody
//! else. Nobody outside opens a connection to them. Nothing else is decided
//! here: traffic that has nothing to do with br1 passes untouched, and what
//! other tables drop stays dropped.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::config::Settings;
use crate::firewall::model::{
    Chain, ConnectionState, Hook, Is, Kind, Match, Priority, Rule, Table, Transport, Verdict,
};
use crate::uplink_network::UplinkNetwork;

/// Name of the table.
pub const TABLE: &str = "buildos";

/// Where a build machine looks for its agent by TFTP. The address is routable;
/// the agent redirects it to itself. When that rule is missing, the request
/// must not reach whoever owns the address.
const AGENT_TFTP: Ipv4Addr = Ipv4Addr::new(196, 254, 111, 222);

/// A machine that asks for an address has none (RFC 2131, section 4.1).
const UNSPECIFIED: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// What is nobody's on the Internet: RFC 1918, section 3; RFC 6598 (shared with
/// the provider); RFC 3927 (link-local).
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

/// Comments of the rules that count what passes, by which they are found.
pub const OUT: &str = "machines to the outside";
/// See [`OUT`].
pub const BACK: &str = "the outside to machines";
/// See [`OUT`]: the first packet of each connection.
pub const CONNECTIONS: &str = "new connections";

/// The table for a network under these settings.
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
    /// Nobody is what he is not. Before connection tracking, so that forged
    /// packets leave no trace in it. What nearly all packets are comes first:
    /// each of them is looked at here.
    fn prerouting(&self) -> Vec<Rule> {
        let host = self.network.private_network.host().into();
        let dropped =
            |matches, comment| Rule::new(matches, Verdict::Drop).counted().comment(comment);
        vec![
            Rule::new(
                vec![
                    self.by_machines(),
                    Match::Source(Is::Equal, self.network()),
                    Match::Source(Is::Not, host),
                ],
                Verdict::Accept,
            ),
            // Answers to masqueraded connections still have the host's address here.
            Rule::new(
                vec![
                    self.by_outsiders(),
                    Match::Source(Is::Not, self.network()),
                    Match::Destination(Is::Not, self.network()),
                ],
                Verdict::Accept,
            ),
            Rule::new(
                vec![
                    self.by_machines(),
                    Match::Source(Is::Equal, UNSPECIFIED.into()),
                    Match::Port(Transport::Udp, DHCP_SERVER),
                ],
                Verdict::Accept,
            )
            .comment("asks for an address"),
            dropped(
                vec![self.by_machines(), Match::Source(Is::Equal, host)],
                "a machine under the host's address",
            ),
            dropped(
                vec![self.by_machines(), Match::Ipv4(Is::Equal)],
                "a machine under a foreign address",
            ),
            dropped(
                vec![
                    self.by_outsiders(),
                    Match::Source(Is::Equal, self.network()),
                ],
                "an outsider under a machine's address",
            ),
            dropped(
                vec![self.by_outsiders(), Match::Ipv4(Is::Equal)],
                "an outsider past the NAT",
            ),
        ]
    }

    /// What machines may have of the host.
    fn input(&self) -> Vec<Rule> {
        let offered =
            |transport, port| Rule::new(vec![Match::Port(transport, port)], Verdict::Accept);
        let mut rules = vec![
            Rule::new(
                vec![Match::Input(Is::Not, self.network.private_bridge.clone())],
                Verdict::Accept,
            )
            .comment("not from a machine"),
            Rule::new(vec![Match::Ipv4(Is::Not)], Verdict::Drop),
            Rule::new(
                vec![Match::State(vec![
                    ConnectionState::Established,
                    ConnectionState::Related,
                ])],
                Verdict::Accept,
            ),
            Rule::new(vec![Match::Redirected], Verdict::Accept)
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

    /// Out of br1 through br0, and the answers back: connections that there are
    /// first, and then who may begin one.
    fn forward(&self) -> Vec<Rule> {
        let known = || Match::State(vec![ConnectionState::Established, ConnectionState::Related]);
        let agent = |is| Match::Destination(is, AGENT_TFTP.into());
        let mut rules = vec![
            Rule::new(
                vec![
                    self.by_machines(),
                    self.for_outsiders(),
                    agent(Is::Not),
                    known(),
                ],
                Verdict::Accept,
            )
            .counted()
            .comment(OUT),
            Rule::new(
                vec![
                    self.by_outsiders(),
                    self.for_machines(),
                    Match::Ipv4(Is::Equal),
                    known(),
                ],
                Verdict::Accept,
            )
            .counted()
            .comment(BACK),
            self.among_machines(),
            Rule::new(vec![self.by_machines(), agent(Is::Equal)], Verdict::Drop)
                .counted()
                .comment("for an agent on this host; its redirection is missing"),
        ];
        rules.extend(self.private_ranges());
        rules.extend([
            // An answer that fits no connection would leave under a private address.
            Rule::new(
                vec![
                    self.by_machines(),
                    self.for_outsiders(),
                    Match::Ipv4(Is::Equal),
                    Match::State(vec![ConnectionState::New]),
                ],
                Verdict::Accept,
            )
            .counted()
            .comment(OUT),
            Rule::new(vec![self.by_machines()], Verdict::Drop)
                .counted()
                .comment("machines have no other way"),
            Rule::new(vec![self.for_machines()], Verdict::Drop)
                .counted()
                .comment("nobody reaches machines first"),
        ]);
        rules
    }

    /// Frames within the bridge come here when br_netfilter shows them, and
    /// packets that a machine has the host carry back into it.
    fn among_machines(&self) -> Rule {
        let matches = vec![self.by_machines(), self.for_machines()];
        match self.settings.isolate {
            false => Rule::new(matches, Verdict::Accept)
                .comment("frames within the bridge, when br_netfilter shows them"),
            true => Rule::new(matches, Verdict::Drop)
                .counted()
                .comment("machines are kept apart"),
        }
    }

    /// No new connections to private ranges behind the uplink, but for the
    /// exceptions.
    fn private_ranges(&self) -> Vec<Rule> {
        if !self.settings.block_private {
            return Vec::new();
        }
        let to = |net: &Ipv4Net, verdict| {
            let matches = vec![
                self.by_machines(),
                self.for_outsiders(),
                Match::Destination(Is::Equal, *net),
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

    /// Machines leave under the host's address.
    fn postrouting(&self) -> Vec<Rule> {
        vec![
            Rule::new(
                vec![
                    self.by_machines(),
                    self.for_outsiders(),
                    Match::Source(Is::Equal, self.network()),
                ],
                Verdict::Masquerade,
            )
            .counted()
            .comment(CONNECTIONS),
        ]
    }

    fn by_machines(&self) -> Match {
        Match::Input(Is::Equal, self.network.private_bridge.clone())
    }

    fn by_outsiders(&self) -> Match {
        Match::Input(Is::Equal, self.network.public_bridge.clone())
    }

    fn for_machines(&self) -> Match {
        Match::Output(self.network.private_bridge.clone())
    }

    fn for_outsiders(&self) -> Match {
        Match::Output(self.network.public_bridge.clone())
    }

    fn network(&self) -> Ipv4Net {
        self.network.private_network.net()
    }
}
