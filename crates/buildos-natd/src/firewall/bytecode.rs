//! Describes tables as the kernel keeps them, and compares tables in that form.

use super::model::CompareOp;

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

/// A set as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSet {
    /// Name, at most 31 bytes.
    pub name: String,
    /// `enum nft_set_flags`.
    pub flags: u32,
    /// nft(8)'s number of the type of a key.
    pub key_type: u32,
    /// Length of a key in bytes.
    pub key_length: u32,
    /// Largest number of elements; 0 for no limit.
    pub size: u32,
    /// Sorted; without those that rules add.
    pub elements: Vec<Vec<u8>>,
}

/// An element that rules added to a set for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The key.
    pub key: Vec<u8>,
    /// Milliseconds from the last update to the end of the element.
    pub timeout_ms: u64,
    /// Milliseconds that are left.
    pub remaining_ms: u64,
}

/// Elements that leave and join a learned set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ElementChange {
    pub set: String,
    pub removed: Vec<Element>,
    pub added: Vec<Element>,
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
    /// As `HashConnection`, of the port that `PayloadAt` loaded after that register.
    HashPort(u32),
    /// Adds the register to a set, and ends the rule unless more connections than
    /// the limit have this element.
    CountConnections {
        /// Name of the set.
        set: String,
        /// Largest number of connections for which the rule ends.
        limit: u32,
    },
    /// As `Meta`, into a later 32-bit group of register 1.
    MetaAt(u8, MetaKey),
    /// As `Payload`, into a later 32-bit group of register 1.
    PayloadAt {
        /// Number of the group, 1 to 3.
        at: u8,
        /// Header from which `offset` counts.
        base: PayloadBase,
        /// In bytes.
        offset: u32,
        /// In bytes.
        length: u32,
    },
    /// Adds the register to a set for a time; ends the rule if the set is full.
    Update {
        /// Name of the set.
        set: String,
        /// The time in milliseconds.
        timeout_ms: u64,
        /// True if the time starts again for an element of the set.
        renew: bool,
    },
    /// Adds the register to a set, and ends the rule unless the token bucket of this
    /// element is empty.
    LimitRate {
        /// Name of the set.
        set: String,
        /// Milliseconds after which an unused bucket is removed.
        timeout_ms: u64,
        /// Tokens that the bucket gains in each interval.
        tokens: u64,
        /// Seconds of an interval.
        interval_s: u64,
        /// Size of the bucket.
        burst: u32,
    },
    /// Ends the rule unless a set contains the register (`Equal`), or does not (`NotEqual`).
    Lookup(CompareOp, String),
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
    /// Replaces the destination address by [`Register::One`], and the port by
    /// [`Register::Two`].
    DestinationNat,
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
    /// Hardware type of the input interface, `ARPHRD_*`.
    InputType = libc::NFT_META_IIFTYPE as isize,
    /// `NFPROTO_*` of the packet.
    NetworkProtocol = libc::NFT_META_NFPROTO as isize,
    /// Index of the input interface.
    InputInterface = libc::NFT_META_IIF as isize,
    /// Index of the output interface.
    OutputInterface = libc::NFT_META_OIF as isize,
    /// Name of the bridge of the input interface.
    InputBridge = libc::NFT_META_BRI_IIFNAME as isize,
    /// Name of the bridge of the output interface.
    OutputBridge = libc::NFT_META_BRI_OIFNAME as isize,
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
    /// The Ethernet header.
    Link = libc::NFT_PAYLOAD_LL_HEADER as isize,
    /// The IP header, or that of ARP.
    Network = libc::NFT_PAYLOAD_NETWORK_HEADER as isize,
    /// The TCP, UDP or ICMP header.
    Transport = libc::NFT_PAYLOAD_TRANSPORT_HEADER as isize,
}

impl KernelTable {
    /// Returns true if the table has learned sets, and the installed table the same ones:
    /// a replacement can then keep their elements.
    #[must_use]
    pub fn can_keep_elements_of(&self, installed: &Self) -> bool {
        let learned = |table: &Self| -> Vec<KernelSet> {
            let sets = table.sets.iter().filter(|set| set.is_learned());
            sets.cloned().collect()
        };
        let sets = learned(self);
        !sets.is_empty() && self.flags == installed.flags && sets == learned(installed)
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
    /// Returns true for a set whose elements rules add for a time.
    #[must_use]
    pub fn is_learned(&self) -> bool {
        self.flags & libc::NFT_SET_TIMEOUT as u32 != 0
    }

    pub(super) fn without_elements(&self) -> Self {
        Self {
            elements: Vec::new(),
            ..self.clone()
        }
    }
}

impl KernelChain {
    /// Returns true for a base chain with policy drop.
    #[must_use]
    pub fn policy_drops(&self) -> bool {
        self.policy == Some(libc::NF_DROP as u32)
    }
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
        let set = KernelSet {
            name: "connections".to_owned(),
            flags: 0,
            key_type: 7,
            key_length: 4,
            size: 1,
            elements: Vec::new(),
        };
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
