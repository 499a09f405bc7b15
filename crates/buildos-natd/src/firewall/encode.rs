//! From an [`Image`] to the messages of a transaction, by libnftnl.

use std::ffi::{CStr, CString};

use nftnl::expr::{
    Bitwise, Cmp, CmpOp, Conntrack, Counter, Masquerade, Meta, NetworkHeaderField, Payload,
    TransportHeaderField, Verdict,
};
use nftnl::{Batch, Chain, ChainType, Hook, MsgType, Policy, ProtoFamily, Rule, Table};

use super::bytecode::{
    ConnectionKey, Expression, Image, ImageChain, ImageRule, MetaKey, PayloadBase,
};
use crate::firewall::model::Is;

/// The messages that put the image in the place of whatever has its name, and
/// for each of them what to call it in an error.
pub(super) fn replacement(image: &Image) -> (Batch, Vec<String>) {
    let mut batch = Batch::new();
    let mut objects = Vec::new();
    let table = Table::new(c_string(&image.name), ProtoFamily::Inet);
    // Deleting what is not there would fail, so it is added first.
    for kind in [MsgType::Add, MsgType::Del, MsgType::Add] {
        batch.add(&table, kind);
        objects.push(format!("table inet {}", image.name));
    }
    for chain in &image.chains {
        add_chain(&mut batch, &mut objects, &table, chain);
    }
    (batch, objects)
}

fn add_chain(batch: &mut Batch, objects: &mut Vec<String>, table: &Table, image: &ImageChain) {
    let mut chain = Chain::new(c_string(&image.name), table);
    if let Some(hook) = image.hook.and_then(hook) {
        chain.set_type(chain_type(&image.kind));
        chain.set_hook(hook, image.priority);
        chain.set_policy(match image.policy {
            Some(policy) if policy == libc::NF_DROP as u32 => Policy::Drop,
            Some(_) | None => Policy::Accept,
        });
    }
    batch.add(&chain, MsgType::Add);
    objects.push(format!("chain {}", image.name));
    for rule in &image.rules {
        batch.add(&encode_rule(&chain, rule), MsgType::Add);
        objects.push(format!(
            "a rule of chain {} ({})",
            image.name,
            description(rule)
        ));
    }
}

fn encode_rule<'a>(chain: &'a Chain<'a>, image: &ImageRule) -> Rule<'a> {
    let mut rule = Rule::new(chain);
    for expression in &image.expressions {
        add_expression(&mut rule, expression);
    }
    if !image.comment.is_empty() {
        // Too long a comment is left out: nothing depends on it.
        let _ = rule.set_comment(c_string(&image.comment));
    }
    rule
}

fn add_expression(rule: &mut Rule<'_>, expression: &Expression) {
    match expression {
        Expression::Meta(MetaKey::InputName) => rule.add_expr(&Meta::IifName),
        Expression::Meta(MetaKey::OutputName) => rule.add_expr(&Meta::OifName),
        Expression::Meta(MetaKey::NetworkProtocol) => rule.add_expr(&Meta::NfProto),
        Expression::Meta(MetaKey::TransportProtocol) => rule.add_expr(&Meta::L4Proto),
        Expression::Connection(ConnectionKey::State) => rule.add_expr(&Conntrack::State),
        Expression::Connection(ConnectionKey::Status) => rule.add_expr(&Conntrack::Status),
        Expression::Payload {
            base,
            offset,
            length,
        } => rule.add_expr(&payload(*base, *offset, *length)),
        Expression::Mask(mask) => {
            let nothing = vec![0_u8; mask.len()];
            rule.add_expr(&Bitwise::new(mask.as_slice(), nothing.as_slice()));
        }
        Expression::Compare(Is::Equal, data) => {
            rule.add_expr(&Cmp::new(CmpOp::Eq, data.as_slice()))
        }
        Expression::Compare(Is::Not, data) => rule.add_expr(&Cmp::new(CmpOp::Neq, data.as_slice())),
        Expression::Counter => rule.add_expr(&Counter),
        Expression::Accept => rule.add_expr(&Verdict::Accept),
        Expression::Drop => rule.add_expr(&Verdict::Drop),
        Expression::Masquerade => rule.add_expr(&Masquerade),
        // Only readings of the kernel have these, and those are not installed.
        Expression::Lookup(..)
        | Expression::Jump(_)
        | Expression::Goto(_)
        | Expression::Return
        | Expression::Reject
        | Expression::Match(_)
        | Expression::Target(_)
        | Expression::Foreign(_) => {}
    }
}

/// libnftnl counts in bytes, whatever the fields of the binding are called.
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

fn description(rule: &ImageRule) -> &str {
    if rule.comment.is_empty() {
        "without a comment"
    } else {
        &rule.comment
    }
}

/// Up to the first NUL; our names and comments have none.
fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text
        .bytes()
        .take_while(|byte| *byte != 0)
        .chain([0])
        .collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| CString::default(), CStr::to_owned)
}
