//! Computes the content id of a machine, and the changes between two revisions.
//!
//! The id is the SHA-256 digest of a text with a line for each file, sorted by path:
//!
//! ```text
//! MODE SIZE SHA256 PATH
//! 100644 1234 e3b0c4… manifest
//! ```
//!
//! `MODE` is `st_mode` in octal (inode(7)), with the type of the file. `SHA256` is the digest of the
//! data of a file, and of the target of a symbolic link. Directories, devices, sockets and
//! FIFOs have size 0 and the digest of nothing, devices that of `MAJOR:MINOR`. The path is
//! relative to the machine, with `\n` and `\\` for a line feed and a backslash.
//!
//! # Limits
//!
//! Owners, times, extended attributes and hard links do not count.

use std::collections::BTreeMap;
use std::fmt;

use crate::digest::{Digest, Hasher};

/// A file of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Bytes of data.
    pub size: u64,
    #[allow(missing_docs)]
    pub sha256: Digest,
}

/// The files of a machine by path, which is relative and not empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents(pub BTreeMap<Vec<u8>, Entry>);

/// A text is not a list of contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: not MODE SIZE SHA256 PATH")]
pub struct InvalidContents {
    /// From 1.
    pub line: usize,
}

/// A difference between two revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Change {
    Added(Entry),
    Removed(Entry),
    Changed(Entry, Entry),
}

/// Type and permission bits of `st_mode`.
const MODE_BITS: u32 = 0o177_777;

impl Contents {
    /// Returns the content id.
    #[must_use]
    pub fn id(&self) -> Digest {
        let mut hasher = Hasher::default();
        for (path, entry) in &self.0 {
            hasher.update(&line(path, entry));
        }
        hasher.finish()
    }

    /// Returns the text of which the id is the digest.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let lines = self.0.iter().map(|(path, entry)| line(path, entry));
        lines.collect::<Vec<_>>().concat()
    }

    /// Parses the text of [`Contents::text`].
    ///
    /// # Errors
    ///
    /// A line is not of that form, or the lines are not sorted.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidContents> {
        let mut contents = BTreeMap::new();
        let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
        // The last line ends with a line feed.
        if lines.pop().is_some_and(|rest| !rest.is_empty()) {
            let line = lines.len() + 1;
            return Err(InvalidContents { line });
        }
        for (index, line) in lines.into_iter().enumerate() {
            let invalid = InvalidContents { line: index + 1 };
            let (path, entry) = parse_line(line).ok_or(invalid.clone())?;
            if contents
                .last_key_value()
                .is_some_and(|(last, _)| *last >= path)
            {
                return Err(invalid);
            }
            contents.insert(path, entry);
        }
        Ok(Self(contents))
    }

    /// Returns the sum of the sizes in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let sizes = self.0.values().map(|entry| entry.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Returns the changes from `self` to `next`, by path.
    #[must_use]
    pub fn changes(&self, next: &Self) -> BTreeMap<Vec<u8>, Change> {
        let removed = self
            .0
            .iter()
            .filter(|(path, _)| !next.0.contains_key(*path));
        let removed = removed.map(|(path, entry)| (path.clone(), Change::Removed(*entry)));
        let others = next.0.iter().filter_map(|(path, entry)| {
            let change = match self.0.get(path) {
                None => Change::Added(*entry),
                Some(before) if before != entry => Change::Changed(*before, *entry),
                Some(_) => return None,
            };
            Some((path.clone(), change))
        });
        removed.chain(others).collect()
    }
}

impl Change {
    /// Returns the sign for lists: `+`, `-` or `~`.
    #[must_use]
    pub const fn sign(&self) -> char {
        match self {
            Self::Added(_) => '+',
            Self::Removed(_) => '-',
            Self::Changed(..) => '~',
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:o} {} {}",
            self.mode & MODE_BITS,
            self.size,
            self.sha256
        )
    }
}

fn line(path: &[u8], entry: &Entry) -> Vec<u8> {
    let mut out = format!("{entry} ").into_bytes();
    for byte in path {
        match byte {
            b'\n' => out.extend(b"\\n"),
            b'\\' => out.extend(b"\\\\"),
            byte => out.push(*byte),
        }
    }
    out.push(b'\n');
    out
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, Entry)> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let entry = Entry {
        mode: u32::from_str_radix(text()?, 8).ok()?,
        size: text()?.parse().ok()?,
        sha256: text()?.parse().ok()?,
    };
    let mut path = Vec::new();
    let mut bytes = fields.next()?.iter();
    while let Some(byte) = bytes.next() {
        path.push(match byte {
            b'\\' => match bytes.next()? {
                b'n' => b'\n',
                b'\\' => b'\\',
                _ => return None,
            },
            byte => *byte,
        });
    }
    // The same entry always has the same text: `+5` and `05` are no sizes.
    let canonical = !path.is_empty() && self::line(&path, &entry).strip_suffix(b"\n") == Some(line);
    canonical.then_some((path, entry))
}
