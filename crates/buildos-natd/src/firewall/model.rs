//! Describes an nftables table, and prints it as nft(8) lists it.
//!
//! # Limits
//!
//! The model has only what the policies use: three kinds of sets, chains with policy accept, and rules made of matches, updates of sets, an
//! optional counter, a verdict and a comment.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_types::{InterfaceName, MacAddress};
use ipnet::Ipv4Net;

mod print;

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Table {
    pub family: Family,
    pub name: &'static str,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// Family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Packets of IPv4 and IPv6.
    Inet,
    /// Frames on bridges.
    Bridge,
    /// ARP packets.
    Arp,
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name, at most 31 bytes.
    pub name: &'static str,
    /// What it contains.
    pub elements: Elements,
}

/// Elements of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    /// IPv4 addresses with the number of a group, which rules add (nft(8), "flags
    /// dynamic"), up to this number. They count the connections of the address.
    AddedAddresses(u32),
    /// These interfaces, sorted by name.
    Interfaces(Vec<InterfaceName>),
    /// Keys of these parts that rules add for a time, up to this number (nft(8), "flags
    /// dynamic,timeout"). They survive a replacement of the rules.
    Learned(&'static [KeyPart], u32),
}

/// A part of the key of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPart {
    /// A MAC address.
    HardwareAddress,
    /// An IPv4 address.
    Address,
    /// The index of an interface.
    Interface,
}

/// A field of the frame that is part of a key.
///
/// The kernel reads the bytes at the place of the field. A rule checks first that the
/// frame has that header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Source in the Ethernet header.
    EthernetSource,
    /// IPv4 source address.
    Source,
    /// Index of the input interface.
    InputInterface,
    /// Index of the output interface.
    OutputInterface,
    /// MAC address of ARP's sender.
    ArpHardwareAddress,
    /// IPv4 address of ARP's sender.
    ArpAddress,
    /// `chaddr` of a DHCP message: MAC address of the client.
    DhcpHardwareAddress,
    /// `yiaddr` of a DHCP message: the assigned address.
    DhcpAddress,
}

/// Fields that are a key together.
pub type Key = &'static [Field];

/// A token bucket (nft(8), "limit rate over").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Tokens that the bucket gains in each interval.
    pub tokens: u32,
    /// Length of an interval.
    pub interval: Interval,
    /// Size of the bucket.
    pub burst: u32,
}

/// Interval of a [`RateLimit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Interval {
    Second,
    Minute,
}

/// Adds a key to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// Name of the set.
    pub set: &'static str,
    /// The key.
    pub key: Key,
    /// Time after which the kernel removes the key.
    pub timeout: Duration,
    /// True if the time starts again for a key that the set has.
    pub renew: bool,
}

/// A chain with policy accept, see [`Chain::name`].
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
    /// ARP packets to the host (`NF_ARP_IN`, linux/netfilter_arp.h).
    ArpInput,
    /// Packets routed through the host.
    Forward,
    /// Packets that the host sends.
    Output,
    /// Every packet that leaves.
    Postrouting,
    /// No hook: rules of other chains jump to the chain of this name.
    Called(&'static str),
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
    /// -100: where the kernel changes destination addresses.
    DestinationNat,
    /// 0.
    Filter,
    /// -200, which nft(8) lists as `filter` in tables of bridges.
    BridgeFilter,
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
    /// Keys that the rule adds to sets.
    pub updates: Vec<Update>,
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
    /// The input interface does not have this name.
    NotFrom(&'static str),
    /// Compares the output interface.
    Output(CompareOp, InterfaceName),
    /// The input interface is this link. The kernel compares a number, which costs it a
    /// third of the comparison of a name.
    InputLink(Link),
    /// The output interface is this link.
    OutputLink(Link),
    /// The input interface is in a set, or not.
    InputIn(CompareOp, &'static str),
    /// The output interface is not in a set.
    OutputNotIn(&'static str),
    /// Compares the bridge of the input interface.
    InputBridge(CompareOp, InterfaceName),
    /// The output interface is a port of this bridge.
    OutputBridge(InterfaceName),
    /// Compares the source in the Ethernet header.
    EthernetSource(CompareOp, MacAddress),
    /// The destination in the Ethernet header is one of 01:80:c2:00:00:00 to :0f, which
    /// bridges do not forward (IEEE 802.1Q, table 8-1).
    ToReservedAddress,
    /// The fields are a key in the set, or not.
    Key(CompareOp, Key, &'static str),
    /// The packets with this key are more than the limit.
    RateOver {
        /// Name of the set with the buckets.
        set: &'static str,
        /// The key.
        key: Key,
        /// The limit of each key.
        limit: RateLimit,
    },
    /// The UDP datagram is dnsmasq's DHCPACK: a BOOTP reply whose first option is the
    /// message type.
    DhcpAcknowledgement,
    /// The address that a DHCP message assigns is in this network.
    DhcpAddress(Ipv4Net),
    /// The frame is one of ARP for IPv4 over Ethernet.
    Arp,
    /// Compares the network of the sender's IPv4 address in ARP.
    ArpSource(CompareOp, Ipv4Net),
    /// Compares the network protocol with IPv4.
    Ipv4(CompareOp),
    /// The frame is one of IPv4.
    Ipv4Frame,
    /// Compares the network of the IPv4 source address.
    Source(CompareOp, Ipv4Net),
    /// Compares the network of the IPv4 destination address.
    Destination(CompareOp, Ipv4Net),
    /// Compares the transport protocol.
    Protocol(CompareOp, Transport),
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
        /// What the kernel hashes into groups.
        hash: Hash,
        /// Number of groups.
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

/// What puts a connection into a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// Addresses, protocol and ports.
    Connection,
    /// The source port of a TCP connection. Other protocols do not match. It costs the
    /// kernel a fraction of [`Self::Connection`], for which the kernel reads all headers.
    SourcePort,
}

/// A network interface by its number, which the kernel does not use again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Link {
    pub name: InterfaceName,
    pub index: u32,
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
    /// Continues with the next rule.
    Continue,
    /// Continues in this chain, and then with the next rule.
    Jump(&'static str),
    /// Replaces the source address by that of the output interface.
    Masquerade,
    /// As [`Self::Masquerade`], and replaces source ports outside of this range.
    MasqueradePorts(u16, u16),
    /// Replaces the destination address and port.
    DestinationNat(Ipv4Addr, u16),
    /// Reduces the maximum segment size of TCP to the MTU of the route in both
    /// directions, and continues with the next rule.
    ClampSegmentSize,
}

impl Chain {
    /// Returns the name. A base chain has that of its hook, or of its priority if it changes
    /// destinations: another chain has this hook then.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match (self.hook, self.priority) {
            (Hook::Prerouting, Priority::DestinationNat) => "destination_nat",
            (hook, _) => hook.as_str(),
        }
    }
}

impl Rule {
    /// Returns a rule without counter and comment.
    #[must_use]
    pub fn new(matches: Vec<Match>, verdict: Verdict) -> Self {
        Self {
            matches,
            counted: false,
            updates: Vec::new(),
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

    /// Adds a key to a set.
    #[must_use]
    pub fn updating(mut self, update: Update) -> Self {
        self.updates.push(update);
        self
    }

    /// Sets the comment.
    #[must_use]
    pub fn comment(self, comment: &'static str) -> Self {
        Self { comment, ..self }
    }
}

impl Family {
    /// The families of natd's tables.
    pub const ALL: [Self; 3] = [Self::Inet, Self::Bridge, Self::Arp];

    /// Returns the name that nft(8) uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Arp => "arp",
        }
    }

    /// Returns `NFPROTO_*` (linux/netfilter.h).
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Self::Inet => libc::NFPROTO_INET,
            Self::Bridge => libc::NFPROTO_BRIDGE,
            Self::Arp => libc::NFPROTO_ARP,
        }
    }
}

impl Hook {
    /// Returns the name that nft(8) uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input | Self::ArpInput => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Called(name) => name,
        }
    }
}

impl Interval {
    /// Returns the name that nft(8) uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
        }
    }

    /// Returns the length in seconds.
    #[must_use]
    pub fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
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
            Self::DestinationNat => "dstnat",
            Self::Filter | Self::BridgeFilter => "filter",
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
