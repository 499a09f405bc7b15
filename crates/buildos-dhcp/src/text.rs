//! Escapes text from the network.
//!
//! A server's text reaches the journal, `STATUS=`, resolv.conf and terminals.

use std::fmt::Write;

use buildos_types::{DomainName, Escaped};

/// Returns the text before the first NUL, or `None` if it is empty.
///
/// DHCP text is NVT ASCII (RFC 2132, section 2). Printable ASCII stays as it is; the
/// backslash and all other bytes become `\xHH`.
pub(crate) fn escape(bytes: &[u8]) -> Option<Escaped> {
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
    (!text.is_empty()).then(|| Escaped::received(&text))
}

/// Returns a domain name for resolv.conf, in lower case and without the trailing dot.
///
/// A resolver cannot use a name that is not a [`DomainName`]: the result is `None`.
pub(crate) fn domain(bytes: &[u8]) -> Option<String> {
    let name = DomainName::try_from(escape(bytes)?.to_ascii_lowercase()).ok()?;
    let mut name = String::from(name);
    if name.ends_with('.') {
        name.pop();
    }
    Some(name)
}

/// Returns the domain names of a list separated by spaces. Empty if one of them is unusable.
pub(crate) fn domains(bytes: &[u8]) -> Vec<String> {
    let names = bytes.split(|byte| *byte == b' ');
    let names = names.filter(|name| !name.is_empty() && *name != b"\0");
    names.map(domain).collect::<Option<_>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_replaces_control_characters_and_stops_at_nul() {
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
    fn domains_are_separated_by_spaces_and_all_usable() {
        for (bytes, expected) in [
            (&b"Example.org"[..], &["example.org"][..]),
            (b"a.example  b.example\0", &["a.example", "b.example"]),
            (b"a.example \0", &["a.example"]),
            (b"a.example b..example", &[]),
            (b"a.example\nnameserver 6.6.6.6", &[]),
            (b" ", &[]),
            (b"", &[]),
        ] {
            assert_eq!(domains(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn domain_accepts_only_names_usable_by_a_resolver() {
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
