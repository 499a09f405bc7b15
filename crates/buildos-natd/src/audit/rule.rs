//! What a rule means for a packet of which not all is known, and for people.

use std::collections::HashMap;

use super::bits::{Bits, Truth};
use super::flow::Flow;
use crate::firewall::bytecode::{Expression, KernelRule, MetaKey, PayloadBase};
use crate::firewall::model::CompareOp;

/// Expressions that decide nothing.
const SILENT: [&str; 6] = ["immediate", "last", "log", "notrack", "objref", "dup"];
/// Expressions that let the packet pass in this chain.
const PASSING: [&str; 6] = ["nat", "masq", "redir", "tproxy", "queue", "flow_offload"];
/// Targets of iptables that let the packet pass in this chain.
const PASSING_TARGETS: [&str; 5] = ["DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"];

/// What a rule does, if its conditions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect<'a> {
    Nothing,
    Pass,
    Drop,
    Jump(&'a str),
    Goto(&'a str),
    Return,
    /// Looked up in a map that we do not read.
    Unknown,
}

/// What is in a table's sets, as far as it is known.
pub(super) type Sets = HashMap<String, Vec<Vec<u8>>>;

/// Whether the rule matches, and what it then does.
pub(super) fn judge<'a>(rule: &'a KernelRule, sets: &Sets, flow: &Flow) -> (Truth, Effect<'a>) {
    let mut truth = Truth::Yes;
    let mut register = Bits::unknown(0);
    for expression in &rule.expressions {
        if let Some(loaded) = flow.load(expression) {
            register = loaded;
            continue;
        }
        let effect = match expression {
            Expression::Mask(mask) => {
                register.mask(mask);
                Effect::Nothing
            }
            Expression::Compare(is, bytes) => {
                let equal = register.begins_with(bytes);
                truth = truth.and(match is {
                    CompareOp::Equal => equal,
                    CompareOp::NotEqual => equal.not(),
                });
                Effect::Nothing
            }
            Expression::Lookup(is, set) => {
                let within = sets
                    .get(set)
                    .map_or(Truth::Maybe, |set| register.is_in(set));
                truth = truth.and(match is {
                    CompareOp::Equal => within,
                    CompareOp::NotEqual => within.not(),
                });
                Effect::Nothing
            }
            Expression::Accept | Expression::Masquerade => Effect::Pass,
            Expression::Drop | Expression::Reject => Effect::Drop,
            Expression::Jump(chain) => Effect::Jump(chain),
            Expression::Goto(chain) => Effect::Goto(chain),
            Expression::Return => Effect::Return,
            // Always true, and there for people.
            Expression::XtMatch(name) if name == "comment" => Effect::Nothing,
            Expression::XtTarget(name) if name == "REJECT" => Effect::Drop,
            Expression::XtTarget(name) if PASSING_TARGETS.contains(&name.as_str()) => Effect::Pass,
            Expression::Other(name) if PASSING.contains(&name.as_str()) => Effect::Pass,
            Expression::Other(name) if SILENT.contains(&name.as_str()) => Effect::Nothing,
            Expression::Counter | Expression::XtTarget(_) => Effect::Nothing,
            Expression::XtMatch(_)
            | Expression::Other(_)
            | Expression::Meta(_)
            | Expression::Conntrack(_)
            | Expression::Payload { .. } => {
                truth = truth.and(Truth::Maybe);
                Effect::Nothing
            }
        };
        if truth == Truth::No {
            return (Truth::No, Effect::Nothing);
        }
        if effect != Effect::Nothing {
            return (truth, effect);
        }
    }
    let looks_up = |e: &Expression| matches!(e, Expression::Other(name) if name == "lookup");
    match rule.expressions.iter().any(looks_up) {
        true => (truth, Effect::Unknown),
        false => (truth, Effect::Nothing),
    }
}

/// A rule in the words of `nft`, with `…` for what we do not read.
pub(super) fn text(rule: &KernelRule) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut loaded: Option<&str> = None;
    let mut mask: &[u8] = &[];
    for expression in &rule.expressions {
        let word = match expression {
            Expression::Meta(MetaKey::InputName) => {
                loaded = Some("iifname");
                continue;
            }
            Expression::Meta(MetaKey::OutputName) => {
                loaded = Some("oifname");
                continue;
            }
            Expression::Payload {
                base: PayloadBase::Network,
                offset: 12,
                ..
            } => {
                (loaded, mask) = (Some("ip saddr"), &[]);
                continue;
            }
            Expression::Payload {
                base: PayloadBase::Network,
                offset: 16,
                ..
            } => {
                (loaded, mask) = (Some("ip daddr"), &[]);
                continue;
            }
            Expression::Mask(bits) => {
                mask = bits;
                continue;
            }
            Expression::Compare(is, bytes) => match loaded.take() {
                Some(what) => format!("{what} {is}{}", operand(what, bytes, mask)),
                None => "…".to_owned(),
            },
            Expression::XtMatch(name) => format!("-m {name}"),
            Expression::XtTarget(name) => format!("-j {name}"),
            Expression::Drop => "drop".to_owned(),
            Expression::Reject => "reject".to_owned(),
            Expression::Counter => continue,
            Expression::Meta(_)
            | Expression::Conntrack(_)
            | Expression::Payload { .. }
            | Expression::Accept
            | Expression::Masquerade
            | Expression::Jump(_)
            | Expression::Goto(_)
            | Expression::Return
            | Expression::Lookup(..)
            | Expression::Other(_) => {
                loaded = None;
                "…".to_owned()
            }
        };
        if word != "…" || words.last() != Some(&word) {
            words.push(word);
        }
    }
    buildos_service::text::escape(&words.join(" "))
}

/// What a name or an address is compared with.
fn operand(what: &str, bytes: &[u8], mask: &[u8]) -> String {
    if what.starts_with("ip ") {
        let mut octets = [0; 4];
        for (octet, byte) in octets.iter_mut().zip(bytes) {
            *octet = *byte;
        }
        let address = std::net::Ipv4Addr::from(octets);
        let bits = match mask {
            [] => bytes.len() as u32 * 8,
            mask => mask.iter().map(|byte| byte.count_ones()).sum(),
        };
        return match bits {
            32 => address.to_string(),
            bits => format!("{address}/{bits}"),
        };
    }
    let name: Vec<u8> = bytes
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    // Without its NUL it is the beginning of a name.
    let star = if bytes.contains(&0) { "" } else { "*" };
    format!("\"{}{star}\"", String::from_utf8_lossy(&name))
}
