//! An nftables table of family `inet` as a value, and as the text that `nft`
//! lists and reads (nft(8)).
//!
//! Only what our own table needs: base chains whose policy is accept, and
//! rules that are a list of matches, optionally a counter, a verdict and a
//! comment. [`crate::ruleset`] says what is in the table; [`crate::nft`]
//! brings it into the kernel.

use std::fmt;

use ipnet::Ipv4Net;

use crate::uplink_network::InterfaceName;

/// A table of family `inet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Name.
    pub name: &'static str,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A base chain. What no rule decides is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Where it hooks in; also its name.
    pub hook: Hook,
    /// What it may do.
    pub kind: Kind,
    /// When it runs among the chains of that hook.
    pub priority: Priority,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// Places in the packet's way (`enum nf_inet_hooks`, linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Everything that arrives.
    Prerouting,
    /// What is for the host.
    Input,
    /// What passes through the host.
    Forward,
    /// Everything that leaves.
    Postrouting,
}

/// Types of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection and may change addresses.
    Nat,
}

/// Names of priorities (`enum nf_ip_hook_priorities`, linux/netfilter_ipv4.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// -300: before connection tracking.
    Raw,
    /// 0.
    Filter,
    /// 100: where source addresses are changed.
    SourceNat,
}

/// A rule: when all matches hold, the verdict is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What must hold, in this order.
    pub matches: Vec<Match>,
    /// Whether packets and bytes are counted.
    pub counted: bool,
    /// What then happens.
    pub verdict: Verdict,
    /// For people; at most 127 bytes.
    pub comment: &'static str,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The interface that the packet came in by is, or is not, this one.
    Input(Is, InterfaceName),
    /// The interface that the packet leaves by is this one.
    Output(InterfaceName),
    /// The packet is, or is not, IPv4.
    Ipv4(Is),
    /// The IPv4 source address is, or is not, in this network.
    Source(Is, Ipv4Net),
    /// The IPv4 destination address is, or is not, in this network.
    Destination(Is, Ipv4Net),
    /// UDP or TCP to this port.
    Port(Transport, u16),
    /// An ICMP echo request.
    EchoRequest,
    /// The connection is in one of these states.
    State(Vec<ConnectionState>),
    /// A rule on the host has changed the connection's destination.
    Redirected,
}

/// Equal or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// `==`
    Equal,
    /// `!=`
    Not,
}

/// Protocols with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// States of a tracked connection (nft(8), "ct state").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// Packets have been seen both ways.
    Established,
    /// Belongs to another connection, as an ICMP error does.
    Related,
    /// First packet.
    New,
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No further rule of this chain is asked; other tables still are.
    Accept,
    /// Gone.
    Drop,
    /// Leaves with the address of the interface that it leaves by.
    Masquerade,
}

impl Rule {
    /// A rule without counter and comment.
    #[must_use]
    pub fn new(matches: Vec<Match>, verdict: Verdict) -> Self {
        Self {
            matches,
            counted: false,
            verdict,
            comment: "",
        }
    }

    /// The same, counting.
    #[must_use]
    pub fn counted(self) -> Self {
        Self {
            counted: true,
            ..self
        }
    }

    /// The same with a comment.
    #[must_use]
    pub fn comment(self, comment: &'static str) -> Self {
        Self { comment, ..self }
    }
}

impl Hook {
    /// Name in `nft`.
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
    /// Name in `nft`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

impl Priority {
    /// Name in `nft`.
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
    /// Name in `nft`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl ConnectionState {
    /// Name in `nft`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Related => "related",
            Self::New => "new",
        }
    }
}

impl Verdict {
    /// Name in `nft`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Masquerade => "masquerade",
        }
    }
}

/// As `nft --stateless list table` shows it.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for (i, chain) in self.chains.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
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
        f.write_str(self.verdict.as_str())?;
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
            Self::Port(transport, port) => write!(f, "{} dport {port}", transport.as_str()),
            Self::EchoRequest => f.write_str("icmp type echo-request"),
            Self::State(states) => {
                let names: Vec<_> = states.iter().map(|state| state.as_str()).collect();
                write!(f, "ct state {}", names.join(","))
            }
            Self::Redirected => f.write_str("ct status dnat"),
        }
    }
}

impl fmt::Display for Is {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal => Ok(()),
            Self::Not => f.write_str("!= "),
        }
    }
}

/// A network, or a single address without its `/32`.
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
