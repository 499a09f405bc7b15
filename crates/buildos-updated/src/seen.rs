//! Remembers the channel file that the daemon fetched last, for [`look`](crate::look).

use buildos_channel::Digest;
use buildos_service::file::{overwrite, read_bounded};

use crate::paths::Paths;
use crate::programs::curl::Validators;

/// Bytes of the file `seen`.
const MEMORY: usize = 2000;
/// Permissions of the file.
const READABLE: u32 = 0o644;

/// The channel file that the daemon fetched last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// URL of the file.
    pub url: String,
    /// Headers of the answer that a conditional request repeats.
    pub validators: Validators,
    #[allow(missing_docs)]
    pub digest: Digest,
}

impl Seen {
    fn text(&self) -> String {
        let Validators {
            etag,
            last_modified,
        } = &self.validators;
        format!("{}\n{}\n{etag}\n{last_modified}\n", self.url, self.digest)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let seen = Self {
            url: lines.next()?.to_owned(),
            digest: lines.next()?.parse().ok()?,
            validators: Validators {
                etag: lines.next()?.to_owned(),
                last_modified: lines.next()?.to_owned(),
            },
        };
        lines.next().is_none().then_some(seen)
    }
}

/// Notes which file the daemon has fetched. Without the note, the next look leads to a run.
pub fn note(paths: &Paths, seen: &Seen) {
    // The look that follows repeats it.
    let _ = overwrite(&paths.seen(), seen.text().as_bytes(), READABLE);
}

/// Reads the note. A damaged one counts as none.
#[must_use]
pub fn read(paths: &Paths) -> Option<Seen> {
    let content = read_bounded(&paths.seen(), MEMORY).ok()?;
    Seen::parse(std::str::from_utf8(&content).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_is_read_back_and_other_text_is_none() {
        let seen = Seen {
            url: "http://x/channel/stable".to_owned(),
            validators: Validators {
                etag: "\"a\"".to_owned(),
                last_modified: String::new(),
            },
            digest: Digest::of(b"x"),
        };
        assert_eq!(Seen::parse(&seen.text()), Some(seen.clone()));
        for bad in ["", "a", "a\nb\nc\nd\n", &format!("{}x\n", seen.text())] {
            assert_eq!(Seen::parse(bad), None, "{bad:?}");
        }
    }
}
