//! A table as the kernel keeps it, and what of [`super::model`] becomes what.
//!
//! The kernel knows no "ip saddr": a rule is a list of expressions that load
//! something into a register and compare the register (libnftnl's
//! `nftnl_expr`). This file is the compiler from the one to the other.

use std::collections::HashMap;

use super::model::{
    Chain, ConnectionState, Hook, Is, Kind, Match, Priority, Rule, Table, Transport, Verdict,
};

/// A table of family `inet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// `enum nft_table_flags`; "dormant" would mean that none of it works.
    pub flags: u32,
    /// Its chains, in the order of their creation.
    pub chains: Vec<ImageChain>,
}

/// A table of any family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyTable {
    /// Its family (`NFPROTO_*`, linux/netfilter.h).
    pub family: i32,
    /// The table.
    pub table: Image,
    /// Its sets of plain values that do not change, by their names.
    pub sets: HashMap<String, Vec<Vec<u8>>>,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageChain {
    /// Its name.
    pub name: String,
    /// `filter`, `nat` …; empty for a chain that is no base chain.
    pub kind: String,
    /// `enum nf_inet_hooks`; for a base chain.
    pub hook: Option<u32>,
    /// Order within the hook.
    pub priority: i32,
    /// `NF_ACCEPT` or `NF_DROP`; for a base chain.
    pub policy: Option<u32>,
    /// Its rules, in order.
    pub rules: Vec<ImageRule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRule {
    /// Its expressions, in order.
    pub expressions: Vec<Expression>,
    /// Its comment, or empty.
    pub comment: String,
}

/// What a rule has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets that came to its counter.
    pub packets: u64,
    /// Their bytes, with IP headers.
    pub bytes: u64,
}

/// The part of nf_tables' expressions that we use, all on register 1, and what
/// else decides over a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Loads something known about the packet.
    Meta(MetaKey),
    /// Loads something known about its connection.
    Connection(ConnectionKey),
    /// Loads bytes of the packet.
    Payload {
        /// The header that the offset counts from.
        base: PayloadBase,
        /// Bytes from the start of that header.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// Keeps the bits that are set in the mask.
    Mask(Vec<u8>),
    /// Goes on if the register is, or is not, equal.
    Compare(Is, Vec<u8>),
    /// Counts packets and bytes.
    Counter,
    /// Ends the chain for the packet.
    Accept,
    /// Ends the packet.
    Drop,
    /// Changes the source address.
    Masquerade,
    /// Goes on if the register is, or is not, in this set.
    Lookup(Is, String),
    /// Goes on in another chain and comes back.
    Jump(String),
    /// Goes on in another chain.
    Goto(String),
    /// Goes back to where a jump came from.
    Return,
    /// Ends the packet and tells its sender.
    Reject,
    /// A match of iptables, by its name.
    Match(String),
    /// A target of iptables, by its name.
    Target(String),
    /// Something else that only others use, by its name.
    Foreign(String),
}

/// `enum nft_meta_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Interface that the packet came in by.
    InputName = libc::NFT_META_IIFNAME as isize,
    /// Interface that it leaves by.
    OutputName = libc::NFT_META_OIFNAME as isize,
    /// Network protocol.
    NetworkProtocol = libc::NFT_META_NFPROTO as isize,
    /// Transport protocol.
    TransportProtocol = libc::NFT_META_L4PROTO as isize,
}

/// `enum nft_ct_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionKey {
    /// The connection's state as the packet sees it.
    State = libc::NFT_CT_STATE as isize,
    /// What has been done to the connection.
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

/// ICMP type of an echo request (RFC 792).
const ECHO_REQUEST: u8 = 8;
/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const STATUS_DESTINATION_CHANGED: u32 = 1 << 5;

impl Image {
    /// The image of a table.
    #[must_use]
    pub fn of(table: &Table) -> Self {
        Self {
            name: table.name.to_owned(),
            flags: 0,
            chains: table.chains.iter().map(ImageChain::of).collect(),
        }
    }
}

impl Image {
    /// The first thing in which what stands differs from this image, for
    /// people; [`None`] when it is the same.
    #[must_use]
    pub fn difference(&self, standing: Option<&Self>) -> Option<String> {
        let Some(standing) = standing else {
            return Some("it is not there".to_owned());
        };
        if self.flags != standing.flags {
            return Some(format!("its flags are {:#x}", standing.flags));
        }
        for chain in &self.chains {
            let name = &chain.name;
            let Some(other) = standing.chains.iter().find(|other| other.name == *name) else {
                return Some(format!("chain {name} is not there"));
            };
            if (chain.hook, chain.priority, chain.policy, &chain.kind)
                != (other.hook, other.priority, other.policy, &other.kind)
            {
                return Some(format!(
                    "chain {name} hooks in elsewhere or has another policy"
                ));
            }
            if chain.rules.len() != other.rules.len() {
                let (is, should) = (other.rules.len(), chain.rules.len());
                return Some(format!(
                    "chain {name} has {is} rules and should have {should}"
                ));
            }
            let rules = chain.rules.iter().zip(&other.rules);
            if let Some(at) = rules
                .enumerate()
                .find_map(|(i, (a, b))| (a != b).then_some(i + 1))
            {
                return Some(format!("rule {at} of chain {name} is another one"));
            }
        }
        (self != standing).then(|| "it has something more".to_owned())
    }
}

impl ImageChain {
    fn of(chain: &Chain) -> Self {
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
            rules: chain.rules.iter().map(ImageRule::of).collect(),
        }
    }
}

impl ImageRule {
    fn of(rule: &Rule) -> Self {
        let mut expressions = Vec::new();
        for of in &rule.matches {
            let of = condition(of);
            // Once in a rule is enough, for the kernel and for `nft`.
            let known = expressions.windows(2).any(|pair| pair == ipv4(Is::Equal));
            match of.strip_prefix(&ipv4(Is::Equal)) {
                Some(rest) if known => expressions.extend_from_slice(rest),
                Some(_) | None => expressions.extend(of),
            }
        }
        if rule.counted {
            expressions.push(Expression::Counter);
        }
        expressions.push(match rule.verdict {
            Verdict::Accept => Expression::Accept,
            Verdict::Drop => Expression::Drop,
            Verdict::Masquerade => Expression::Masquerade,
        });
        Self {
            expressions,
            comment: rule.comment.to_owned(),
        }
    }
}

/// What a condition is made of. Where it reads a header, it first makes sure
/// that the packet has that header.
fn condition(condition: &Match) -> Vec<Expression> {
    match condition {
        Match::Input(is, name) => vec![
            Expression::Meta(MetaKey::InputName),
            Expression::Compare(*is, name_bytes(name.as_str())),
        ],
        Match::Output(name) => vec![
            Expression::Meta(MetaKey::OutputName),
            Expression::Compare(Is::Equal, name_bytes(name.as_str())),
        ],
        Match::Ipv4(is) => ipv4(*is).into(),
        Match::Source(is, net) => address(12, *is, net),
        Match::Destination(is, net) => address(16, *is, net),
        Match::Port(transport, port) => {
            let protocol = match transport {
                Transport::Tcp => libc::IPPROTO_TCP,
                Transport::Udp => libc::IPPROTO_UDP,
            };
            transport_field(protocol, 2, port.to_be_bytes().into())
        }
        Match::EchoRequest => transport_field(libc::IPPROTO_ICMP, 0, vec![ECHO_REQUEST]),
        Match::State(states) => {
            let bits = states
                .iter()
                .fold(0, |bits, state| bits | state_bit(*state));
            any_bit(ConnectionKey::State, bits)
        }
        Match::Redirected => any_bit(ConnectionKey::Status, STATUS_DESTINATION_CHANGED),
    }
}

fn ipv4(is: Is) -> [Expression; 2] {
    [
        Expression::Meta(MetaKey::NetworkProtocol),
        Expression::Compare(is, vec![libc::NFPROTO_IPV4 as u8]),
    ]
}

/// Offsets in the IPv4 header: RFC 791, section 3.1.
fn address(offset: u32, is: Is, net: &ipnet::Ipv4Net) -> Vec<Expression> {
    let mut expressions = Vec::from(ipv4(Is::Equal));
    expressions.push(Expression::Payload {
        base: PayloadBase::Network,
        offset,
        length: 4,
    });
    if net.prefix_len() < 32 {
        expressions.push(Expression::Mask(net.netmask().octets().into()));
    }
    expressions.push(Expression::Compare(is, net.network().octets().into()));
    expressions
}

/// Offsets: the destination port is at 2 in UDP and TCP, the type at 0 in ICMP.
fn transport_field(protocol: i32, offset: u32, value: Vec<u8>) -> Vec<Expression> {
    vec![
        Expression::Meta(MetaKey::TransportProtocol),
        Expression::Compare(Is::Equal, vec![protocol as u8]),
        Expression::Payload {
            base: PayloadBase::Transport,
            offset,
            length: value.len() as u32,
        },
        Expression::Compare(Is::Equal, value),
    ]
}

fn any_bit(key: ConnectionKey, bits: u32) -> Vec<Expression> {
    vec![
        Expression::Connection(key),
        Expression::Mask(bits.to_ne_bytes().into()),
        Expression::Compare(Is::Not, 0_u32.to_ne_bytes().into()),
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

/// With its NUL: without it, names that begin so would match too.
fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let rule = ImageRule {
            expressions: vec![Expression::Counter, Expression::Drop],
            comment: String::new(),
        };
        let chain = |name: &str| ImageChain {
            name: name.to_owned(),
            kind: "filter".to_owned(),
            hook: Some(2),
            priority: 0,
            policy: Some(1),
            rules: vec![rule.clone(), rule.clone()],
        };
        Image {
            name: "buildos".to_owned(),
            flags: 0,
            chains: vec![chain("input"), chain("forward")],
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Image), expected: &str) {
        let mut standing = image();
        change(&mut standing);
        assert_eq!(
            image().difference(Some(&standing)).as_deref(),
            Some(expected)
        );
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(image().difference(Some(&image())), None);
        assert_eq!(image().difference(None).as_deref(), Some("it is not there"));
        check(|image| image.flags = 1, "its flags are 0x1");
        check(
            |image| image.chains.truncate(1),
            "chain forward is not there",
        );
        check(
            |image| image.chains[0].policy = Some(0),
            "chain input hooks in elsewhere or has another policy",
        );
        check(
            |image| image.chains[1].rules.clear(),
            "chain forward has 0 rules and should have 2",
        );
        check(
            |image| image.chains[1].rules[1].expressions[1] = Expression::Accept,
            "rule 2 of chain forward is another one",
        );
        check(
            |image| image.chains.push(image.chains[0].clone()),
            "it has something more",
        );
    }
}
