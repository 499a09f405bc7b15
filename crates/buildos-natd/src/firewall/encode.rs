//! Encodes a [`KernelTable`] as the messages of one transaction, with libnftnl.

mod raw;

use std::ffi::{CStr, CString};

use nftnl::expr::{
    Bitwise, Cmp, CmpOp, Conntrack, Counter, Masquerade, Meta, NetworkHeaderField, Payload,
    TransportHeaderField, Verdict,
};
use nftnl::{Batch, Chain, ChainType, Hook, MsgType, Policy, ProtoFamily, Rule, Table};

use super::bytecode::{
    ConntrackKey, Expression, KernelChain, KernelRule, KernelTable, MetaKey, PayloadBase,
};
use super::model::CompareOp;
use raw::Raw;

/// Returns the messages that replace the table of that name, and the object of
/// each message for errors.
pub(super) fn replacement(table: &KernelTable) -> (Batch, Vec<String>) {
    let mut batch = Batch::new();
    let mut objects = Vec::new();
    let new = Table::new(c_string(&table.name), ProtoFamily::Inet);
    // Deleting a missing table fails, so the transaction adds it first.
    for kind in [MsgType::Add, MsgType::Del, MsgType::Add] {
        batch.add(&new, kind);
        objects.push(format!("table inet {}", table.name));
    }
    for (set, id) in table.sets.iter().zip(1..) {
        batch.add(&raw::set(&new, &c_string(&set.name), id, set), MsgType::Add);
        objects.push(format!("set {}", set.name));
    }
    for chain in &table.chains {
        add_chain(&mut batch, &mut objects, &new, chain);
    }
    (batch, objects)
}

fn add_chain(batch: &mut Batch, objects: &mut Vec<String>, table: &Table, compiled: &KernelChain) {
    let mut chain = Chain::new(c_string(&compiled.name), table);
    if let Some(hook) = compiled.hook.and_then(hook) {
        chain.set_type(chain_type(&compiled.kind));
        chain.set_hook(hook, compiled.priority);
        chain.set_policy(match compiled.policy_drops() {
            true => Policy::Drop,
            false => Policy::Accept,
        });
    }
    batch.add(&chain, MsgType::Add);
    objects.push(format!("chain {}", compiled.name));
    for rule in &compiled.rules {
        batch.add(&encode_rule(&chain, rule), MsgType::Add);
        objects.push(format!(
            "a rule of chain {} ({})",
            compiled.name,
            description(rule)
        ));
    }
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
        Expression::Meta(MetaKey::InputName) => rule.add_expr(&Meta::IifName),
        Expression::Meta(MetaKey::OutputName) => rule.add_expr(&Meta::OifName),
        Expression::Meta(MetaKey::NetworkProtocol) => rule.add_expr(&Meta::NfProto),
        Expression::Meta(MetaKey::TransportProtocol) => rule.add_expr(&Meta::L4Proto),
        Expression::Conntrack(ConntrackKey::State) => rule.add_expr(&Conntrack::State),
        Expression::Conntrack(ConntrackKey::Status) => rule.add_expr(&Conntrack::Status),
        Expression::Payload {
            base,
            offset,
            length,
        } => rule.add_expr(&payload(*base, *offset, *length)),
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
        Expression::CountConnections { set, limit } => {
            rule.add_expr(&Raw::count_connections(c_string(set), *limit));
        }
        Expression::Counter => rule.add_expr(&Counter),
        Expression::Accept => rule.add_expr(&Verdict::Accept),
        Expression::Drop => rule.add_expr(&Verdict::Drop),
        Expression::Masquerade => rule.add_expr(&Masquerade),
        Expression::MasqueradePorts => rule.add_expr(&Raw::masquerade_ports()),
        Expression::RouteSegmentSize => rule.add_expr(&Raw::route_segment_size()),
        Expression::HostToNetwork => rule.add_expr(&Raw::host_to_network()),
        Expression::WriteSegmentSize => rule.add_expr(&Raw::write_segment_size()),
        // Only foreign tables have these, and they are never installed.
        Expression::Jump(_)
        | Expression::Goto(_)
        | Expression::Return
        | Expression::Reject
        | Expression::XtMatch(_)
        | Expression::XtTarget(_)
        | Expression::Other(_) => {}
    }
}

/// libnftnl counts in bytes, although the fields of the binding say bits.
fn payload(base: PayloadBase, offset: u32, length: u32) -> Payload {
    match base {
        PayloadBase::Network => Payload::Network(NetworkHeaderField::Raw {
            offset_bits: offset,
            length_bits: length,
        }),
        PayloadBase::Transport => Payload::Transport(TransportHeaderField::Raw {
            offset_bits: offset,
            length_bits: length,
        }),
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
    use crate::firewall::bytecode::{KernelSet, Register};
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
            payload(PayloadBase::Network),
            payload(PayloadBase::Transport),
            Expression::Mask(vec![255, 255, 0, 0]),
            Expression::Compare(CompareOp::Equal, b"br1\0".to_vec()),
            Expression::Compare(CompareOp::NotEqual, vec![0; 4]),
            Expression::Range(vec![0, 67], vec![0, 68]),
            Expression::Immediate(Register::One, vec![4, 0]),
            Expression::Immediate(Register::Two, vec![255, 255]),
            Expression::HashConnection(16),
            Expression::CountConnections {
                set: "connections".to_owned(),
                limit: 2048,
            },
            Expression::Counter,
            Expression::Accept,
            Expression::Drop,
            Expression::Masquerade,
            Expression::MasqueradePorts,
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
            key_length: 8,
            size: 65_535,
        };
        let table = KernelTable {
            name: "buildos".to_owned(),
            flags: 0,
            sets: vec![set.clone()],
            chains: vec![chain.clone()],
        };
        let (batch, _) = replacement(&table);
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
