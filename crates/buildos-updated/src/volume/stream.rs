//! Reads the stream of a machine from the spool.
//!
//! The spool belongs to buildos-updated. The helper runs as root and verifies the list of pieces,
//! and each piece before a byte of it is used. A damaged object is removed, so that the daemon
//! fetches it again.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use buildos_channel::Digest;
use buildos_channel::model;
use buildos_channel::pieces::PieceList;
use buildos_service::file::read_bounded;
use buildos_service::text::chain;

use crate::programs::btrfs;
use crate::spool::Spool;

/// A stream whose list of pieces is in the spool.
#[derive(Debug)]
pub struct Stream<'a> {
    spool: &'a Spool,
    list: PieceList,
}

impl<'a> Stream<'a> {
    /// Reads and verifies the list of pieces; [`None`] if the spool does not have it.
    ///
    /// # Errors
    ///
    /// The list cannot be read, has a different digest, or is not a list.
    pub fn new(spool: &'a Spool, stream: model::Stream) -> Result<Option<Self>, String> {
        let size = PieceList::text_size(stream.size);
        if !spool.has(&stream.pieces, size) {
            return Ok(None);
        }
        let path = spool.object(&stream.pieces);
        let limit = usize::try_from(size).unwrap_or(usize::MAX);
        let text = read_bounded(&path, limit)
            .map_err(|error| format!("cannot read the list of pieces: {error}"))?;
        if Digest::of(&text) != stream.pieces {
            remove(&path);
            return Err("the list of pieces in the spool has a different digest".to_owned());
        }
        let list = PieceList::parse(&text, stream.size)
            .map_err(|error| format!("the list of pieces is refused: {}", chain(&error)))?;
        Ok(Some(Self { spool, list }))
    }

    /// Returns the number of the first piece that the spool does not have in its size, from 1.
    #[must_use]
    pub fn missing(&self) -> Option<usize> {
        let mut pieces = self.list.iter();
        let missing = pieces.find(|(_, sha256, size)| !self.spool.has(sha256, *size));
        missing.map(|(index, _, _)| index + 1)
    }

    /// Writes the pieces to `out`, each after its digest was verified.
    ///
    /// # Errors
    ///
    /// A piece is damaged or cannot be read, or `out` has ended: what was written is the
    /// beginning of the stream then.
    pub fn feed(&self, out: &mut dyn Write) -> Result<(), String> {
        for (index, sha256, size) in self.list.iter() {
            let number = index + 1;
            let path = self.spool.object(&sha256);
            let limit = usize::try_from(size).unwrap_or(usize::MAX);
            let piece = read_bounded(&path, limit)
                .map_err(|error| format!("cannot read piece {number}: {error}"))?;
            if Digest::of(&piece) != sha256 {
                remove(&path);
                return Err(format!(
                    "piece {number} in the spool has a different digest"
                ));
            }
            out.write_all(&piece).map_err(|error| {
                if error.kind() == io::ErrorKind::BrokenPipe {
                    btrfs::BROKEN_PIPE.to_owned()
                } else {
                    format!("cannot write to zstd: {error}")
                }
            })?;
        }
        Ok(())
    }
}

/// Removes a damaged object.
fn remove(path: &Path) {
    // If it stays, the next attempt reports the same reason.
    let _ = fs::remove_file(path);
}
