//! Collects the verdicts that a base chain can reach.

use std::collections::HashMap;

use super::traffic::Traffic;
use crate::firewall::bytecode::{ConntrackKey, Expression, KernelChain, KernelRule, KernelTable};
use crate::firewall::model::CompareOp;

/// Verdicts that a base chain can reach.
pub(super) struct Verdicts {
    pub(super) accept: bool,
    pub(super) drop: bool,
}

impl Verdicts {
    /// Returns the verdicts of a base chain, with its policy.
    pub(super) fn of(table: &KernelTable, chain: &KernelChain, traffic: &Traffic) -> Self {
        let visited = HashMap::new();
        let mut walk = Walk {
            table,
            traffic,
            visited,
        };
        let reached = walk.chain(chain);
        let (undecided, drops) = (reached & UNDECIDED != 0, chain.policy_drops());
        Self {
            accept: reached & ACCEPT != 0 || undecided && !drops,
            drop: reached & DROP != 0 || undecided && drops,
        }
    }
}

/// Set of verdicts that a chain or rule can reach.
type Reached = u8;
const ACCEPT: Reached = 1;
const DROP: Reached = 2;
/// The end of the chain, or a return from it.
const UNDECIDED: Reached = 4;

/// Effect of a rule whose conditions hold.
enum Effect<'a> {
    Continue,
    End(Reached),
    Jump(&'a str),
    Goto(&'a str),
}

struct Walk<'a> {
    table: &'a KernelTable,
    traffic: &'a Traffic,
    /// Verdicts of called chains, by name.
    visited: HashMap<&'a str, Reached>,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, chain: &'a KernelChain) -> Reached {
        let mut all = 0;
        for rule in &chain.rules {
            let Some((certain, effect)) = effect(rule, self.traffic) else {
                continue;
            };
            let (reached, ends) = match effect {
                Effect::Continue => continue,
                Effect::End(reached) => (reached, true),
                Effect::Goto(name) => (self.called(name), true),
                Effect::Jump(name) => {
                    let called = self.called(name);
                    (called & !UNDECIDED, called & UNDECIDED == 0)
                }
            };
            all |= reached;
            if certain && ends {
                return all;
            }
        }
        all | UNDECIDED
    }

    fn called(&mut self, name: &'a str) -> Reached {
        if let Some(reached) = self.visited.get(name) {
            return *reached;
        }
        // Ends loops, which the kernel refuses.
        self.visited.insert(name, UNDECIDED);
        let chain = self.table.chains.iter().find(|chain| chain.name == name);
        let reached = chain.map_or(UNDECIDED, |chain| self.chain(chain));
        self.visited.insert(name, reached);
        reached
    }
}

/// Returns true if the rule certainly matches, with its effect; [`None`] if it does not
/// match.
fn effect<'a>(rule: &'a KernelRule, traffic: &Traffic) -> Option<(bool, Effect<'a>)> {
    let mut certain = true;
    // Content of register 1, if it is known.
    let mut register: Option<Vec<u8>> = None;
    for expression in &rule.expressions {
        if let Some(effect) = verdict(expression) {
            return Some((certain, effect));
        }
        match expression {
            Expression::Meta(key) => register = traffic.meta(*key),
            Expression::Conntrack(ConntrackKey::State) => {
                register = Some(traffic.state.to_ne_bytes().into());
            }
            Expression::Conntrack(ConntrackKey::Status)
            | Expression::Payload { .. }
            | Expression::Immediate(..)
            | Expression::HashConnection(_)
            | Expression::HashPort(_)
            | Expression::RouteSegmentSize
            | Expression::HostToNetwork => {
                register = None;
            }
            Expression::Range(..)
            | Expression::CountConnections { .. }
            | Expression::Update { .. }
            | Expression::LimitRate { .. }
            | Expression::Lookup(..) => certain = false,
            Expression::Mask(mask) => {
                let known = register.iter_mut().flatten();
                known.zip(mask).for_each(|(byte, mask)| *byte &= mask);
            }
            Expression::Compare(op, value) => {
                let equal = register.as_ref().map(|known| known.starts_with(value));
                match equal.map(|equal| equal == (*op == CompareOp::Equal)) {
                    Some(true) => {}
                    Some(false) => return None,
                    None => certain = false,
                }
            }
            Expression::XtMatch(name) | Expression::Other(name) => {
                certain &= always_continues(name);
                register = None;
            }
            Expression::Counter
            | Expression::MetaAt(..)
            | Expression::PayloadAt { .. }
            | Expression::XtTarget(_)
            | Expression::Accept
            | Expression::Drop
            | Expression::Masquerade
            | Expression::MasqueradePorts
            | Expression::DestinationNat
            | Expression::WriteSegmentSize
            | Expression::Jump(_)
            | Expression::Goto(_)
            | Expression::Return
            | Expression::Reject => {}
        }
    }
    // A lookup that no verdict follows reads a verdict map.
    let is_lookup = |e: &Expression| {
        matches!(e, Expression::Lookup(..))
            || matches!(e, Expression::Other(name) if name == "lookup")
    };
    match rule.expressions.iter().any(is_lookup) {
        true => Some((false, Effect::End(ACCEPT))),
        false => Some((certain, Effect::Continue)),
    }
}

fn verdict(expression: &Expression) -> Option<Effect<'_>> {
    match expression {
        Expression::Accept
        | Expression::Masquerade
        | Expression::MasqueradePorts
        | Expression::DestinationNat => Some(Effect::End(ACCEPT)),
        Expression::Drop | Expression::Reject => Some(Effect::End(DROP)),
        Expression::Return => Some(Effect::End(UNDECIDED)),
        Expression::Jump(chain) => Some(Effect::Jump(chain)),
        Expression::Goto(chain) => Some(Effect::Goto(chain)),
        Expression::XtTarget(name) if name == "REJECT" => Some(Effect::End(DROP)),
        Expression::XtTarget(name) | Expression::Other(name) => {
            accepts(name).then_some(Effect::End(ACCEPT))
        }
        Expression::Meta(_)
        | Expression::Conntrack(_)
        | Expression::Payload { .. }
        | Expression::Mask(_)
        | Expression::Compare(..)
        | Expression::Range(..)
        | Expression::Lookup(..)
        | Expression::MetaAt(..)
        | Expression::PayloadAt { .. }
        | Expression::Update { .. }
        | Expression::LimitRate { .. }
        | Expression::Immediate(..)
        | Expression::CountConnections { .. }
        | Expression::HashConnection(_)
        | Expression::HashPort(_)
        | Expression::RouteSegmentSize
        | Expression::HostToNetwork
        | Expression::WriteSegmentSize
        | Expression::Counter
        | Expression::XtMatch(_) => None,
    }
}

/// Returns true for expressions and iptables targets that end the base chain without
/// dropping the packet.
fn accepts(name: &str) -> bool {
    matches!(
        name,
        "flow_offload" | "masq" | "nat" | "queue" | "redir" | "tproxy"
    ) || matches!(
        name,
        "DNAT" | "MASQUERADE" | "NETMAP" | "NFQUEUE" | "REDIRECT" | "SNAT" | "TPROXY"
    )
}

/// Returns true for expressions and iptables matches that are not conditions.
fn always_continues(name: &str) -> bool {
    let loads = [
        "bitwise",
        "byteorder",
        "ct",
        "exthdr",
        "fib",
        "hash",
        "immediate",
        "meta",
        "numgen",
        "payload",
        "rt",
        "socket",
    ];
    let statements = ["comment", "dup", "last", "log", "notrack", "objref"];
    loads.contains(&name) || statements.contains(&name)
}
