//! Describes an nftables table of family `inet`, and prints it as nft(8) lists
//! it.
//!
//! # Limits
//!
//! The model has only what [`super::policy`] uses: dynamic sets of IPv4 addresses,
//! base chains with policy accept, and rules made of matches, an optional counter,
//! a verdict and a comment.

use std::fmt;

use ipnet::Ipv4Net;

use buildos_types::InterfaceName;

/// A table of family `inet`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Table {
    pub name: &'static str,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// A set that counts the connections of IPv4 addresses (nft(8), "flags dynamic"). Its
/// key is the address with the number of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name, at most 31 bytes.
    pub name: &'static str,
    /// Largest number of elements.
    pub size: u32,
}

/// A base chain with policy accept, named after its hook.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Chain {
    pub hook: Hook,
    pub kind: Kind,
    pub priority: Priority,
    pub rules: Vec<Rule>,
}

/// A netfilter hook (`enum nf_inet_hooks`, linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Every packet that arrives.
    Prerouting,
    /// Packets addressed to the host.
    Input,
    /// Packets routed through the host.
    Forward,
    /// Every packet that leaves.
    Postrouting,
}

/// Type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection and can change its addresses.
    Nat,
}

/// Position among the chains of a hook (`enum nf_ip_hook_priorities`,
/// linux/netfilter_ipv4.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// -300: before connection tracking.
    Raw,
    /// 0.
    Filter,
    /// 100: where the kernel changes source addresses.
    SourceNat,
}

/// A rule: the verdict applies to packets for which all matches hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, in the order in which the kernel checks them.
    pub matches: Vec<Match>,
    /// Adds a counter of packets and bytes.
    pub counted: bool,
    /// Verdict for matching packets.
    pub verdict: Verdict,
    /// At most 127 bytes; empty for no comment.
    pub comment: &'static str,
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Compares the input interface.
    Input(CompareOp, InterfaceName),
    /// The output interface has this name.
    Output(InterfaceName),
    /// Compares the network protocol with IPv4.
    Ipv4(CompareOp),
    /// Compares the network of the IPv4 source address.
    Source(CompareOp, Ipv4Net),
    /// Compares the network of the IPv4 destination address.
    Destination(CompareOp, Ipv4Net),
    /// The transport protocol.
    Protocol(Transport),
    /// From this port.
    SourcePort(Transport, u16),
    /// To this port.
    Port(Transport, u16),
    /// To a port from the first to the second.
    Ports(Transport, u16, u16),
    /// A TCP segment with SYN.
    Syn,
    /// The source address has more tracked connections than the limit, in the group of
    /// this packet's connection.
    ///
    /// The kernel removes at most nine closed connections of an element in a tick
    /// (`CONNCOUNT_GC_MAX_NODES`, net/netfilter/nf_conncount.c), 2250 a second. With
    /// groups an address can have connections as often as it likes.
    ConnectionsOver {
        /// Name of the set.
        set: &'static str,
        /// Number of groups, into which the kernel hashes connections.
        groups: u32,
        /// Limit of each group.
        limit: u32,
    },
    /// An ICMP echo request.
    EchoRequest,
    /// The connection is in one of these states.
    State(Vec<ConnectionState>),
    /// DNAT changed the destination of the connection.
    DestinationNat,
}

/// Operator of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
    Dccp,
}

/// State of a tracked connection (nft(8), "ct state").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// Packets passed in both directions.
    Established,
    /// Belongs to another connection, as an ICMP error does.
    Related,
    /// First packet of a connection.
    New,
}

/// Verdict of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Ends this chain; chains of other tables can still drop the packet.
    Accept,
    /// Drops the packet.
    Drop,
    /// Replaces the source address by that of the output interface.
    Masquerade,
    /// As [`Self::Masquerade`], and replaces source ports outside of this range.
    MasqueradePorts(u16, u16),
    /// Reduces the maximum segment size of TCP to the MTU of the route in both
    /// directions, and continues with the next rule.
    ClampSegmentSize,
}

impl Rule {
    /// Returns a rule without counter and comment.
    #[must_use]
    pub fn new(matches: Vec<Match>, verdict: Verdict) -> Self {
        Self {
            matches,
            counted: false,
            verdict,
            comment: "",
        }
    }

    /// Adds a counter.
    #[must_use]
    pub fn counted(self) -> Self {
        Self {
            counted: true,
            ..self
        }
    }

    /// Sets the comment.
    #[must_use]
    pub fn comment(self, comment: &'static str) -> Self {
        Self { comment, ..self }
    }
}

impl Hook {
    /// Returns the name that nft(8) uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Postrouting => "postrouting",
        }
    }
}

impl Kind {
    /// Returns the name that nft(8) uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

impl Priority {
    /// Returns the name that nft(8) uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Filter => "filter",
            Self::SourceNat => "srcnat",
        }
    }
}

impl Transport {
    /// Returns the name that nft(8) uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Dccp => "dccp",
        }
    }
}

impl ConnectionState {
    /// Returns the name that nft(8) uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Related => "related",
            Self::New => "new",
        }
    }
}

/// Prints the table as `nft --stateless --terse list table` does.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for set in &self.sets {
            writeln!(f, "{set}\n")?;
        }
        for (i, chain) in self.chains.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, size } = self;
        writeln!(
            f,
            "\tset {name} {{\n\t\ttype ipv4_addr . mark\n\t\tsize {size}"
        )?;
        f.write_str("\t\tflags dynamic\n\t}")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hook, kind) = (self.hook.as_str(), self.kind.as_str());
        let priority = self.priority.as_str();
        writeln!(f, "\tchain {hook} {{")?;
        writeln!(
            f,
            "\t\ttype {kind} hook {hook} priority {priority}; policy accept;"
        )?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        if self.counted {
            f.write_str("counter ")?;
        }
        write!(f, "{}", self.verdict)?;
        if !self.comment.is_empty() {
            write!(f, " comment \"{}\"", self.comment)?;
        }
        Ok(())
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(is, name) => write!(f, "iifname {is}\"{name}\""),
            Self::Output(name) => write!(f, "oifname \"{name}\""),
            Self::Ipv4(is) => write!(f, "meta nfproto {is}ipv4"),
            Self::Source(is, net) => write!(f, "ip saddr {is}{}", Net(*net)),
            Self::Destination(is, net) => write!(f, "ip daddr {is}{}", Net(*net)),
            Self::Protocol(transport) => write!(f, "meta l4proto {}", transport.as_str()),
            Self::SourcePort(transport, port) => write!(f, "{} sport {port}", transport.as_str()),
            Self::Port(transport, port) => write!(f, "{} dport {port}", transport.as_str()),
            Self::Ports(transport, first, last) => {
                write!(f, "{} dport {first}-{last}", transport.as_str())
            }
            Self::Syn => f.write_str("tcp flags syn"),
            Self::ConnectionsOver { set, groups, limit } => write!(
                f,
                "add @{set} {{ ip saddr . symhash mod {groups} ct count over {limit} }}"
            ),
            Self::EchoRequest => f.write_str("icmp type echo-request"),
            Self::State(states) => {
                let names: Vec<_> = states.iter().map(|state| state.as_str()).collect();
                write!(f, "ct state {}", names.join(","))
            }
            Self::DestinationNat => f.write_str("ct status dnat"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::MasqueradePorts(first, last) => write!(f, "masquerade to :{first}-{last}"),
            Self::ClampSegmentSize => f.write_str("tcp option maxseg size set rt mtu"),
        }
    }
}

impl fmt::Display for CompareOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal => Ok(()),
            Self::NotEqual => f.write_str("!= "),
        }
    }
}

/// Prints a network, or a single address without its `/32`.
struct Net(Ipv4Net);

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == 32 {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}
