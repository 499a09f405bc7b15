//! The kernel's nf_tables: what of our table stands there, and putting it
//! there.
//!
//! [`Image`] is a table as the kernel keeps it. [`read`] makes one of what the
//! kernel says, [`Image::of`] makes one of a [`super::model::Table`], and when
//! the two are equal nothing has to be done. [`install`] replaces the table as
//! a whole in one transaction: there is no moment with half of it, and none
//! without it. No other table is ever touched.

use std::collections::HashMap;

use nftnl::Batch;

use super::bytecode::{AnyTable, Count, Image};
use super::decode::{Dump, ask_for_elements, chain, elements, plain_set, rule, table};
use super::encode;
use super::error::NftError;
use super::nfnetlink::{Message, Netlink};

/// Sets that are read at most: each costs a question.
const SETS: usize = 256;

/// How often a reading that a change has spoilt is begun again.
const READINGS: usize = 8;

/// The table `inet NAME` as it stands; [`None`] when there is none.
///
/// # Errors
///
/// [`NftError`]; EPERM without CAP_NET_ADMIN.
pub async fn read(name: &str) -> Result<Option<Image>, NftError> {
    let tables = read_all(libc::NFPROTO_INET, |table| table == name).await?;
    Ok(tables.into_iter().map(|found| found.table).next())
}

/// All tables of all families, but for the table `inet NAME`.
///
/// # Errors
///
/// As [`read`].
pub async fn others(name: &str) -> Result<Vec<AnyTable>, NftError> {
    let mut tables = read_all(libc::NFPROTO_UNSPEC, |_| true).await?;
    tables.retain(|found| found.family != libc::NFPROTO_INET || found.table.name != name);
    Ok(tables)
}

/// What the counting rules of the table `inet NAME` have counted since it was
/// installed, by their comments.
///
/// # Errors
///
/// As [`read`].
pub async fn counts(name: &str) -> Result<Vec<(String, Count)>, NftError> {
    let mut counts = Vec::new();
    for message in Netlink::open()?
        .dump(Dump::Rules, libc::NFPROTO_INET)
        .await?
    {
        let listed = rule(&message.attributes)?;
        if let Some(count) = listed.count.filter(|_| listed.table == name) {
            counts.push((listed.rule.comment, count));
        }
    }
    Ok(counts)
}

async fn read_all(family: i32, wanted: impl Fn(&str) -> bool) -> Result<Vec<AnyTable>, NftError> {
    for _ in 0..READINGS {
        if let Some(tables) = read_once(family, &wanted).await? {
            return Ok(tables);
        }
    }
    Err(NftError::Restless)
}

/// [`None`] when the ruleset changed meanwhile.
async fn read_once(
    family: i32,
    wanted: impl Fn(&str) -> bool,
) -> Result<Option<Vec<AnyTable>>, NftError> {
    let mut netlink = Netlink::open()?;
    let before = netlink.generation().await?;
    let mut tables = Vec::new();
    for message in netlink.dump(Dump::Tables, family).await? {
        let table = table(&message.attributes)?;
        if wanted(&table.name) {
            tables.push(AnyTable {
                family: message.family.into(),
                table,
                sets: HashMap::new(),
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
    if family == libc::NFPROTO_UNSPEC {
        read_sets(&mut netlink, &mut tables).await?;
    }
    let after = netlink.generation().await?;
    Ok((before == after).then_some(tables))
}

async fn read_sets(netlink: &mut Netlink, tables: &mut [AnyTable]) -> Result<(), NftError> {
    let sets = netlink.dump(Dump::Sets, libc::NFPROTO_UNSPEC).await?;
    for message in sets.iter().take(SETS) {
        let Some((table, set)) = plain_set(&message.attributes)? else {
            continue;
        };
        let Some(found) = find(tables, message, &table) else {
            continue;
        };
        let ask = ask_for_elements(&table, &set);
        let family = message.family.into();
        let mut all = Vec::new();
        for message in netlink.dump_of(Dump::Elements, family, &ask).await? {
            all.extend(elements(&message.attributes)?);
        }
        found.sets.insert(set, all);
    }
    Ok(())
}

fn find<'a>(tables: &'a mut [AnyTable], message: &Message, name: &str) -> Option<&'a mut AnyTable> {
    let family = i32::from(message.family);
    tables
        .iter_mut()
        .find(|found| found.family == family && found.table.name == name)
}

/// Puts the table in the place of whatever stands under its name.
///
/// # Errors
///
/// [`NftError`]; what stood before still stands.
pub async fn install(image: &Image) -> Result<(), NftError> {
    let (batch, objects) = encode::replacement(image);
    transaction(batch, &objects).await
}

async fn transaction(batch: Batch, objects: &[String]) -> Result<(), NftError> {
    let batch = batch.finalize();
    // One datagram: the kernel commits at the end of each.
    let bytes: Vec<u8> = batch.iter().flatten().copied().collect();
    let numbers = batch.sequence_numbers();
    Netlink::open()?.transact(&bytes, numbers, objects).await
}
