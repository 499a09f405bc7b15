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

/// Returns a number of bytes in its largest binary unit with three digits: `1.50 GiB`,
/// `812 MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    match value {
        _ if unit == "B" => format!("{bytes} B"),
        0.0..10.0 => format!("{value:.2} {unit}"),
        10.0..100.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
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
    fn size_has_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1 << 20, "1.00 MiB"),
            (812 << 20, "812 MiB"),
            (3 << 29, "1.50 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn truncation_ends_at_character_boundary() {
        assert_eq!(truncate("añb", 2), "a");
        assert_eq!(truncate("añb", 3), "añ");
    }
}
