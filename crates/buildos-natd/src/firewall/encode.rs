//! Encodes a [`KernelTable`] as the messages of one transaction, with libnftnl.

mod raw;

use std::ffi::{CStr, CString};

use nftnl::expr::{Bitwise, Cmp, CmpOp, Conntrack, Counter, Masquerade, Verdict};
use nftnl::{Batch, Chain, ChainType, Hook, MsgType, NlMsg, Policy, ProtoFamily, Rule, Table};

use super::bytecode::{
    ConntrackKey, ElementChange, Expression, KernelChain, KernelRule, KernelTable,
};
use super::model::{CompareOp, Family};
use raw::Raw;

/// A table to be installed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replacement<'a> {
    pub(super) family: Family,
    pub(super) table: &'a KernelTable,
    /// The installed table, if its learned sets are to keep their elements.
    pub(super) keep: Option<&'a KernelTable>,
    /// Elements of learned sets, if they are not kept.
    pub(super) elements: &'a [ElementChange],
}

impl Replacement<'_> {
    /// Returns true if the transaction has not all the elements: it has to fit into a
    /// socket's send buffer.
    pub(super) fn has_more_elements(&self) -> bool {
        let is_large = |change: &ElementChange| change.added.len() > raw::ELEMENTS_PER_MESSAGE;
        self.keep.is_none() && self.elements.iter().any(is_large)
    }
}

/// Returns the messages that install these tables, and the object of each message for
/// errors.
pub(super) fn replacements(replacements: &[Replacement<'_>]) -> (Batch, Vec<String>) {
    let mut transaction = Transaction {
        batch: Batch::new(),
        objects: Vec::new(),
    };
    for replacement in replacements {
        transaction.replace(*replacement);
    }
    (transaction.batch, transaction.objects)
}

/// Returns the messages that remove a table of family `inet`.
pub(super) fn removal(name: &str) -> (Batch, Vec<String>) {
    let mut transaction = Transaction {
        batch: Batch::new(),
        objects: Vec::new(),
    };
    let table = Table::new(c_string(name), protocol(Family::Inet));
    // Deleting a missing table fails.
    for kind in [MsgType::Add, MsgType::Del] {
        transaction.add(&table, kind, format!("table inet {name}"));
    }
    (transaction.batch, transaction.objects)
}

/// The messages of one transaction.
struct Transaction {
    batch: Batch,
    objects: Vec<String>,
}

impl Transaction {
    fn add<T: NlMsg>(&mut self, message: &T, kind: MsgType, object: String) {
        self.batch.add(message, kind);
        self.objects.push(object);
    }

    fn replace(&mut self, replacement: Replacement<'_>) {
        let Replacement {
            family,
            table,
            keep,
            elements,
        } = replacement;
        let new = Table::new(c_string(&table.name), protocol(family));
        let name = format!("table {} {}", family.as_str(), table.name);
        match keep {
            Some(installed) => self.empty(&new, installed),
            // Deleting a missing table fails, so the transaction adds it first.
            None => {
                for kind in [MsgType::Add, MsgType::Del, MsgType::Add] {
                    self.add(&new, kind, name.clone());
                }
            }
        }
        for (set, id) in table.sets.iter().zip(1..) {
            if keep.is_some() && set.is_learned() {
                continue;
            }
            let encoded = raw::set(&new, &c_string(&set.name), id, set);
            self.add(&encoded, MsgType::Add, format!("set {}", set.name));
            for elements in encoded.elems_iter() {
                let object = format!("elements of set {}", set.name);
                self.add(&elements, MsgType::Add, object);
            }
        }
        let learned = elements
            .iter()
            .filter(|change| keep.is_none() && !change.added.is_empty());
        for change in learned {
            let message = raw::ElementsMessage {
                family,
                table: &table.name,
                set: &change.set,
                elements: change
                    .added
                    .get(..raw::ELEMENTS_PER_MESSAGE)
                    .unwrap_or(&change.added),
            };
            let object = format!("elements of set {}", change.set);
            self.add(&message, MsgType::Add, object);
        }
        // A rule can jump to a later chain.
        for chain in &table.chains {
            let object = format!("chain {}", chain.name);
            self.add(&encode_chain(&new, chain), MsgType::Add, object);
        }
        for compiled in &table.chains {
            let chain = Chain::new(c_string(&compiled.name), &new);
            for rule in &compiled.rules {
                let (name, comment) = (&compiled.name, description(rule));
                let object = format!("a rule of chain {name} ({comment})");
                self.add(&encode_rule(&chain, rule), MsgType::Add, object);
            }
        }
    }

    /// Removes rules, chains and sets, except the learned sets.
    fn empty(&mut self, table: &Table, installed: &KernelTable) {
        let chains = || installed.chains.iter().map(|chain| &chain.name);
        for name in chains() {
            let chain = Chain::new(c_string(name), table);
            // Without a handle, the kernel removes all rules of the chain.
            let rules = Rule::new(&chain);
            self.add(&rules, MsgType::Del, format!("rules of chain {name}"));
        }
        for name in chains() {
            let chain = Chain::new(c_string(name), table);
            self.add(&chain, MsgType::Del, format!("chain {name}"));
        }
        for set in installed.sets.iter().filter(|set| !set.is_learned()) {
            let encoded = raw::set(table, &c_string(&set.name), 0, &set.without_elements());
            self.add(&encoded, MsgType::Del, format!("set {}", set.name));
        }
    }
}

/// Returns the messages that remove elements from sets of a table, and then add
/// elements. Removing an element that the set does not have succeeds.
pub(super) fn element_changes(family: Family, table: &str, changes: &[ElementChange]) -> Batch {
    let mut batch = Batch::new();
    for kind in [MsgType::Del, MsgType::Add] {
        for change in changes {
            let elements = match kind {
                MsgType::Del => &change.removed,
                MsgType::Add => &change.added,
            };
            for elements in elements.chunks(raw::ELEMENTS_PER_MESSAGE) {
                let message = raw::ElementsMessage {
                    family,
                    table,
                    set: &change.set,
                    elements,
                };
                batch.add(&message, kind);
            }
        }
    }
    batch
}

fn protocol(family: Family) -> ProtoFamily {
    match family {
        Family::Inet => ProtoFamily::Inet,
        Family::Bridge => ProtoFamily::Bridge,
        Family::Arp => ProtoFamily::Arp,
    }
}

fn encode_chain<'a>(table: &'a Table, compiled: &KernelChain) -> Chain<'a> {
    let mut chain = Chain::new(c_string(&compiled.name), table);
    if let Some(hook) = compiled.hook.and_then(hook) {
        chain.set_type(chain_type(&compiled.kind));
        chain.set_hook(hook, compiled.priority);
        chain.set_policy(match compiled.policy_drops() {
            true => Policy::Drop,
            false => Policy::Accept,
        });
    }
    chain
}

fn encode_rule<'a>(chain: &'a Chain<'a>, compiled: &KernelRule) -> Rule<'a> {
    let mut rule = Rule::new(chain);
    for expression in &compiled.expressions {
        add_expression(&mut rule, expression);
    }
    if !compiled.comment.is_empty() {
        // libnftnl refuses comments over 127 bytes; the rule works without one.
        let _ = rule.set_comment(c_string(&compiled.comment));
    }
    rule
}

fn add_expression(rule: &mut Rule<'_>, expression: &Expression) {
    match expression {
        Expression::Meta(key) => rule.add_expr(&Raw::meta(0, *key)),
        Expression::MetaAt(at, key) => rule.add_expr(&Raw::meta(*at, *key)),
        Expression::Lookup(is, set) => rule.add_expr(&Raw::lookup(c_string(set), *is)),
        Expression::Conntrack(ConntrackKey::State) => rule.add_expr(&Conntrack::State),
        Expression::Conntrack(ConntrackKey::Status) => rule.add_expr(&Conntrack::Status),
        Expression::Payload {
            base,
            offset,
            length,
        } => rule.add_expr(&Raw::payload(0, *base, *offset, *length)),
        Expression::PayloadAt {
            at,
            base,
            offset,
            length,
        } => rule.add_expr(&Raw::payload(*at, *base, *offset, *length)),
        Expression::Update {
            set,
            timeout_ms,
            renew,
        } => rule.add_expr(&Raw::update(c_string(set), *timeout_ms, *renew)),
        Expression::LimitRate {
            set,
            timeout_ms,
            tokens,
            interval_s,
            burst,
        } => rule.add_expr(&Raw::limit_rate(
            c_string(set),
            *timeout_ms,
            *tokens,
            *interval_s,
            *burst,
        )),
        Expression::Mask(mask) => {
            let nothing = vec![0_u8; mask.len()];
            rule.add_expr(&Bitwise::new(mask.as_slice(), nothing.as_slice()));
        }
        Expression::Compare(CompareOp::Equal, data) => {
            rule.add_expr(&Cmp::new(CmpOp::Eq, data.as_slice()))
        }
        Expression::Compare(CompareOp::NotEqual, data) => {
            rule.add_expr(&Cmp::new(CmpOp::Neq, data.as_slice()))
        }
        Expression::Range(from, to) => rule.add_expr(&Raw::range(from, to)),
        Expression::Immediate(to, data) => rule.add_expr(&Raw::immediate(*to, data)),
        Expression::HashConnection(groups) => rule.add_expr(&Raw::hash_connection(*groups)),
        Expression::HashPort(groups) => rule.add_expr(&Raw::hash_port(*groups)),
        Expression::CountConnections { set, limit } => {
            rule.add_expr(&Raw::count_connections(c_string(set), *limit));
        }
        Expression::Counter => rule.add_expr(&Counter),
        Expression::Accept => rule.add_expr(&Verdict::Accept),
        Expression::Drop => rule.add_expr(&Verdict::Drop),
        Expression::Masquerade => rule.add_expr(&Masquerade),
        Expression::MasqueradePorts => rule.add_expr(&Raw::masquerade_ports()),
        Expression::DestinationNat => rule.add_expr(&Raw::destination_nat()),
        Expression::RouteSegmentSize => rule.add_expr(&Raw::route_segment_size()),
        Expression::HostToNetwork => rule.add_expr(&Raw::host_to_network()),
        Expression::WriteSegmentSize => rule.add_expr(&Raw::write_segment_size()),
        Expression::Jump(chain) => rule.add_expr(&Verdict::Jump {
            chain: c_string(chain),
        }),
        // Only foreign tables have these, and they are never installed.
        Expression::Goto(_)
        | Expression::Return
        | Expression::Reject
        | Expression::XtMatch(_)
        | Expression::XtTarget(_)
        | Expression::Other(_) => {}
    }
}

fn hook(number: u32) -> Option<Hook> {
    [
        Hook::PreRouting,
        Hook::In,
        Hook::Forward,
        Hook::Out,
        Hook::PostRouting,
    ]
    .into_iter()
    .find(|hook| *hook as u32 == number)
}

fn chain_type(kind: &str) -> ChainType {
    match kind {
        "nat" => ChainType::Nat,
        _ => ChainType::Filter,
    }
}

fn description(rule: &KernelRule) -> &str {
    if rule.comment.is_empty() {
        "without a comment"
    } else {
        &rule.comment
    }
}

/// Converts a text up to its first NUL; names and comments here have none.
fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text
        .bytes()
        .take_while(|byte| *byte != 0)
        .chain([0])
        .collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| CString::default(), CStr::to_owned)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkBuffer;

    use super::*;
    use crate::firewall::bytecode::{KernelSet, MetaKey, PayloadBase, Register};
    use crate::firewall::decode;

    /// Every expression that `inet buildos` can have.
    fn expressions() -> Vec<Expression> {
        let payload = |base| Expression::Payload {
            base,
            offset: 12,
            length: 4,
        };
        vec![
            Expression::Meta(MetaKey::InputName),
            Expression::Meta(MetaKey::OutputName),
            Expression::Meta(MetaKey::NetworkProtocol),
            Expression::Meta(MetaKey::TransportProtocol),
            Expression::Conntrack(ConntrackKey::State),
            Expression::Conntrack(ConntrackKey::Status),
            Expression::Meta(MetaKey::InputInterface),
            Expression::Meta(MetaKey::InputType),
            Expression::Meta(MetaKey::OutputInterface),
            Expression::Meta(MetaKey::InputBridge),
            Expression::Meta(MetaKey::OutputBridge),
            Expression::MetaAt(3, MetaKey::InputInterface),
            Expression::PayloadAt {
                at: 2,
                base: PayloadBase::Network,
                offset: 12,
                length: 4,
            },
            Expression::Update {
                set: "ports".to_owned(),
                timeout_ms: 60_000,
                renew: true,
            },
            Expression::Update {
                set: "ports".to_owned(),
                timeout_ms: 3_600_000,
                renew: false,
            },
            Expression::LimitRate {
                set: "requests".to_owned(),
                timeout_ms: 600_000,
                tokens: 20,
                interval_s: 1,
                burst: 50,
            },
            Expression::Jump("dhcp".to_owned()),
            Expression::Lookup(CompareOp::Equal, "ports".to_owned()),
            Expression::Lookup(CompareOp::NotEqual, "ports".to_owned()),
            payload(PayloadBase::Link),
            payload(PayloadBase::Network),
            payload(PayloadBase::Transport),
            Expression::Mask(vec![255, 255, 0, 0]),
            Expression::Compare(CompareOp::Equal, b"br1\0".to_vec()),
            Expression::Compare(CompareOp::NotEqual, vec![0; 4]),
            Expression::Range(vec![0, 67], vec![0, 68]),
            Expression::Immediate(Register::One, vec![4, 0]),
            Expression::Immediate(Register::Two, vec![255, 255]),
            Expression::HashConnection(16),
            Expression::HashPort(16),
            Expression::CountConnections {
                set: "connections".to_owned(),
                limit: 2048,
            },
            Expression::Counter,
            Expression::Accept,
            Expression::Drop,
            Expression::Masquerade,
            Expression::MasqueradePorts,
            Expression::DestinationNat,
            Expression::RouteSegmentSize,
            Expression::HostToNetwork,
            Expression::WriteSegmentSize,
        ]
    }

    /// Returns type and attributes of each message.
    fn messages(batch: Batch) -> Vec<(u16, Vec<u8>)> {
        let batch = batch.finalize();
        let bytes: Vec<u8> = batch.iter().flatten().copied().collect();
        let mut rest = bytes.as_slice();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).unwrap();
            // struct nfgenmsg precedes the attributes.
            let attributes = message.payload().get(4..).unwrap().to_vec();
            messages.push((message.message_type() & 0xff, attributes));
            rest = &rest[(message.length() as usize).next_multiple_of(4)..];
        }
        messages
    }

    #[test]
    fn encoded_table_decodes_as_it_was_compiled() {
        let rule = KernelRule {
            expressions: expressions(),
            comment: "everything".to_owned(),
        };
        let chain = KernelChain {
            name: "forward".to_owned(),
            kind: "filter".to_owned(),
            hook: Some(libc::NF_INET_FORWARD as u32),
            priority: -300,
            policy: Some(libc::NF_ACCEPT as u32),
            rules: vec![rule.clone()],
        };
        let set = KernelSet {
            name: "connections".to_owned(),
            flags: libc::NFT_SET_EVAL as u32,
            key_type: (7 << 6) | 19,
            key_length: 8,
            size: 65_535,
            elements: Vec::new(),
        };
        let table = KernelTable {
            name: "buildos".to_owned(),
            flags: 0,
            sets: vec![set.clone()],
            chains: vec![chain.clone()],
        };
        let (batch, _) = replacements(&[Replacement {
            family: Family::Inet,
            table: &table,
            keep: None,
            elements: &[],
        }]);
        let (mut sets, mut chains, mut rules) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, attributes) in messages(batch) {
            match kind.into() {
                libc::NFT_MSG_NEWSET => sets.push(decode::set(&attributes).unwrap()),
                libc::NFT_MSG_NEWCHAIN => chains.push(decode::chain(&attributes).unwrap()),
                libc::NFT_MSG_NEWRULE => rules.push(decode::rule(&attributes).unwrap().rule),
                _ => {}
            }
        }
        assert_eq!(sets, [("buildos".to_owned(), set)]);
        let expected = KernelChain {
            rules: Vec::new(),
            ..chain
        };
        assert_eq!(chains, [("buildos".to_owned(), expected)]);
        assert_eq!(rules, [rule]);
    }
}
