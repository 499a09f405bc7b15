//! Compiles [`super::model`] to nf_tables expressions.
//!
//! The kernel has no "ip saddr". A rule is a list of expressions: one loads a
//! field into a register, the next compares the register (libnftnl,
//! `nftnl_expr`).

use super::bytecode::{
    ConntrackKey, Expression, KernelChain, KernelRule, KernelSet, KernelTable, MetaKey,
    PayloadBase, Register,
};
use super::model::{
    Chain, CompareOp, ConnectionState, Elements, Family, Field, Hash, Hook, Key, KeyPart, Kind,
    Match, Priority, Rule, Set, Table, Transport, Update, Verdict,
};

/// Offset of the source address in the IPv4 header (RFC 791, section 3.1).
const SOURCE: u32 = 12;
/// As [`SOURCE`], of the destination address.
const DESTINATION: u32 = 16;
const IPV4_LENGTH: u32 = 4;
const MAC_LENGTH: u32 = 6;
const PORT_LENGTH: u32 = 2;
/// Length of a 32-bit register.
const GROUP_LENGTH: u32 = 4;
/// Offset of the source in the Ethernet header.
const ETHERNET_SOURCE: u32 = 6;
/// First address that a bridge does not forward.
const RESERVED_ADDRESS: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
/// Start of ARP for IPv4 over Ethernet (RFC 826): types and lengths of both addresses.
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Offset of the sender's MAC address in ARP.
const ARP_HARDWARE_SOURCE: u32 = 8;
/// As [`ARP_HARDWARE_SOURCE`], of the sender's IPv4 address.
const ARP_SOURCE: u32 = 14;
/// Length of the UDP header, which precedes a DHCP message.
const UDP_HEADER: u32 = 8;
// Offsets in a DHCP message (RFC 2131, section 2).
const DHCP_YIADDR: u32 = UDP_HEADER + 16;
const DHCP_CHADDR: u32 = UDP_HEADER + 28;
const DHCP_OPTIONS: u32 = UDP_HEADER + 240;
/// `op` of an answer.
const BOOTREPLY: u8 = 2;
/// Option 53 with DHCPACK (RFC 2132, section 9.6).
const DHCPACK: [u8; 3] = [53, 1, 5];
/// Time without packets after which a token bucket is removed. The bucket is full then:
/// the slowest gains a token in a minute, and has room for eight.
const BUCKET_TIMEOUT_MS: u64 = 600_000;
/// Offset of the type in the Ethernet header.
const ETHERNET_TYPE: u32 = 12;
/// `NF_ARP_IN` (linux/netfilter_arp.h).
const NF_ARP_IN: i32 = 0;
/// `NF_BR_PRI_FILTER_BRIDGED` (linux/netfilter_bridge.h).
const BRIDGE_FILTER: i32 = -200;
/// Offset of the flags in the TCP header (RFC 9293, section 3.1).
const TCP_FLAGS: u32 = 13;
const TCP_SYN: u8 = 1 << 1;
/// ICMP type of an echo request (RFC 792).
const ECHO_REQUEST: u8 = 8;
/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const STATUS_DNAT: u32 = 1 << 5;

/// nft(8)'s numbers of types; those of a key have six bits each.
const TYPE_BITS: u32 = 6;
const TYPE_ADDRESS: u32 = 7;
const TYPE_HARDWARE_ADDRESS: u32 = 9;
const TYPE_MARK: u32 = 19;
pub(super) const TYPE_INTERFACE: u32 = 20;
pub(super) const TYPE_INTERFACE_NAME: u32 = 41;

impl KernelTable {
    /// Compiles a table.
    #[must_use]
    pub fn compile(table: &Table) -> Self {
        Self {
            name: table.name.to_owned(),
            flags: 0,
            sets: table.sets.iter().map(KernelSet::compile).collect(),
            chains: table
                .chains
                .iter()
                .map(|chain| KernelChain::compile(chain, table.family))
                .collect(),
        }
    }
}

impl KernelSet {
    fn compile(set: &Set) -> Self {
        let name = set.name.to_owned();
        match &set.elements {
            Elements::AddedAddresses(size) => Self {
                name,
                flags: libc::NFT_SET_EVAL as u32,
                key_type: (TYPE_ADDRESS << TYPE_BITS) | TYPE_MARK,
                key_length: IPV4_LENGTH + GROUP_LENGTH,
                size: *size,
                elements: Vec::new(),
            },
            Elements::Interfaces(names) => Self {
                name,
                flags: 0,
                key_type: TYPE_INTERFACE_NAME,
                key_length: libc::IFNAMSIZ as u32,
                size: 0,
                elements: names.iter().map(|name| interface(name.as_str())).collect(),
            },
            Elements::Learned(parts, size) => Self {
                name,
                flags: (libc::NFT_SET_EVAL | libc::NFT_SET_TIMEOUT) as u32,
                key_type: key_type(parts),
                key_length: key_length(parts),
                size: *size,
                elements: Vec::new(),
            },
        }
    }
}

impl KernelChain {
    fn compile(chain: &Chain, family: Family) -> Self {
        Self {
            name: chain.name().to_owned(),
            kind: match (chain.hook, chain.kind) {
                (Hook::Called(_), _) => "",
                (_, Kind::Filter) => "filter",
                (_, Kind::Nat) => "nat",
            }
            .to_owned(),
            hook: hook(chain.hook),
            priority: match (chain.hook, chain.priority) {
                (Hook::Called(_), _) => 0,
                (_, Priority::Raw) => libc::NF_IP_PRI_RAW,
                (_, Priority::DestinationNat) => libc::NF_IP_PRI_NAT_DST,
                (_, Priority::Filter) => libc::NF_IP_PRI_FILTER,
                (_, Priority::BridgeFilter) => BRIDGE_FILTER,
                (_, Priority::SourceNat) => libc::NF_IP_PRI_NAT_SRC,
            },
            policy: hook(chain.hook).map(|_| libc::NF_ACCEPT as u32),
            rules: chain
                .rules
                .iter()
                .map(|rule| KernelRule::compile(rule, family))
                .collect(),
        }
    }
}

fn hook(hook: Hook) -> Option<u32> {
    let number = match hook {
        Hook::Prerouting => libc::NF_INET_PRE_ROUTING,
        Hook::Input => libc::NF_INET_LOCAL_IN,
        Hook::ArpInput => NF_ARP_IN,
        Hook::Forward => libc::NF_INET_FORWARD,
        Hook::Output => libc::NF_INET_LOCAL_OUT,
        Hook::Postrouting => libc::NF_INET_POST_ROUTING,
        Hook::Called(_) => return None,
    };
    Some(number as u32)
}

impl KernelRule {
    fn compile(rule: &Rule, family: Family) -> Self {
        let mut expressions = Vec::new();
        for condition in &rule.matches {
            let compiled = compile_match(condition, family);
            // A rule checks a protocol once, as one written by nft(8) does.
            let is_checked = |check: &[Expression]| {
                let is_protocol = matches!(
                    check,
                    [
                        Expression::Meta(MetaKey::NetworkProtocol | MetaKey::TransportProtocol)
                            | Expression::Payload {
                                base: PayloadBase::Link,
                                offset: ETHERNET_TYPE,
                                ..
                            },
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
        rule.updates
            .iter()
            .for_each(|update| add_update(&mut expressions, update));
        if rule.counted {
            expressions.push(Expression::Counter);
        }
        match rule.verdict {
            Verdict::Accept => expressions.push(Expression::Accept),
            Verdict::Drop => expressions.push(Expression::Drop),
            Verdict::Continue => {}
            Verdict::Jump(chain) => expressions.push(Expression::Jump(chain.to_owned())),
            Verdict::Masquerade => expressions.push(Expression::Masquerade),
            Verdict::MasqueradePorts(first, last) => expressions.extend([
                Expression::Immediate(Register::One, first.to_be_bytes().into()),
                Expression::Immediate(Register::Two, last.to_be_bytes().into()),
                Expression::MasqueradePorts,
            ]),
            Verdict::DestinationNat(address, port) => expressions.extend([
                Expression::Immediate(Register::One, address.octets().into()),
                Expression::Immediate(Register::Two, port.to_be_bytes().into()),
                Expression::DestinationNat,
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
fn compile_match(condition: &Match, family: Family) -> Vec<Expression> {
    let ipv4 = |is| ipv4(is, family);
    match condition {
        Match::InputIn(is, set) => vec![
            Expression::Meta(MetaKey::InputName),
            Expression::Lookup(*is, (*set).to_owned()),
        ],
        Match::OutputNotIn(set) => vec![
            Expression::Meta(MetaKey::OutputName),
            Expression::Lookup(CompareOp::NotEqual, (*set).to_owned()),
        ],
        Match::InputBridge(is, name) => vec![
            Expression::Meta(MetaKey::InputBridge),
            Expression::Compare(*is, name_bytes(name.as_str())),
        ],
        Match::OutputBridge(name) => vec![
            Expression::Meta(MetaKey::OutputBridge),
            Expression::Compare(CompareOp::Equal, name_bytes(name.as_str())),
        ],
        Match::EthernetSource(is, address) => vec![
            payload(PayloadBase::Link, ETHERNET_SOURCE, MAC_LENGTH),
            Expression::Compare(*is, address.0.into()),
        ],
        Match::ToReservedAddress => vec![
            Expression::Meta(MetaKey::InputType),
            Expression::Compare(CompareOp::Equal, libc::ARPHRD_ETHER.to_ne_bytes().into()),
            payload(PayloadBase::Link, 0, MAC_LENGTH),
            Expression::Mask(vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]),
            Expression::Compare(CompareOp::Equal, RESERVED_ADDRESS.into()),
        ],
        Match::Key(is, key, set) => {
            let mut expressions = load(key);
            expressions.push(Expression::Lookup(*is, (*set).to_owned()));
            expressions
        }
        Match::RateOver { set, key, limit } => {
            // A rule for frames on a bridge has this condition itself.
            let mut expressions = match family {
                Family::Inet => Vec::from(ipv4(CompareOp::Equal)),
                Family::Bridge | Family::Arp => Vec::new(),
            };
            expressions.extend(load(key));
            expressions.push(Expression::LimitRate {
                set: (*set).to_owned(),
                timeout_ms: BUCKET_TIMEOUT_MS,
                tokens: limit.tokens.into(),
                interval_s: limit.interval.seconds(),
                burst: limit.burst,
            });
            expressions
        }
        Match::DhcpAcknowledgement => vec![
            payload(PayloadBase::Transport, UDP_HEADER, 1),
            Expression::Compare(CompareOp::Equal, vec![BOOTREPLY]),
            payload(PayloadBase::Transport, DHCP_OPTIONS, DHCPACK.len() as u32),
            Expression::Compare(CompareOp::Equal, DHCPACK.into()),
        ],
        Match::DhcpAddress(net) => {
            address_at(PayloadBase::Transport, DHCP_YIADDR, CompareOp::Equal, net)
        }
        Match::Arp => arp().into(),
        Match::ArpSource(is, net) => {
            let mut expressions = Vec::from(arp());
            expressions.extend(address(ARP_SOURCE, *is, net));
            expressions
        }
        Match::Input(is, name) => vec![
            Expression::Meta(MetaKey::InputName),
            Expression::Compare(*is, name_bytes(name.as_str())),
        ],
        Match::NotFrom(name) => vec![
            Expression::Meta(MetaKey::InputName),
            Expression::Compare(CompareOp::NotEqual, name_bytes(name)),
        ],
        Match::Output(is, name) => vec![
            Expression::Meta(MetaKey::OutputName),
            Expression::Compare(*is, name_bytes(name.as_str())),
        ],
        Match::InputLink(link) => vec![
            Expression::Meta(MetaKey::InputInterface),
            Expression::Compare(CompareOp::Equal, link.index.to_ne_bytes().into()),
        ],
        Match::OutputLink(link) => vec![
            Expression::Meta(MetaKey::OutputInterface),
            Expression::Compare(CompareOp::Equal, link.index.to_ne_bytes().into()),
        ],
        Match::Ipv4(is) => ipv4(*is).into(),
        Match::Ipv4Frame => ethernet_type(CompareOp::Equal, libc::ETH_P_IP).into(),
        Match::Source(is, net) => {
            let mut expressions = Vec::from(ipv4(CompareOp::Equal));
            expressions.extend(address(SOURCE, *is, net));
            expressions
        }
        Match::Destination(is, net) => {
            let mut expressions = Vec::from(ipv4(CompareOp::Equal));
            expressions.extend(address(DESTINATION, *is, net));
            expressions
        }
        Match::Protocol(is, transport) => vec![
            Expression::Meta(MetaKey::TransportProtocol),
            Expression::Compare(*is, vec![number(*transport) as u8]),
        ],
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
        Match::ConnectionsOver {
            set,
            hash,
            groups,
            limit,
        } => {
            let mut expressions = Vec::from(ipv4(CompareOp::Equal));
            let source = payload(PayloadBase::Network, SOURCE, IPV4_LENGTH);
            match hash {
                Hash::Connection => {
                    expressions.extend([source, Expression::HashConnection(*groups)]);
                }
                Hash::SourcePort => {
                    expressions.extend(protocol(libc::IPPROTO_TCP));
                    expressions.extend([
                        source,
                        Expression::PayloadAt {
                            at: 2,
                            base: PayloadBase::Transport,
                            offset: 0,
                            length: PORT_LENGTH,
                        },
                        Expression::HashPort(*groups),
                    ]);
                }
            }
            expressions.push(Expression::CountConnections {
                set: (*set).to_owned(),
                limit: *limit,
            });
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

fn ipv4(is: CompareOp, family: Family) -> [Expression; 2] {
    match family {
        Family::Inet => [
            Expression::Meta(MetaKey::NetworkProtocol),
            Expression::Compare(is, vec![libc::NFPROTO_IPV4 as u8]),
        ],
        Family::Bridge | Family::Arp => ethernet_type(is, libc::ETH_P_IP),
    }
}

/// Compares the type in the Ethernet header. A frame with a VLAN tag has the type of
/// the tag there.
fn ethernet_type(is: CompareOp, number: i32) -> [Expression; 2] {
    [
        payload(PayloadBase::Link, ETHERNET_TYPE, 2),
        Expression::Compare(is, (number as u16).to_be_bytes().into()),
    ]
}

fn arp() -> [Expression; 4] {
    let [load, compare] = ethernet_type(CompareOp::Equal, libc::ETH_P_ARP);
    [
        load,
        compare,
        payload(PayloadBase::Network, 0, ARP_START.len() as u32),
        Expression::Compare(CompareOp::Equal, ARP_START.into()),
    ]
}

/// Loads the fields of a key one after the other.
fn load(key: Key) -> Vec<Expression> {
    let mut register = 0;
    let loads = key.iter().map(|field| {
        let at = register;
        register += field_length(*field).div_ceil(GROUP_LENGTH) as u8;
        load_field(*field, at)
    });
    loads.collect()
}

fn field_length(field: Field) -> u32 {
    match field {
        Field::EthernetSource | Field::ArpHardwareAddress | Field::DhcpHardwareAddress => {
            MAC_LENGTH
        }
        Field::Source | Field::ArpAddress | Field::DhcpAddress => IPV4_LENGTH,
        Field::InputInterface | Field::OutputInterface => GROUP_LENGTH,
    }
}

fn load_field(field: Field, register: u8) -> Expression {
    let meta = |key| match register {
        0 => Expression::Meta(key),
        _ => Expression::MetaAt(register, key),
    };
    let (base, offset) = match field {
        Field::InputInterface => return meta(MetaKey::InputInterface),
        Field::OutputInterface => return meta(MetaKey::OutputInterface),
        Field::EthernetSource => (PayloadBase::Link, ETHERNET_SOURCE),
        Field::Source => (PayloadBase::Network, SOURCE),
        Field::ArpHardwareAddress => (PayloadBase::Network, ARP_HARDWARE_SOURCE),
        Field::ArpAddress => (PayloadBase::Network, ARP_SOURCE),
        Field::DhcpHardwareAddress => (PayloadBase::Transport, DHCP_CHADDR),
        Field::DhcpAddress => (PayloadBase::Transport, DHCP_YIADDR),
    };
    let length = field_length(field);
    match register {
        0 => payload(base, offset, length),
        at => Expression::PayloadAt {
            at,
            base,
            offset,
            length,
        },
    }
}

fn add_update(expressions: &mut Vec<Expression>, update: &Update) {
    expressions.extend(load(update.key));
    expressions.push(Expression::Update {
        set: update.set.to_owned(),
        timeout_ms: update.timeout.as_millis() as u64,
        renew: update.renew,
    });
}

/// Returns nft(8)'s number of a key's type.
fn key_type(parts: &[KeyPart]) -> u32 {
    parts.iter().fold(0, |kind, part| {
        let number = match part {
            KeyPart::HardwareAddress => TYPE_HARDWARE_ADDRESS,
            KeyPart::Address => TYPE_ADDRESS,
            KeyPart::Interface => TYPE_INTERFACE,
        };
        (kind << TYPE_BITS) | number
    })
}

/// Returns the length of a key. In a key of several parts, each part fills its
/// registers.
fn key_length(parts: &[KeyPart]) -> u32 {
    let length = |part: &KeyPart| match part {
        KeyPart::HardwareAddress => MAC_LENGTH,
        KeyPart::Address => IPV4_LENGTH,
        KeyPart::Interface => GROUP_LENGTH,
    };
    match parts {
        [part] => length(part),
        parts => parts
            .iter()
            .map(|part| length(part).next_multiple_of(GROUP_LENGTH))
            .sum(),
    }
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
    address_at(PayloadBase::Network, offset, is, net)
}

fn address_at(
    base: PayloadBase,
    offset: u32,
    is: CompareOp,
    net: &ipnet::Ipv4Net,
) -> Vec<Expression> {
    let mut expressions = vec![payload(base, offset, IPV4_LENGTH)];
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

/// Returns a name as an element of a set.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    bytes
}

/// Appends the NUL: without it, longer names with this prefix match too.
fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
