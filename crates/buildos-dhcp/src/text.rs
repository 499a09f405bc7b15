//! Text from the network, made harmless.
//!
//! What a server sends ends up in the journal, in STATUS= lines, in resolv.conf
//! and on other people's terminals.

use std::fmt::Write;

use crate::Mac;

/// RFC 1035, section 2.3.4: the longest name, without the root's dot.
const MAXIMUM_DOMAIN: usize = 253;
const MAXIMUM_LABEL: usize = 63;

/// A hardware address as people write it.
pub(crate) fn mac([a, b, c, d, e, f]: &Mac) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Text for people: up to the first NUL, printable ASCII as it is, all else and
/// the backslash as `\xHH`. None when nothing is left.
pub(crate) fn escape(bytes: &[u8]) -> Option<String> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    let mut text = String::with_capacity(end);
    for byte in &bytes[..end] {
        match byte {
            b' '..=b'~' if *byte != b'\\' => text.push(char::from(*byte)),
            _ => {
                // Writing to a String does not fail.
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

/// A domain name for resolv.conf, without the trailing dot and in lower case;
/// None when a resolver could not use it: labels of letters, digits, hyphens and
/// underscores (RFC 1123, RFC 2181), none empty.
pub(crate) fn domain(bytes: &[u8]) -> Option<String> {
    let text = escape(bytes)?;
    let name = text.strip_suffix('.').unwrap_or(&text);
    let valid = |label: &str| {
        (1..=MAXIMUM_LABEL).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (name.len() <= MAXIMUM_DOMAIN && name.split('.').all(valid)).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_a_terminal_or_a_log_would_obey() {
        assert_eq!(escape(b"web-1").as_deref(), Some("web-1"));
        assert_eq!(escape(b"web\0junk").as_deref(), Some("web"));
        assert_eq!(escape(b"a\nREADY=1").as_deref(), Some("a\\x0aREADY=1"));
        assert_eq!(
            escape(b"\x1b[2J\\\xff").as_deref(),
            Some("\\x1b[2J\\x5c\\xff")
        );
        assert_eq!(escape(b"\0abc"), None);
        assert_eq!(escape(b""), None);
    }

    #[test]
    fn takes_only_domains_that_a_resolver_can_use() {
        for (bytes, expected) in [
            (&b"Example.ORG."[..], Some("example.org")),
            (b"lan\0", Some("lan")),
            (b"_tcp.example.org", Some("_tcp.example.org")),
            (b"a..b", None),
            (b".", None),
            (b"", None),
            (b"a b", None),
            (b"a\nnameserver 6.6.6.6", None),
            (b"caf\xc3\xa9.example", None),
            (&[b'a'; 64], None),
        ] {
            assert_eq!(
                domain(bytes).as_deref(),
                expected,
                "{}",
                bytes.escape_ascii()
            );
        }
        let longest = [[b'a'; 63].as_slice(); 4].join(&b'.');
        assert_eq!(domain(&longest), None);
        assert!(domain(&longest[..253]).is_some());
    }
}
