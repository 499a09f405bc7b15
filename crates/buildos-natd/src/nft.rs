//! The kernel's nf_tables: what of our table stands there, and putting it
//! there.
//!
//! [`Image`] is a table as the kernel keeps it. [`read`] makes one of what the
//! kernel says, [`Image::of`] makes one of a [`crate::table::Table`], and when
//! the two are equal nothing has to be done. [`install`] replaces the table as
//! a whole in one transaction: there is no moment with half of it, and none
//! without it. No other table is ever touched.

mod changes;
mod decode;
mod encode;
mod image;
mod netlink;

pub use changes::{Change, Changes};
pub use image::{Expression, Image, ImageChain, ImageRule};

use std::io;

use nftnl::Batch;

use decode::{Dump, chain, rule, table_flags};
use netlink::Netlink;

/// The kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No socket: out of file descriptors, or the sandbox forbids AF_NETLINK.
    #[error("cannot open an nfnetlink socket")]
    Socket(#[source] io::Error),
    /// The socket failed in the middle.
    #[error("lost the conversation with nf_tables")]
    Conversation(#[source] io::Error),
    /// The kernel refused one object, and with it the whole transaction.
    #[error("nf_tables refused {object}; is the kernel's module for it there?")]
    Refused {
        /// The object, as `nft` writes it.
        object: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer in time.
    #[error("nf_tables did not answer within {} s", netlink::TIMEOUT.as_secs())]
    Timeout,
    /// What the kernel said makes no sense to us.
    #[error("cannot understand what nf_tables says")]
    Malformed(#[source] netlink_packet_core::DecodeError),
    /// What was installed is not what stands.
    #[error("table inet {table} does not read back as it was installed: {difference}")]
    Different {
        /// Name of the table.
        table: String,
        /// The first difference.
        difference: String,
    },
    /// The ruleset changed each time while it was being read.
    #[error("the ruleset changes faster than it can be read")]
    Restless,
}

/// How often a reading that a change has spoilt is begun again.
const READINGS: usize = 8;

/// The table of that name as it stands; [`None`] when there is none.
///
/// # Errors
///
/// [`NftError`]; EPERM without CAP_NET_ADMIN.
pub async fn read(name: &str) -> Result<Option<Image>, NftError> {
    for _ in 0..READINGS {
        if let Some(image) = read_once(name).await? {
            return Ok(image);
        }
    }
    Err(NftError::Restless)
}

/// [`None`] when the ruleset changed meanwhile.
async fn read_once(name: &str) -> Result<Option<Option<Image>>, NftError> {
    let mut netlink = Netlink::open()?;
    let before = netlink.generation().await?;
    let mut image = None;
    for payload in netlink.dump(Dump::Tables).await? {
        image = image.or(table_flags(&payload, name)?.map(|flags| Image {
            name: name.to_owned(),
            flags,
            chains: Vec::new(),
        }));
    }
    if let Some(image) = &mut image {
        for payload in netlink.dump(Dump::Chains).await? {
            image.chains.extend(chain(&payload, name)?);
        }
        for payload in netlink.dump(Dump::Rules).await? {
            let Some((of, rule)) = rule(&payload, name)? else {
                continue;
            };
            if let Some(chain) = image.chains.iter_mut().find(|chain| chain.name == of) {
                chain.rules.push(rule);
            }
        }
    }
    let after = netlink.generation().await?;
    Ok((before == after).then_some(image))
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
