//! Reads tables from nf_tables, and replaces a table as a whole.
//!
//! [`install`] uses one transaction: no packet meets half a table, or none.

use std::io;
use std::ops::Range;

use buildos_netlink::{BatchError, NetfilterMessage, Socket};

use nftnl::Batch;

use super::bytecode::{Count, Element, ElementChange, ForeignTable, KernelTable};
use super::decode::{self, Dump};
use super::encode::{self, Replacement};
use super::error::FirewallError;
use super::model::Family;

/// Limit of attempts to read the ruleset without a commit in between.
const MAX_READS: usize = 8;

/// Elements of a transaction, which has to fit into a socket's send buffer.
const ELEMENTS_PER_TRANSACTION: usize = 1024;

/// Removes a table of family `inet`, if it exists.
///
/// # Errors
///
/// [`FirewallError`]; the ruleset is unchanged then.
pub async fn remove(name: &str) -> Result<(), FirewallError> {
    let (batch, objects) = encode::removal(name);
    commit(batch, &objects).await
}

/// A table to be installed.
#[derive(Debug, Clone, Copy)]
pub struct Install<'a> {
    /// Family of the table.
    pub family: Family,
    /// The desired table.
    pub table: &'a KernelTable,
    /// The installed table. Its learned sets keep their elements, if the desired table
    /// has the same sets.
    pub installed: Option<&'a KernelTable>,
    /// Elements for a table whose sets do not keep theirs.
    pub elements: &'a [ElementChange],
}

/// Reads a table; [`None`] if it does not exist.
///
/// # Errors
///
/// [`FirewallError`]; EPERM without CAP_NET_ADMIN.
pub async fn read(family: Family, name: &str) -> Result<Option<KernelTable>, FirewallError> {
    let tables = read_all(family.number(), |table| table == name).await?;
    Ok(tables.into_iter().map(|found| found.table).next())
}

/// Reads all tables of all families except those of that name in natd's families.
///
/// # Errors
///
/// As [`read`].
pub async fn foreign_tables(name: &str) -> Result<Vec<ForeignTable>, FirewallError> {
    let mut tables = read_all(libc::NFPROTO_UNSPEC, |_| true).await?;
    let families = Family::ALL.map(Family::number);
    tables.retain(|found| !families.contains(&found.family) || found.table.name != name);
    Ok(tables)
}

/// Reads the counters of natd's tables of that name with the comments of their rules.
///
/// # Errors
///
/// As [`read`].
pub async fn counts(name: &str) -> Result<Vec<(String, Count)>, FirewallError> {
    while_unstable(|| counts_once(name)).await
}

async fn counts_once(name: &str) -> Result<Vec<(String, Count)>, FirewallError> {
    let mut counts = Vec::new();
    let mut socket = Socket::open().map_err(FirewallError::Open)?;
    for family in Family::ALL {
        for message in dump(&mut socket, Dump::Rules, family.number()).await? {
            let listed = decode::rule(&message.attributes)?;
            if let Some(count) = listed.count.filter(|_| listed.table == name) {
                counts.push((listed.rule.comment, count));
            }
        }
    }
    Ok(counts)
}

/// Installs tables in one transaction.
///
/// # Errors
///
/// [`FirewallError`]; the ruleset is unchanged then.
pub async fn install(tables: &[Install<'_>]) -> Result<(), FirewallError> {
    let replacements: Vec<_> = tables
        .iter()
        .map(|install| Replacement {
            family: install.family,
            table: install.table,
            keep: install
                .installed
                .filter(|installed| install.table.can_keep_elements_of(installed)),
            elements: install.elements,
        })
        .collect();
    let (batch, objects) = encode::replacements(&replacements);
    commit(batch, &objects).await?;
    for replacement in replacements.iter().filter(|r| r.has_more_elements()) {
        let (family, table) = (replacement.family, &replacement.table.name);
        change_elements(family, table, replacement.elements).await?;
    }
    Ok(())
}

/// Removes elements from learned sets of a table, and adds others.
///
/// # Errors
///
/// As [`install`]. A large change takes several transactions.
pub async fn change_elements(
    family: Family,
    table: &str,
    changes: &[ElementChange],
) -> Result<(), FirewallError> {
    for change in changes {
        let parts = change.removed.len().max(change.added.len());
        for start in (0..parts).step_by(ELEMENTS_PER_TRANSACTION) {
            let part = |elements: &[Element]| {
                let rest = elements.iter().skip(start);
                rest.take(ELEMENTS_PER_TRANSACTION).cloned().collect()
            };
            let part = ElementChange {
                set: change.set.clone(),
                removed: part(&change.removed),
                added: part(&change.added),
            };
            let batch = encode::element_changes(family, table, &[part]);
            commit(batch, &[]).await?;
        }
    }
    Ok(())
}

async fn commit(batch: Batch, objects: &[String]) -> Result<(), FirewallError> {
    let batch = batch.finalize();
    let numbers = batch.sequence_numbers();
    // One datagram, because the kernel commits at the end of each.
    let bytes: Vec<u8> = batch.iter().flatten().copied().collect();
    let mut socket = Socket::open().map_err(FirewallError::Open)?;
    let committed = socket.commit(&bytes, numbers.clone()).await;
    committed.map_err(|error| commit_error(error, numbers, objects))
}

/// Names the object whose message the kernel refused.
fn commit_error(error: BatchError, numbers: Range<u32>, objects: &[String]) -> FirewallError {
    let (sequence, source) = match error {
        BatchError::Refused { sequence, source } => (sequence, source),
        BatchError::Failed(source) => return FirewallError::Commit(source),
    };
    // The numbers can include begin and end of the batch.
    let framed = numbers.len() > objects.len();
    let first = numbers.start + u32::from(framed);
    let index = sequence.checked_sub(first).map(|index| index as usize);
    let object = index.and_then(|index| objects.get(index));
    FirewallError::Refused {
        object: object.map_or("the transaction", String::as_str).to_owned(),
        source,
    }
}

async fn read_all(
    family: i32,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<ForeignTable>, FirewallError> {
    let is_wanted = &is_wanted;
    while_unstable(|| read_once(family, is_wanted)).await
}

/// Reads again while the ruleset changes during the read, at most [`MAX_READS`] times.
async fn while_unstable<T, F: Future<Output = Result<T, FirewallError>>>(
    read: impl Fn() -> F,
) -> Result<T, FirewallError> {
    for _ in 0..MAX_READS {
        match read().await {
            Err(FirewallError::Unstable) => {}
            result => return result,
        }
    }
    Err(FirewallError::Unstable)
}

/// Reads once; [`FirewallError::Unstable`] if the ruleset changed while it was read.
async fn read_once(
    family: i32,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<ForeignTable>, FirewallError> {
    let mut socket = Socket::open().map_err(FirewallError::Open)?;
    let before = generation(&mut socket).await?;
    let mut tables = Vec::new();
    for message in dump(&mut socket, Dump::Tables, family).await? {
        let table = decode::table(&message.attributes)?;
        if is_wanted(&table.name) {
            tables.push(ForeignTable {
                family: message.family.into(),
                table,
            });
        }
    }
    if !tables.is_empty() {
        for message in dump(&mut socket, Dump::Sets, family).await? {
            let (table, mut set) = decode::set(&message.attributes)?;
            if let Some(found) = find(&mut tables, &message, &table) {
                if family != libc::NFPROTO_UNSPEC && set.flags & libc::NFT_SET_EVAL as u32 == 0 {
                    let elements = elements(&mut socket, family, &table, &set.name).await?;
                    set.elements = elements.into_iter().map(|element| element.key).collect();
                    set.elements.sort();
                }
                found.table.sets.push(set);
            }
        }
        for message in dump(&mut socket, Dump::Chains, family).await? {
            let (table, chain) = decode::chain(&message.attributes)?;
            if let Some(found) = find(&mut tables, &message, &table) {
                found.table.chains.push(chain);
            }
        }
        for message in dump(&mut socket, Dump::Rules, family).await? {
            let listed = decode::rule(&message.attributes)?;
            let chain = find(&mut tables, &message, &listed.table).and_then(|found| {
                let mut chains = found.table.chains.iter_mut();
                chains.find(|chain| chain.name == listed.chain)
            });
            if let Some(chain) = chain {
                chain.rules.push(listed.rule);
            }
        }
    }
    match before == generation(&mut socket).await? {
        true => Ok(tables),
        false => Err(FirewallError::Unstable),
    }
}

fn find<'a>(
    tables: &'a mut [ForeignTable],
    message: &NetfilterMessage,
    name: &str,
) -> Option<&'a mut ForeignTable> {
    let family = i32::from(message.family);
    tables
        .iter_mut()
        .find(|found| found.family == family && found.table.name == name)
}

/// Returns the generation of the ruleset, which grows with each commit.
async fn generation(socket: &mut Socket<NetfilterMessage>) -> Result<u32, FirewallError> {
    let answer = socket.get(request(libc::NFT_MSG_GETGEN, libc::NFPROTO_INET));
    let answer = answer.await.map_err(|error| failure("generation", error))?;
    Ok(decode::generation(&answer.attributes)?.id)
}

/// Returns every object of that kind in a family; `NFPROTO_UNSPEC` selects all families.
async fn dump(
    socket: &mut Socket<NetfilterMessage>,
    kind: Dump,
    family: i32,
) -> Result<Vec<NetfilterMessage>, FirewallError> {
    let answer = socket.dump(request(kind.request(), family)).await;
    answer.map_err(|error| failure(kind.name(), error))
}

/// Reads the elements of a learned set.
///
/// # Errors
///
/// As [`read`]; ENOENT if the table or the set does not exist.
pub async fn learned(
    family: Family,
    table: &str,
    set: &str,
) -> Result<Vec<Element>, FirewallError> {
    let mut socket = Socket::open().map_err(FirewallError::Open)?;
    elements(&mut socket, family.number(), table, set).await
}

async fn elements(
    socket: &mut Socket<NetfilterMessage>,
    family: i32,
    table: &str,
    set: &str,
) -> Result<Vec<Element>, FirewallError> {
    let kind = Dump::Elements;
    let request = NetfilterMessage {
        attributes: decode::select_elements(table, set),
        ..request(kind.request(), family)
    };
    let answer = socket.dump(request).await;
    let mut elements = Vec::new();
    for message in answer.map_err(|error| failure(kind.name(), error))? {
        elements.extend(decode::elements(&message.attributes)?);
    }
    Ok(elements)
}

fn request(kind: i32, family: i32) -> NetfilterMessage {
    NetfilterMessage {
        subsystem: libc::NFNL_SUBSYS_NFTABLES as u8,
        kind: kind as u8,
        family: family as u8,
        version: 0,
        attributes: Vec::new(),
    }
}

fn failure(objects: &'static str, source: io::Error) -> FirewallError {
    match source.kind() == io::ErrorKind::Interrupted {
        true => FirewallError::Unstable,
        false => FirewallError::Read { objects, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::ready;

    #[tokio::test(flavor = "current_thread")]
    async fn read_of_changing_ruleset_is_repeated_within_limit() {
        let reads = Cell::new(0);
        let read = |stable_at: usize| {
            reads.set(reads.get() + 1);
            let is_stable = reads.get() >= stable_at;
            ready(
                is_stable
                    .then(|| reads.get())
                    .ok_or(FirewallError::Unstable),
            )
        };
        assert_eq!(while_unstable(|| read(3)).await.unwrap(), 3);
        reads.set(0);
        let result = while_unstable(|| read(usize::MAX)).await;
        assert!(matches!(result, Err(FirewallError::Unstable)));
        assert_eq!(reads.get(), MAX_READS);
    }

    #[test]
    fn refusal_names_object_and_errno() {
        let objects = ["table inet buildos", "chain forward"].map(str::to_owned);
        let refused = |sequence, numbers| {
            let source = io::Error::from_raw_os_error(libc::EPERM);
            let error = BatchError::Refused { sequence, source };
            commit_error(error, numbers, &objects)
        };
        let object = |error: FirewallError| {
            let FirewallError::Refused { object, source } = error else {
                panic!("{error}");
            };
            assert_eq!(source.raw_os_error(), Some(libc::EPERM));
            object
        };
        assert_eq!(object(refused(5, 5..7)), "table inet buildos");
        assert_eq!(object(refused(5, 5..9)), "the transaction");
        assert_eq!(object(refused(7, 5..9)), "chain forward");
        let error = refused(6, 5..7).to_string();
        assert!(error.contains("refused chain forward"), "{error}");
    }
}
