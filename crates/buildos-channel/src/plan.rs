//! Plans what a host fetches to get a machine.
//!
//! The plan has two steps, as the lists of pieces are objects that have to be fetched:
//!
//! 1. [`streams`] returns the streams that can make the machine on this host, the smallest
//!    first.
//! 2. [`plan`] returns the pieces of a stream that the host does not have.
//!
//! Hosts begin at different pieces of the same stream: eight hosts that start together
//! fetch different pieces from the origin, and the others from each other.

use std::collections::BTreeSet;

use crate::digest::{Digest, Hasher};
use crate::model::{Machine, Stream};
use crate::name::HostId;
use crate::pieces::PieceList;

/// A stream that can make a machine on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Content id of the revision that it needs; [`None`] for the whole machine.
    pub from: Option<Digest>,
    #[allow(missing_docs)]
    pub stream: Stream,
}

/// The pieces that a host fetches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Missing pieces, in the order of this host, each once.
    pub fetch: Vec<Piece>,
    /// Sum of the sizes of `fetch` in bytes.
    pub bytes: u64,
    /// Bytes of the whole stream, which is the room that its pieces take.
    pub total: u64,
}

/// A piece to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its first place in the stream, from 0.
    pub index: usize,
    #[allow(missing_docs)]
    pub sha256: Digest,
    /// In bytes.
    pub size: u64,
}

/// Returns the streams that can make `machine`, the smallest first. `installed` has the
/// content ids of the revisions on the host. Without a stream, the machine is there.
#[must_use]
pub fn streams(machine: &Machine, installed: &BTreeSet<Digest>) -> Vec<Candidate> {
    if installed.contains(&machine.id) {
        return Vec::new();
    }
    let increments = machine.increments.iter();
    let mut found: Vec<Candidate> = increments
        .filter(|increment| installed.contains(&increment.from))
        .map(|increment| Candidate {
            from: Some(increment.from),
            stream: increment.stream,
        })
        .collect();
    found.push(Candidate {
        from: None,
        stream: machine.whole,
    });
    found.sort_by_key(|candidate| candidate.stream.size);
    found
}

/// Returns the pieces of `list` that `has` does not know, in the order of `host`.
#[must_use]
pub fn plan(list: &PieceList, host: &HostId, mut has: impl FnMut(&Digest) -> bool) -> Plan {
    let mut pieces: Vec<Piece> = list
        .iter()
        .map(|(index, sha256, size)| Piece {
            index,
            sha256,
            size,
        })
        .collect();
    let mut known = BTreeSet::new();
    pieces.retain(|piece| known.insert(piece.sha256));
    let first = first(list, host, pieces.len());
    pieces.rotate_left(first);
    pieces.retain(|piece| !has(&piece.sha256));
    Plan {
        bytes: pieces.iter().map(|piece| piece.size).sum(),
        fetch: pieces,
        total: list.size(),
    }
}

/// Returns at which of `count` pieces the host begins.
fn first(list: &PieceList, host: &HostId, count: usize) -> usize {
    let mut hasher = Hasher::default();
    hasher.update(b"pieces\0");
    hasher.update(host.as_str().as_bytes());
    hasher.update(&list.digest().0);
    let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
    // The remainder is below `count`.
    usize::try_from(hasher.finish().number() % count).unwrap_or(0)
}
