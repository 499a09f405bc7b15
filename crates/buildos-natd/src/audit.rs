//! Names foreign nftables chains that drop packets of machines.
//!
//! A base chain of another table can drop packets that `inet buildos` accepts. The audit
//! collects the verdicts that such chains can reach for the packets that machines need.
//!
//! | reachable verdicts | finding |
//! |---|---|
//! | drop | [`Finding::certain`] |
//! | drop and accept | possible |
//! | accept | |
//!
//! # Limits
//!
//! The audit knows interfaces and `ct state` of the packets, and UDP for DHCP and DNS. It
//! does not evaluate conditions on anything else (address, port, mark, set, iptables
//! match). Only the probe shows whether packets pass then.

#[cfg(test)]
mod tests;
mod traffic;
mod verdict;

use std::fmt;

use buildos_service::text;

use crate::firewall::bytecode::ForeignTable;
use crate::uplink_network::UplinkNetwork;
use traffic::{HOOKS, Traffic};
use verdict::Verdicts;

/// `NFT_TABLE_F_DORMANT` (linux/netfilter/nf_tables.h).
const DORMANT: u32 = 1;

/// A base chain that drops packets of machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Family and name, as nft(8) prints them: `ip filter`.
    pub table: String,
    /// Name of the base chain.
    pub chain: String,
    /// Hook and policy of the base chain, as nft(8) prints them.
    pub hook: String,
    /// Packets that the chain drops.
    pub traffic: Vec<&'static str>,
    /// True if the chain drops all of them. Otherwise that depends on conditions that the
    /// audit does not evaluate.
    pub certain: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chain, table, hook) = (&self.chain, &self.table, &self.hook);
        let verb = if self.certain { "drops" } else { "can drop" };
        let traffic = self.traffic.join(" and ");
        write!(
            f,
            "chain {chain} in table {table} ({hook}) {verb} {traffic}"
        )
    }
}

/// Finds base chains that drop packets that machines need. Certain findings come first.
#[must_use]
pub fn findings(tables: &[ForeignTable], network: &UplinkNetwork) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for traffic in Traffic::needed(network) {
        for found in tables.iter().flat_map(|table| audit(table, &traffic)) {
            let same = |f: &&mut Finding| {
                (f.certain, &f.table, &f.chain) == (found.certain, &found.table, &found.chain)
            };
            match findings.iter_mut().find(same) {
                Some(known) if known.traffic.contains(&traffic.description) => {}
                Some(known) => known.traffic.push(traffic.description),
                None => findings.push(found),
            }
        }
    }
    findings.sort_by_key(|finding| !finding.certain);
    findings
}

/// Finds base chains of a table that drop the traffic.
fn audit(table: &ForeignTable, traffic: &Traffic) -> Vec<Finding> {
    // Chains of other families do not see routed IPv4 packets.
    let family = match table.family {
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_INET => "inet",
        _ => return Vec::new(),
    };
    if table.table.flags & DORMANT != 0 {
        return Vec::new();
    }
    let chains = table.table.chains.iter();
    let hooked = chains.filter(|chain| chain.hook == Some(traffic.hook as u32));
    let audited = hooked.map(|chain| (chain, Verdicts::of(&table.table, chain, traffic)));
    let dropping = audited.filter(|(_, verdicts)| verdicts.drop);
    let finding = dropping.map(|(chain, verdicts)| Finding {
        table: text::escape(&format!("{family} {}", table.table.name)),
        chain: text::escape(&chain.name),
        hook: format!(
            "hook {}, policy {}",
            HOOKS[traffic.hook],
            if chain.policy_drops() {
                "drop"
            } else {
                "accept"
            }
        ),
        traffic: vec![traffic.description],
        certain: !verdicts.accept,
    });
    finding.collect()
}
