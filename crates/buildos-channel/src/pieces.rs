//! Cuts streams into pieces, and lists the pieces of a stream.
//!
//! A piece is an object of 16 MiB, the last one of a stream is shorter. A host verifies a
//! piece before it uses a byte of it, fetches it again alone if it is damaged, and gives
//! it to other hosts.
//!
//! The list of a stream is an object, too: a digest a line. The channel file has its
//! digest and the size of the stream, so the sizes of all pieces follow.

use std::fmt::Write as _;

use crate::digest::{Digest, InvalidDigest};
use crate::model::Limits;

/// Bytes of a piece, except the last one of a stream.
pub const PIECE: u64 = 16 * 1024 * 1024;

/// Bytes of a line of a list: 64 digits and a line feed.
const LINE: u64 = 65;

/// The pieces of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceList {
    size: u64,
    pieces: Vec<Digest>,
}

/// An object is not the list of pieces of a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ListError {
    #[error("a stream of {size} bytes is too large: at most {}", Limits::SIZE)]
    TooLarge { size: u64 },
    #[error("{found} bytes instead of {expected}, the list of a stream of {size} bytes")]
    Length {
        found: usize,
        expected: u64,
        size: u64,
    },
    #[error("line {line}: {source}")]
    Line {
        line: usize,
        #[source]
        source: InvalidDigest,
    },
}

impl PieceList {
    /// Returns the size of the list object of a stream of `size` bytes.
    #[must_use]
    pub const fn text_size(size: u64) -> u64 {
        size.div_ceil(PIECE) * LINE
    }

    /// Parses the list of a stream of `size` bytes.
    ///
    /// # Errors
    ///
    /// The text does not have one digest a line, or not the number of lines that the size
    /// requires.
    pub fn parse(text: &[u8], size: u64) -> Result<Self, ListError> {
        if size > Limits::SIZE {
            return Err(ListError::TooLarge { size });
        }
        let expected = Self::text_size(size);
        if u64::try_from(text.len()) != Ok(expected) {
            return Err(ListError::Length {
                found: text.len(),
                expected,
                size,
            });
        }
        let lines = text.chunks_exact(LINE as usize).enumerate();
        let pieces = lines.map(|(index, line)| {
            let line_number = index + 1;
            let digest = line.split_last().filter(|(end, _)| **end == b'\n');
            let digest = digest.and_then(|(_, digits)| std::str::from_utf8(digits).ok());
            let digest = digest.ok_or(InvalidDigest).and_then(str::parse);
            digest.map_err(|source| ListError::Line {
                line: line_number,
                source,
            })
        });
        Ok(Self {
            size,
            pieces: pieces.collect::<Result<_, _>>()?,
        })
    }

    /// Returns the text of the list object.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for piece in &self.pieces {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{piece}");
        }
        out
    }

    /// Returns the digest of the list object.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.text().as_bytes())
    }

    /// Returns the bytes of the stream.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns index, digest and size of each piece, in the order of the stream.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Digest, u64)> + '_ {
        let mut rest = self.size;
        self.pieces.iter().enumerate().map(move |(index, digest)| {
            let size = rest.min(PIECE);
            rest -= size;
            (index, *digest, size)
        })
    }
}

/// Cuts a stream into pieces.
///
/// It holds one piece in memory. The caller stores each piece that [`Cutter::push`] and
/// [`Cutter::finish`] pass on.
#[derive(Debug, Default)]
pub struct Cutter {
    piece: Vec<u8>,
    size: u64,
    pieces: Vec<Digest>,
}

impl Cutter {
    /// Adds data, and calls `store` with each piece that is complete.
    ///
    /// # Errors
    ///
    /// The first error of `store`. The stream is then incomplete.
    pub fn push<E>(
        &mut self,
        mut data: &[u8],
        mut store: impl FnMut(Digest, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !data.is_empty() {
            let room = (PIECE as usize).saturating_sub(self.piece.len());
            let (now, later) = data.split_at(room.min(data.len()));
            self.piece.extend_from_slice(now);
            data = later;
            if self.piece.len() as u64 >= PIECE {
                self.cut(&mut store)?;
            }
        }
        Ok(())
    }

    /// Ends the stream: calls `store` with the rest, and returns the list.
    ///
    /// # Errors
    ///
    /// The error of `store`.
    pub fn finish<E>(
        mut self,
        mut store: impl FnMut(Digest, &[u8]) -> Result<(), E>,
    ) -> Result<PieceList, E> {
        if !self.piece.is_empty() {
            self.cut(&mut store)?;
        }
        Ok(PieceList {
            size: self.size,
            pieces: self.pieces,
        })
    }

    fn cut<E>(&mut self, store: &mut impl FnMut(Digest, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let digest = Digest::of(&self.piece);
        store(digest, &self.piece)?;
        self.size = self.size.saturating_add(self.piece.len() as u64);
        self.pieces.push(digest);
        self.piece.clear();
        Ok(())
    }
}
