//! Reads tables from nf_tables, and replaces table `inet NAME` as a whole.
//!
//! [`install`] uses one transaction: no packet meets half a table, or none.

use super::bytecode::{Count, ForeignTable, KernelTable};
use super::decode::{Dump, chain, rule, table};
use super::encode;
use super::error::FirewallError;
use super::nfnetlink::{Message, Netlink};

/// Attempts to read the ruleset without a commit in between.
const MAX_READS: usize = 8;

/// Reads the table `inet NAME`; [`None`] if it does not exist.
///
/// # Errors
///
/// [`FirewallError`]; EPERM without CAP_NET_ADMIN.
pub async fn read(name: &str) -> Result<Option<KernelTable>, FirewallError> {
    let tables = read_all(libc::NFPROTO_INET, |table| table == name).await?;
    Ok(tables.into_iter().map(|found| found.table).next())
}

/// Reads all tables of all families except `inet NAME`.
///
/// # Errors
///
/// As [`read`].
pub async fn foreign_tables(name: &str) -> Result<Vec<ForeignTable>, FirewallError> {
    let mut tables = read_all(libc::NFPROTO_UNSPEC, |_| true).await?;
    tables.retain(|found| found.family != libc::NFPROTO_INET || found.table.name != name);
    Ok(tables)
}

/// Reads the counters of table `inet NAME` with the comments of their rules.
///
/// # Errors
///
/// As [`read`].
pub async fn counts(name: &str) -> Result<Vec<(String, Count)>, FirewallError> {
    let mut counts = Vec::new();
    let mut netlink = Netlink::open()?;
    for message in netlink.dump(Dump::Rules, libc::NFPROTO_INET).await? {
        let listed = rule(&message.attributes)?;
        if let Some(count) = listed.count.filter(|_| listed.table == name) {
            counts.push((listed.rule.comment, count));
        }
    }
    Ok(counts)
}

async fn read_all(
    family: i32,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<ForeignTable>, FirewallError> {
    for _ in 0..MAX_READS {
        if let Some(tables) = read_once(family, &is_wanted).await? {
            return Ok(tables);
        }
    }
    Err(FirewallError::Unstable)
}

/// Reads once; [`None`] if the ruleset changed while it was read.
async fn read_once(
    family: i32,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Option<Vec<ForeignTable>>, FirewallError> {
    let mut netlink = Netlink::open()?;
    let before = netlink.generation().await?;
    let mut tables = Vec::new();
    for message in netlink.dump(Dump::Tables, family).await? {
        let table = table(&message.attributes)?;
        if is_wanted(&table.name) {
            tables.push(ForeignTable {
                family: message.family.into(),
                table,
            });
        }
    }
    if !tables.is_empty() {
        for message in netlink.dump(Dump::Chains, family).await? {
            let (of, chain) = chain(&message.attributes)?;
            if let Some(found) = find(&mut tables, &message, &of) {
                found.table.chains.push(chain);
            }
        }
        for message in netlink.dump(Dump::Rules, family).await? {
            let listed = rule(&message.attributes)?;
            let chain = find(&mut tables, &message, &listed.table).and_then(|found| {
                let mut chains = found.table.chains.iter_mut();
                chains.find(|chain| chain.name == listed.chain)
            });
            if let Some(chain) = chain {
                chain.rules.push(listed.rule);
            }
        }
    }
    let after = netlink.generation().await?;
    Ok((before == after).then_some(tables))
}

fn find<'a>(
    tables: &'a mut [ForeignTable],
    message: &Message,
    name: &str,
) -> Option<&'a mut ForeignTable> {
    let family = i32::from(message.family);
    tables
        .iter_mut()
        .find(|found| found.family == family && found.table.name == name)
}

/// Replaces the table of that name, or adds it.
///
/// # Errors
///
/// [`FirewallError`]; the ruleset is unchanged then.
pub async fn install(table: &KernelTable) -> Result<(), FirewallError> {
    let (batch, objects) = encode::replacement(table);
    let batch = batch.finalize();
    // One datagram, because the kernel commits at the end of each.
    let bytes: Vec<u8> = batch.iter().flatten().copied().collect();
    let numbers = batch.sequence_numbers();
    Netlink::open()?.transact(&bytes, numbers, &objects).await
}
