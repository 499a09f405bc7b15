//! Defines text from outside the program that is safe to show.
//!
//! A DHCP server chooses the bytes of a host name. A line feed in it would start a new
//! field of `STATUS=` (`MAINPID=…`, sd_notify(3)); an escape sequence would take effect
//! on a terminal.

use std::fmt::{self, Write as _};
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// Text on one line. `\u{…}` escapes replace control characters, line and paragraph
/// separators, and bidirectional overrides.
///
/// [`Escaped::new`] and [`Escaped::from_bytes`] also double backslashes, so that the
/// original can be recovered. Call them only once, where text enters the program;
/// [`Escaped::received`] keeps existing escapes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Escaped(String);

impl Escaped {
    /// Escapes original text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut escaped = String::with_capacity(text.len());
        push(&mut escaped, text, "\\\\");
        Self(escaped)
    }

    /// Escapes original bytes. Bytes that are not UTF-8 become `\xNN`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut escaped = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            push(&mut escaped, chunk.valid(), "\\\\");
            for byte in chunk.invalid() {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "\\x{byte:02x}");
            }
        }
        Self(escaped)
    }

    /// Accepts text with parts that are already escaped, such as a property of another
    /// daemon. Keeps backslashes, and escapes the unsafe characters that remain.
    #[must_use]
    pub fn received(text: &str) -> Self {
        let mut escaped = String::with_capacity(text.len());
        push(&mut escaped, text, "\\");
        Self(escaped)
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Appends text with escapes for unsafe characters.
fn push(escaped: &mut String, text: &str, backslash: &str) {
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str(backslash),
            c if is_unsafe(c) => {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "\\u{{{:x}}}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl Deref for Escaped {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Escaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<String> for Escaped {
    fn from(text: String) -> Self {
        Self::received(&text)
    }
}

impl From<Escaped> for String {
    fn from(text: Escaped) -> Self {
        text.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn line_feed_is_escaped() {
        assert_eq!(
            Escaped::new("host\nMAINPID=1").as_str(),
            "host\\u{a}MAINPID=1"
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_hexadecimal() {
        assert_eq!(
            Escaped::from_bytes(b"a\xffb\x1b[0m").as_str(),
            "a\\xffb\\u{1b}[0m"
        );
    }

    #[test]
    fn backslash_is_doubled_once() {
        let escaped = Escaped::new("a\\b");
        assert_eq!(escaped.as_str(), "a\\\\b");
        assert_eq!(Escaped::received(&escaped), escaped);
    }

    proptest! {
        #[test]
        fn escaped_bytes_are_safe_and_survive_receipt(bytes: Vec<u8>) {
            let escaped = Escaped::from_bytes(&bytes);
            prop_assert!(!escaped.chars().any(is_unsafe));
            prop_assert_eq!(Escaped::received(&escaped), escaped);
        }

        #[test]
        fn received_text_is_safe(text: String) {
            prop_assert!(!Escaped::received(&text).chars().any(is_unsafe));
        }
    }
}
