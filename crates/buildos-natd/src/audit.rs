//! Rules of others that drop what machines send or are sent.
//!
//! Every base chain of every table has its say: what ours accepts, another
//! one may still drop. So the traffic that a machine needs is walked through
//! the chains of the others, as far as it can be known: a [`flow::Flow`] says of
//! some bits of a packet what they are, and leaves the others open. A rule
//! that is certain to match and to drop is found for certain. One that hangs
//! on something not known here (a set, a match of iptables) is a suspect,
//! which is of interest only when machines are cut off.

mod bits;
mod flow;
mod rule;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;

use flow::flows;
use walk::walk;

use crate::firewall::bytecode::ForeignTable;
use crate::uplink_network::UplinkNetwork;

/// A place that drops traffic of machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The table, as `nft` names it: `ip filter`.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule, or the chain's policy.
    pub what: Dropper,
    /// What is dropped, in words.
    pub traffic: Vec<&'static str>,
    /// Whether it is certain that it is dropped.
    pub certain: bool,
}

/// What drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dropper {
    /// What no rule has decided.
    Policy,
    /// A rule.
    Rule {
        /// Its place in the chain, from 1.
        number: usize,
        /// What it says, as far as we can tell.
        text: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            Dropper::Policy => write!(f, "the policy")?,
            Dropper::Rule { number, text } => write!(f, "rule {number} ({text})")?,
        }
        let (chain, table) = (&self.chain, &self.table);
        let verb = if self.certain { "drops" } else { "may drop" };
        write!(f, " of chain {chain} in table {table} {verb} ")?;
        f.write_str(&self.traffic.join(" and "))
    }
}

impl Finding {
    fn is_same(&self, other: &Self) -> bool {
        let place = |f: &Self| (f.certain, f.table.clone(), f.chain.clone(), f.what.clone());
        place(self) == place(other)
    }
}

/// What the tables of others drop of what machines need, certain findings
/// first.
#[must_use]
pub fn findings(tables: &[ForeignTable], network: &UplinkNetwork) -> Vec<Finding> {
    let mut all: Vec<Finding> = Vec::new();
    for flow in flows(network) {
        for found in tables.iter().flat_map(|table| walk(table, &flow)) {
            match all.iter_mut().find(|known| known.is_same(&found)) {
                Some(known) => {
                    if !known.traffic.contains(&flow.traffic) {
                        known.traffic.push(flow.traffic);
                    }
                }
                None => all.push(found),
            }
        }
    }
    all.sort_by_key(|finding| !finding.certain);
    all
}
