//! Text that came from elsewhere, made fit to be shown.
//!
//! A DHCP server chooses the bytes of a host name. Put into `STATUS=` as it
//! came, a line feed in it would start a new field (`MAINPID=…`,
//! sd_notify(3)); on a terminal, an escape sequence would take effect.

use std::fmt::Write as _;

/// The text on one line: control characters, line and paragraph separators
/// and bidirectional overrides become `\u{…}` escapes; a backslash is doubled
/// so that the result is unambiguous.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            c if is_unfit(c) => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Like [`escape`] for bytes that need not be UTF-8; other bytes become `\xNN`.
#[must_use]
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(&escape(chunk.valid()));
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// An error and its sources on one line, `outer: middle: inner`.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some libraries repeat the source in their own text.
        if !out.ends_with(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        source = cause.source();
    }
    out
}

/// At most `limit` bytes of the text, cut at a character boundary.
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

fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_feed_cannot_start_a_field() {
        assert_eq!(escape("host\nMAINPID=1"), "host\\u{a}MAINPID=1");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_shown_as_bytes() {
        assert_eq!(escape_bytes(b"a\xffb\x1b[0m"), "a\\xffb\\u{1b}[0m");
    }

    #[test]
    fn the_chain_is_printed_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the lease")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "cannot read the lease: disk on fire");
    }

    #[test]
    fn truncation_respects_characters() {
        assert_eq!(truncate("añb", 2), "a");
        assert_eq!(truncate("añb", 3), "añ");
    }

    proptest! {
        #[test]
        fn nothing_unfit_is_left(bytes: Vec<u8>) {
            prop_assert!(!escape_bytes(&bytes).chars().any(is_unfit));
        }
    }
}
