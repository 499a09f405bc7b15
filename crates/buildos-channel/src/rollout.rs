//! Decides whether a host belongs to the percentage of a rollout.
//!
//! Each host has a place from 0 to 9,999 in a rollout: a digest of the channel, of the
//! serial with which the rollout began, and of the host. A rollout of P percent takes the
//! places below 100 × P.
//!
//! - The place is the same on every run, so a host does not alternate.
//! - A host that is taken stays taken while the percentage grows.
//! - Each rollout takes different hosts first.

use crate::digest::{Digest, Hasher};
use crate::model::Channel;
use crate::name::HostId;

/// Number of places.
const PLACES: u64 = 10_000;

/// Returns true if `host` takes this publication. If not, it keeps the previous one.
#[must_use]
pub fn includes(channel: &Channel, host: &HostId) -> bool {
    place(channel, host) < u64::from(channel.rollout.percent) * (PLACES / 100)
}

/// Returns the place of a host in the rollout, from 0 to 9,999.
#[must_use]
pub fn place(channel: &Channel, host: &HostId) -> u64 {
    let mut hasher = Hasher::default();
    let parts = ["rollout", channel.name.as_str(), host.as_str()];
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update(b"\0");
    }
    hasher.update(&channel.rollout.since.to_be_bytes());
    let digest: Digest = hasher.finish();
    digest.number() % PLACES
}
