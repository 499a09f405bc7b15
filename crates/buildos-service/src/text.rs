//! Prepares text for display: escapes, chains of errors, truncation.

pub use buildos_types::Escaped;

/// Escapes original text, as [`Escaped::new`].
#[must_use]
pub fn escape(text: &str) -> String {
    Escaped::new(text).into()
}

/// Escapes original bytes, as [`Escaped::from_bytes`].
#[must_use]
pub fn escape_bytes(bytes: &[u8]) -> String {
    Escaped::from_bytes(bytes).into()
}

/// Returns an error and its sources on one line, `outer: middle: inner`.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some libraries repeat the source in their text.
        if !out.ends_with(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        source = cause.source();
    }
    out
}

/// Returns at most `limit` bytes of the text, cut at a character boundary.
pub(crate) fn truncate(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_omits_source_that_the_error_repeats() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the lease")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "cannot read the lease: disk on fire");
    }

    #[test]
    fn truncation_ends_at_character_boundary() {
        assert_eq!(truncate("añb", 2), "a");
        assert_eq!(truncate("añb", 3), "añ");
    }
}
