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

use crate::site::Site;
use crate::table::{
    Chain, ConnectionState, Hook, Is, Kind, Match, Priority, Rule, Table, Transport, Verdict,
};

/// Name of the table.
pub const TABLE: &str = "buildos";

/// Where a build machine looks for its agent by TFTP. The address is routable;
/// the agent redirects it to itself. When that rule is missing, the request
/// must not reach whoever owns the address.
const AGENT_TFTP: Ipv4Addr = Ipv4Addr::new(196, 254, 111, 222);

/// A machine that asks for an address has none (RFC 2131, section 4.1).
const UNSPECIFIED: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

const DHCP_SERVER: u16 = 67;
const DNS: u16 = 53;
const TFTP: u16 = 69;

/// The table for a site.
#[must_use]
pub fn table(site: &Site) -> Table {
    let rules = Rules(site);
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

struct Rules<'a>(&'a Site);

impl Rules<'_> {
    /// Nobody is what he is not. Before connection tracking, so that forged
    /// packets leave no trace in it.
    fn prerouting(&self) -> Vec<Rule> {
        vec![
            Rule::new(
                vec![
                    self.by_machines(),
                    Match::Source(Is::Equal, UNSPECIFIED.into()),
                    Match::Port(Transport::Udp, DHCP_SERVER),
                ],
                Verdict::Accept,
            )
            .comment("asks for an address"),
            Rule::new(
                vec![
                    self.by_machines(),
                    Match::Source(Is::Equal, self.0.network.host().into()),
                ],
                Verdict::Drop,
            )
            .counted()
            .comment("a machine under the host's address"),
            Rule::new(
                vec![self.by_machines(), Match::Source(Is::Not, self.network())],
                Verdict::Drop,
            )
            .counted()
            .comment("a machine under a foreign address"),
            Rule::new(
                vec![
                    self.by_outsiders(),
                    Match::Source(Is::Equal, self.network()),
                ],
                Verdict::Drop,
            )
            .counted()
            .comment("an outsider under a machine's address"),
            // Answers to masqueraded connections still have the host's address here.
            Rule::new(
                vec![self.by_outsiders(), Match::Destination(self.network())],
                Verdict::Drop,
            )
            .counted()
            .comment("an outsider past the NAT"),
        ]
    }

    /// What machines may have of the host.
    fn input(&self) -> Vec<Rule> {
        let offered =
            |transport, port| Rule::new(vec![Match::Port(transport, port)], Verdict::Accept);
        vec![
            Rule::new(
                vec![Match::Input(Is::Not, self.0.private.clone())],
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
            Rule::new(vec![], Verdict::Drop)
                .counted()
                .comment("not for machines"),
        ]
    }

    /// Out of br1 through br0, and the answers back.
    fn forward(&self) -> Vec<Rule> {
        let answer = [ConnectionState::Established, ConnectionState::Related];
        let any = [&answer[..], &[ConnectionState::New]].concat();
        vec![
            Rule::new(
                vec![self.by_machines(), self.for_machines()],
                Verdict::Accept,
            )
            .comment("frames within the bridge, when br_netfilter shows them"),
            Rule::new(
                vec![self.by_machines(), Match::Destination(AGENT_TFTP.into())],
                Verdict::Drop,
            )
            .counted()
            .comment("for an agent on this host; its redirection is missing"),
            // An answer that fits no connection would leave under a private address.
            Rule::new(
                vec![
                    self.by_machines(),
                    self.for_outsiders(),
                    Match::Ipv4(Is::Equal),
                    Match::State(any),
                ],
                Verdict::Accept,
            )
            .counted(),
            Rule::new(
                vec![
                    self.by_outsiders(),
                    self.for_machines(),
                    Match::Ipv4(Is::Equal),
                    Match::State(answer.into()),
                ],
                Verdict::Accept,
            )
            .counted(),
            Rule::new(vec![self.by_machines()], Verdict::Drop)
                .counted()
                .comment("machines have no other way"),
            Rule::new(vec![self.for_machines()], Verdict::Drop)
                .counted()
                .comment("nobody reaches machines first"),
        ]
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
            .counted(),
        ]
    }

    fn by_machines(&self) -> Match {
        Match::Input(Is::Equal, self.0.private.clone())
    }

    fn by_outsiders(&self) -> Match {
        Match::Input(Is::Equal, self.0.public.clone())
    }

    fn for_machines(&self) -> Match {
        Match::Output(self.0.private.clone())
    }

    fn for_outsiders(&self) -> Match {
        Match::Output(self.0.public.clone())
    }

    fn network(&self) -> Ipv4Net {
        self.0.network.net()
    }
}
