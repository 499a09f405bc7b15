//! Compiles [`super::model`] to nf_tables expressions, and compares tables in
//! that form.
//!
//! The kernel has no "ip saddr". A rule is a list of expressions: one loads a
//! field into a register, the next compares the register (libnftnl,
//! `nftnl_expr`).

use super::model::{
    Chain, CompareOp, ConnectionState, Hook, Kind, Match, Priority, Rule, Set, Table, Transport,
    Verdict,
};

/// A table as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct KernelTable {
    pub name: String,
    /// `enum nft_table_flags`; a dormant table has no effect.
    pub flags: u32,
    /// Named and anonymous sets, in the order of their creation.
    pub sets: Vec<KernelSet>,
    /// In the order of their creation.
    pub chains: Vec<KernelChain>,
}

/// A table of another program.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ForeignTable {
    /// `NFPROTO_*` (linux/netfilter.h).
    pub family: i32,
    pub table: KernelTable,
}

/// A set as the kernel keeps it, without its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSet {
    /// Name, at most 31 bytes.
    pub name: String,
    /// `enum nft_set_flags`.
    pub flags: u32,
    /// Length of a key in bytes.
    pub key_length: u32,
    /// Largest number of elements; 0 for no limit.
    pub size: u32,
}

/// A chain as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct KernelChain {
    pub name: String,
    /// `filter`, `nat` …; empty unless it is a base chain.
    pub kind: String,
    /// `enum nf_inet_hooks`, for a base chain.
    pub hook: Option<u32>,
    /// Order within the hook.
    pub priority: i32,
    /// `NF_ACCEPT` or `NF_DROP`, for a base chain.
    pub policy: Option<u32>,
    pub rules: Vec<KernelRule>,
}

/// A rule as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct KernelRule {
    pub expressions: Vec<Expression>,
    /// Empty for no comment.
    pub comment: String,
}

/// Value of a rule's counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Count {
    pub packets: u64,
    /// With IP headers.
    pub bytes: u64,
}

/// An nf_tables expression on register 1, unless a variant names another register.
///
/// `inet buildos` uses the variants up to `WriteSegmentSize`. The others occur in
/// foreign tables, and matter for [`crate::audit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Loads a property of the packet.
    Meta(MetaKey),
    /// Loads a property of the packet's connection.
    Conntrack(ConntrackKey),
    /// Loads bytes of the packet.
    Payload {
        /// Header from which `offset` counts.
        base: PayloadBase,
        /// In bytes.
        offset: u32,
        /// In bytes.
        length: u32,
    },
    /// Clears the bits that are not set in the mask.
    Mask(Vec<u8>),
    /// Ends the rule unless the comparison holds.
    Compare(CompareOp, Vec<u8>),
    /// Ends the rule unless the register is between the bounds, or equal to one.
    Range(Vec<u8>, Vec<u8>),
    /// Loads a constant.
    Immediate(Register, Vec<u8>),
    /// Loads a number below the modulus, the same one for both directions of a
    /// connection, into the register after an IPv4 address in register 1.
    HashConnection(u32),
    /// Adds the register to a set, and ends the rule unless more connections than
    /// the limit have this element.
    CountConnections {
        /// Name of the set.
        set: String,
        /// Largest number of connections for which the rule ends.
        limit: u32,
    },
    /// Counts packets and bytes.
    Counter,
    /// Ends the base chain and lets the packet pass.
    Accept,
    /// Drops the packet.
    Drop,
    /// Replaces the source address by that of the output interface.
    Masquerade,
    /// As `Masquerade`, with source ports from [`Register::One`] to
    /// [`Register::Two`].
    MasqueradePorts,
    /// Loads the largest TCP segment that the route takes, in host byte order.
    RouteSegmentSize,
    /// Converts 16 bits from host to network byte order.
    HostToNetwork,
    /// Writes TCP's option for the maximum segment size, unless it is smaller.
    WriteSegmentSize,
    /// Continues in another chain, and returns from it.
    Jump(String),
    /// Continues in another chain without returning.
    Goto(String),
    /// Returns to the calling chain.
    Return,
    /// Drops the packet and answers with an error.
    Reject,
    /// A match of iptables, by name.
    XtMatch(String),
    /// A target of iptables, by name.
    XtTarget(String),
    /// An expression that this module does not model, by name.
    Other(String),
}

/// `enum nft_registers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Register {
    One = libc::NFT_REG_1 as isize,
    Two = libc::NFT_REG_2 as isize,
}

/// `enum nft_meta_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Name of the input interface.
    InputName = libc::NFT_META_IIFNAME as isize,
    /// Name of the output interface.
    OutputName = libc::NFT_META_OIFNAME as isize,
    /// `NFPROTO_*` of the packet.
    NetworkProtocol = libc::NFT_META_NFPROTO as isize,
    /// `IPPROTO_*` of the packet.
    TransportProtocol = libc::NFT_META_L4PROTO as isize,
}

/// `enum nft_ct_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConntrackKey {
    /// State of the connection at this packet.
    State = libc::NFT_CT_STATE as isize,
    /// `enum ip_conntrack_status`.
    Status = libc::NFT_CT_STATUS as isize,
}

/// `enum nft_payload_bases`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// The IP header.
    Network = libc::NFT_PAYLOAD_NETWORK_HEADER as isize,
    /// The TCP, UDP or ICMP header.
    Transport = libc::NFT_PAYLOAD_TRANSPORT_HEADER as isize,
}

/// Offset of the source address in the IPv4 header (RFC 791, section 3.1).
const SOURCE: u32 = 12;
/// As [`SOURCE`], of the destination address.
const DESTINATION: u32 = 16;
const IPV4_LENGTH: u32 = 4;
/// Length of a 32-bit register.
const GROUP_LENGTH: u32 = 4;
/// Offset of the flags in the TCP header (RFC 9293, section 3.1).
const TCP_FLAGS: u32 = 13;
const TCP_SYN: u8 = 1 << 1;
/// ICMP type of an echo request (RFC 792).
const ECHO_REQUEST: u8 = 8;
/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const STATUS_DNAT: u32 = 1 << 5;

impl KernelTable {
    /// Compiles a table.
    #[must_use]
    pub fn compile(table: &Table) -> Self {
        Self {
            name: table.name.to_owned(),
            flags: 0,
            sets: table.sets.iter().map(KernelSet::compile).collect(),
            chains: table.chains.iter().map(KernelChain::compile).collect(),
        }
    }

    /// Describes the first difference between this table and the installed one;
    /// [`None`] if they are equal.
    #[must_use]
    pub fn difference(&self, installed: Option<&Self>) -> Option<String> {
        let Some(installed) = installed else {
            return Some("the table is missing".to_owned());
        };
        if self.flags != installed.flags {
            return Some(format!("the table has flags {:#x}", installed.flags));
        }
        if self.sets != installed.sets {
            return Some("the sets are different".to_owned());
        }
        for chain in &self.chains {
            let name = &chain.name;
            let Some(other) = installed.chains.iter().find(|other| other.name == *name) else {
                return Some(format!("chain {name} is missing"));
            };
            if (chain.hook, chain.priority, chain.policy, &chain.kind)
                != (other.hook, other.priority, other.policy, &other.kind)
            {
                return Some(format!(
                    "chain {name} has a different type, hook, priority or policy"
                ));
            }
            if chain.rules.len() != other.rules.len() {
                let (is, should) = (other.rules.len(), chain.rules.len());
                return Some(format!("chain {name} has {is} rules instead of {should}"));
            }
            let rules = chain.rules.iter().zip(&other.rules);
            if let Some(at) = rules
                .enumerate()
                .find_map(|(i, (a, b))| (a != b).then_some(i + 1))
            {
                return Some(format!("rule {at} of chain {name} is different"));
            }
        }
        (self != installed).then(|| "the table has an additional chain".to_owned())
    }
}

impl KernelSet {
    fn compile(set: &Set) -> Self {
        Self {
            name: set.name.to_owned(),
            flags: libc::NFT_SET_EVAL as u32,
            key_length: IPV4_LENGTH + GROUP_LENGTH,
            size: set.size,
        }
    }
}

impl KernelChain {
    /// Returns true for a base chain with policy drop.
    #[must_use]
    pub fn policy_drops(&self) -> bool {
        self.policy == Some(libc::NF_DROP as u32)
    }

    fn compile(chain: &Chain) -> Self {
        Self {
            name: chain.hook.as_str().to_owned(),
            kind: match chain.kind {
                Kind::Filter => "filter",
                Kind::Nat => "nat",
            }
            .to_owned(),
            hook: Some(match chain.hook {
                Hook::Prerouting => libc::NF_INET_PRE_ROUTING as u32,
                Hook::Input => libc::NF_INET_LOCAL_IN as u32,
                Hook::Forward => libc::NF_INET_FORWARD as u32,
                Hook::Postrouting => libc::NF_INET_POST_ROUTING as u32,
            }),
            priority: match chain.priority {
                Priority::Raw => libc::NF_IP_PRI_RAW,
                Priority::Filter => libc::NF_IP_PRI_FILTER,
                Priority::SourceNat => libc::NF_IP_PRI_NAT_SRC,
            },
            policy: Some(libc::NF_ACCEPT as u32),
            rules: chain.rules.iter().map(KernelRule::compile).collect(),
        }
    }
}

impl KernelRule {
    fn compile(rule: &Rule) -> Self {
        let mut expressions = Vec::new();
        for condition in &rule.matches {
            let compiled = compile_match(condition);
            // A rule checks a protocol once, as one written by nft(8) does.
            let is_checked = |check: &[Expression]| {
                let is_protocol = matches!(
                    check,
                    [
                        Expression::Meta(MetaKey::NetworkProtocol | MetaKey::TransportProtocol),
                        Expression::Compare(CompareOp::Equal, _)
                    ]
                );
                is_protocol && expressions.windows(2).any(|pair| pair == check)
            };
            match compiled.split_at_checked(2) {
                Some((check, rest)) if is_checked(check) => expressions.extend_from_slice(rest),
                Some(_) | None => expressions.extend(compiled),
            }
        }
        if rule.counted {
            expressions.push(Expression::Counter);
        }
        match rule.verdict {
            Verdict::Accept => expressions.push(Expression::Accept),
            Verdict::Drop => expressions.push(Expression::Drop),
            Verdict::Masquerade => expressions.push(Expression::Masquerade),
            Verdict::MasqueradePorts(first, last) => expressions.extend([
                Expression::Immediate(Register::One, first.to_be_bytes().into()),
                Expression::Immediate(Register::Two, last.to_be_bytes().into()),
                Expression::MasqueradePorts,
            ]),
            Verdict::ClampSegmentSize => expressions.extend([
                Expression::RouteSegmentSize,
                Expression::HostToNetwork,
                Expression::WriteSegmentSize,
            ]),
        }
        Self {
            expressions,
            comment: rule.comment.to_owned(),
        }
    }
}

/// Compiles a condition. Before it reads a header, it checks that the packet has
/// that header.
fn compile_match(condition: &Match) -> Vec<Expression> {
    match condition {
        Match::Input(is, name) => vec![
            Expression::Meta(MetaKey::InputName),
            Expression::Compare(*is, name_bytes(name.as_str())),
        ],
        Match::Output(name) => vec![
            Expression::Meta(MetaKey::OutputName),
            Expression::Compare(CompareOp::Equal, name_bytes(name.as_str())),
        ],
        Match::Ipv4(is) => ipv4(*is).into(),
        Match::Source(is, net) => address(SOURCE, *is, net),
        Match::Destination(is, net) => address(DESTINATION, *is, net),
        Match::Protocol(transport) => protocol(number(*transport)).into(),
        Match::SourcePort(transport, port) => {
            transport_field(number(*transport), 0, port.to_be_bytes().into())
        }
        Match::Port(transport, port) => {
            transport_field(number(*transport), 2, port.to_be_bytes().into())
        }
        Match::Ports(transport, first, last) => {
            let range = Expression::Range(first.to_be_bytes().into(), last.to_be_bytes().into());
            let mut expressions = Vec::from(protocol(number(*transport)));
            expressions.extend([payload(PayloadBase::Transport, 2, 2), range]);
            expressions
        }
        Match::Syn => {
            let mut expressions = Vec::from(protocol(libc::IPPROTO_TCP));
            expressions.extend([
                payload(PayloadBase::Transport, TCP_FLAGS, 1),
                Expression::Mask(vec![TCP_SYN]),
                Expression::Compare(CompareOp::NotEqual, vec![0]),
            ]);
            expressions
        }
        Match::ConnectionsOver { set, groups, limit } => {
            let mut expressions = Vec::from(ipv4(CompareOp::Equal));
            expressions.extend([
                payload(PayloadBase::Network, SOURCE, IPV4_LENGTH),
                Expression::HashConnection(*groups),
                Expression::CountConnections {
                    set: (*set).to_owned(),
                    limit: *limit,
                },
            ]);
            expressions
        }
        Match::EchoRequest => transport_field(libc::IPPROTO_ICMP, 0, vec![ECHO_REQUEST]),
        Match::State(states) => {
            let bits = states
                .iter()
                .fold(0, |bits, state| bits | state_bit(*state));
            any_bit(ConntrackKey::State, bits)
        }
        Match::DestinationNat => any_bit(ConntrackKey::Status, STATUS_DNAT),
    }
}

fn ipv4(is: CompareOp) -> [Expression; 2] {
    [
        Expression::Meta(MetaKey::NetworkProtocol),
        Expression::Compare(is, vec![libc::NFPROTO_IPV4 as u8]),
    ]
}

fn payload(base: PayloadBase, offset: u32, length: u32) -> Expression {
    Expression::Payload {
        base,
        offset,
        length,
    }
}

fn protocol(number: i32) -> [Expression; 2] {
    [
        Expression::Meta(MetaKey::TransportProtocol),
        Expression::Compare(CompareOp::Equal, vec![number as u8]),
    ]
}

fn number(transport: Transport) -> i32 {
    match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Udp => libc::IPPROTO_UDP,
        Transport::Sctp => libc::IPPROTO_SCTP,
        Transport::Dccp => libc::IPPROTO_DCCP,
    }
}

/// Compares an address.
fn address(offset: u32, is: CompareOp, net: &ipnet::Ipv4Net) -> Vec<Expression> {
    let mut expressions = Vec::from(ipv4(CompareOp::Equal));
    expressions.push(payload(PayloadBase::Network, offset, IPV4_LENGTH));
    if net.prefix_len() < 32 {
        expressions.push(Expression::Mask(net.netmask().octets().into()));
    }
    expressions.push(Expression::Compare(is, net.network().octets().into()));
    expressions
}

/// Compares a field of the transport header: in protocols with ports, the source
/// port is at offset 0 and the destination port at 2; in ICMP, the type is at 0.
fn transport_field(number: i32, offset: u32, value: Vec<u8>) -> Vec<Expression> {
    let mut expressions = Vec::from(protocol(number));
    expressions.extend([
        payload(PayloadBase::Transport, offset, value.len() as u32),
        Expression::Compare(CompareOp::Equal, value),
    ]);
    expressions
}

fn any_bit(key: ConntrackKey, bits: u32) -> Vec<Expression> {
    vec![
        Expression::Conntrack(key),
        Expression::Mask(bits.to_ne_bytes().into()),
        Expression::Compare(CompareOp::NotEqual, 0_u32.to_ne_bytes().into()),
    ]
}

/// `NF_CT_STATE_BIT` (linux/netfilter/nf_conntrack_common.h).
fn state_bit(state: ConnectionState) -> u32 {
    match state {
        ConnectionState::Established => 1 << 1,
        ConnectionState::Related => 1 << 2,
        ConnectionState::New => 1 << 3,
    }
}

/// Appends the NUL: without it, longer names with this prefix match too.
fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled() -> KernelTable {
        let rule = KernelRule {
            expressions: vec![Expression::Counter, Expression::Drop],
            comment: String::new(),
        };
        let chain = |name: &str| KernelChain {
            name: name.to_owned(),
            kind: "filter".to_owned(),
            hook: Some(2),
            priority: 0,
            policy: Some(1),
            rules: vec![rule.clone(), rule.clone()],
        };
        KernelTable {
            name: "buildos".to_owned(),
            flags: 0,
            sets: Vec::new(),
            chains: vec![chain("input"), chain("forward")],
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut KernelTable), expected: &str) {
        let mut installed = compiled();
        change(&mut installed);
        assert_eq!(
            compiled().difference(Some(&installed)).as_deref(),
            Some(expected)
        );
    }

    #[test]
    fn difference_names_first_different_part() {
        assert_eq!(compiled().difference(Some(&compiled())), None);
        assert_eq!(
            compiled().difference(None).as_deref(),
            Some("the table is missing")
        );
        check(|table| table.flags = 1, "the table has flags 0x1");
        let set = KernelSet::compile(&Set {
            name: "connections",
            size: 1,
        });
        check(|table| table.sets.push(set), "the sets are different");
        check(|table| table.chains.truncate(1), "chain forward is missing");
        check(
            |table| table.chains[0].policy = Some(0),
            "chain input has a different type, hook, priority or policy",
        );
        check(
            |table| table.chains[1].rules.clear(),
            "chain forward has 0 rules instead of 2",
        );
        check(
            |table| table.chains[1].rules[1].expressions[1] = Expression::Accept,
            "rule 2 of chain forward is different",
        );
        check(
            |table| table.chains.push(table.chains[0].clone()),
            "the table has an additional chain",
        );
    }
}
