//! The way of a packet through the chains of a table.

use super::bits::Truth;
use super::flow::Flow;
use super::rule::{Effect, Sets, judge, text};
use super::{Dropper, Finding};
use crate::firewall::bytecode::{ForeignTable, KernelChain, KernelTable};

/// `NFT_TABLE_F_DORMANT`: none of the table's chains is in the packets' way
/// (linux/netfilter/nf_tables.h).
pub(super) const DORMANT: u32 = 1;
/// Chains are called this deep at most (`NFT_JUMP_STACK_SIZE`,
/// net/netfilter/nf_tables.h).
const DEEPEST: usize = 16;
/// Chains that call each other may be walked through in more ways than there is
/// time for; what comes after so many rules is not known.
const LONGEST: u32 = 10_000;

/// What the base chains of a table at the hook of `flow` drop of it.
pub(super) fn walk(table: &ForeignTable, flow: &Flow) -> Vec<Finding> {
    // The other families see no IPv4 packets that are routed, or not as such.
    let family = match table.family {
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_INET => "inet",
        _ => return Vec::new(),
    };
    if table.table.flags & DORMANT != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    for base in &table.table.chains {
        if base.hook != Some(flow.hook as u32) {
            continue;
        }
        let mut walk = Walk {
            table: &table.table,
            sets: &table.sets,
            name: format!("{family} {}", table.table.name),
            flow,
            left: LONGEST,
            found: Vec::new(),
        };
        let through = walk.chain(base, true, 0);
        let drops = base.policy == Some(libc::NF_DROP as u32);
        if drops && through != Through::Never {
            walk.find(base, Dropper::Policy, through == Through::Always);
        }
        found.append(&mut walk.found);
    }
    found
}

/// Whether the packet comes out of a chain undecided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    Always,
    Sometimes,
    Never,
}

struct Walk<'a> {
    table: &'a KernelTable,
    sets: &'a Sets,
    name: String,
    flow: &'a Flow,
    /// Rules that are still looked at.
    left: u32,
    found: Vec<Finding>,
}

impl<'a> Walk<'a> {
    /// `sure`: the packet is certain to come to this chain.
    fn chain(&mut self, chain: &'a KernelChain, mut sure: bool, depth: usize) -> Through {
        // Nothing before can have decided, and nothing can have left the chain.
        let (mut undecided, mut stayed) = (true, true);
        for (i, rule) in chain.rules.iter().enumerate() {
            let Some(left) = self.left.checked_sub(1) else {
                return Through::Sometimes;
            };
            self.left = left;
            let (truth, effect) = judge(rule, self.sets, self.flow);
            if truth == Truth::No {
                continue;
            }
            let certain = truth == Truth::Yes;
            let (through, leaves) = match effect {
                Effect::Nothing => continue,
                Effect::Pass => (Through::Never, true),
                Effect::Drop => {
                    let (number, text) = (i + 1, text(rule));
                    self.find(chain, Dropper::Rule { number, text }, sure && certain);
                    (Through::Never, true)
                }
                Effect::Jump(to) => (self.call(to, sure && certain, depth), false),
                Effect::Goto(to) => (self.call(to, sure && certain, depth), true),
                Effect::Return => (Through::Always, true),
                Effect::Unknown => (Through::Sometimes, false),
            };
            let ends = leaves || through == Through::Never;
            if certain && ends {
                return match through {
                    Through::Always if undecided => Through::Always,
                    Through::Never if stayed => Through::Never,
                    Through::Always | Through::Sometimes | Through::Never => Through::Sometimes,
                };
            }
            undecided &= through == Through::Always;
            stayed &= !(leaves && through != Through::Never) && effect != Effect::Unknown;
            sure &= !ends && through == Through::Always;
        }
        match undecided {
            true => Through::Always,
            false => Through::Sometimes,
        }
    }

    fn call(&mut self, name: &str, sure: bool, depth: usize) -> Through {
        match self.table.chains.iter().find(|chain| chain.name == name) {
            Some(chain) if depth < DEEPEST => self.chain(chain, sure, depth + 1),
            Some(_) | None => Through::Always,
        }
    }

    fn find(&mut self, chain: &KernelChain, what: Dropper, certain: bool) {
        self.found.push(Finding {
            table: self.name.clone(),
            chain: chain.name.clone(),
            what,
            traffic: vec![self.flow.traffic],
            certain,
        });
    }
}
