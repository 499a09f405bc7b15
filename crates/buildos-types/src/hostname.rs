//! Defines host names: RFC 952 and RFC 1123 (section 2.1), within the 64 bytes that Linux
//! reserves (`__NEW_UTS_LEN`).

use std::fmt;

use serde::Deserialize;

use crate::MacAddress;

/// Longest name that the kernel accepts, in bytes (`__NEW_UTS_LEN`).
const LINUX_LIMIT: usize = 64;
/// Longest name in the DNS in text form (RFC 1035, section 2.3.4).
const DNS_LIMIT: usize = 253;
/// Longest label (RFC 1035, section 2.3.4).
const LABEL_LIMIT: usize = 63;

/// A valid name for a Linux host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Hostname(String);

/// Reason why a text is not a host name. Positions count characters from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHostname {
    /// The text is empty, or only a dot.
    #[error("it is empty")]
    Empty,
    /// The name exceeds the limit of the DNS or of Linux.
    #[error("{length} characters are more than {limit}")]
    TooLong {
        /// Length of the text in bytes.
        length: usize,
        /// Largest allowed length in bytes.
        limit: usize,
    },
    /// A character is not a letter, digit, hyphen or dot.
    #[error("{character:?} at position {position} is not a letter, a digit, a hyphen or a dot")]
    Character {
        /// The refused character.
        character: char,
        /// Its position, from 1.
        position: usize,
    },
    /// A label is empty: two adjacent dots, or a leading dot.
    #[error("a label before a dot is empty")]
    EmptyLabel,
    /// A label exceeds 63 characters.
    #[error("{0:?} is longer than {LABEL_LIMIT} characters")]
    LabelTooLong(String),
    /// A label begins or ends with a hyphen.
    #[error("{0:?} begins or ends with a hyphen")]
    Hyphen(String),
    /// Programs would parse the name as an IPv4 address (inet_aton(3)).
    #[error("it looks like an address: its last label is a number")]
    Number,
    /// The name means "this host" on every host (RFC 6761, section 6.3).
    #[error("it is a name of the local host")]
    Localhost,
}

impl Hostname {
    /// Validates a name. Drops one trailing dot, which the DNS allows.
    ///
    /// # Errors
    ///
    /// Returns the first rule that the name breaks.
    pub fn new(text: &str) -> Result<Self, InvalidHostname> {
        let name = checked(text)?;
        match name.len() {
            length if length > LINUX_LIMIT => Err(InvalidHostname::TooLong {
                length,
                limit: LINUX_LIMIT,
            }),
            _ => Ok(Self(name.to_owned())),
        }
    }

    /// Validates a name as [`Hostname::new`] does, but reduces a valid name that is too long
    /// for Linux to its first label.
    ///
    /// # Errors
    ///
    /// See [`Hostname::new`].
    pub fn new_shortened(text: &str) -> Result<Self, InvalidHostname> {
        let name = checked(text)?;
        match name.split_once('.') {
            Some((label, _)) if name.len() > LINUX_LIMIT => Self::new(label),
            _ => Self::new(name),
        }
    }

    /// Returns the fallback name of a host: `build-` and the last ten hexadecimal digits
    /// of its MAC address.
    #[must_use]
    pub fn from_mac(mac: MacAddress) -> Self {
        let [_, a, b, c, d, e] = mac.0;
        Self(format!("build-{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}"))
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Hostname {
    type Err = InvalidHostname;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for Hostname {
    type Error = InvalidHostname;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

/// Checks all rules except Linux's length limit. Returns the name without a trailing dot.
fn checked(text: &str) -> Result<&str, InvalidHostname> {
    if let Some((index, character)) = text.chars().enumerate().find(|(_, c)| !is_allowed(*c)) {
        return Err(InvalidHostname::Character {
            character,
            position: index + 1,
        });
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err(InvalidHostname::Empty);
    }
    if name.len() > DNS_LIMIT {
        return Err(InvalidHostname::TooLong {
            length: name.len(),
            limit: DNS_LIMIT,
        });
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(InvalidHostname::EmptyLabel);
        }
        if label.len() > LABEL_LIMIT {
            return Err(InvalidHostname::LabelTooLong(label.to_owned()));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(InvalidHostname::Hyphen(label.to_owned()));
        }
    }
    if is_number(name.rsplit('.').next().unwrap_or(name)) {
        return Err(InvalidHostname::Number);
    }
    if is_localhost(name) {
        return Err(InvalidHostname::Localhost);
    }
    Ok(name)
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '.'
}

/// Returns true for decimal, octal and hexadecimal numbers, which inet_aton(3) accepts.
fn is_number(label: &str) -> bool {
    let lower = label.to_ascii_lowercase();
    match lower.strip_prefix("0x") {
        Some(digits) => digits.chars().all(|c| c.is_ascii_hexdigit()),
        None => lower.chars().all(|c| c.is_ascii_digit()),
    }
}

/// Returns true for the names of RFC 6761, section 6.3, and of `/etc/hosts` in old distributions.
fn is_localhost(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["localhost", "localdomain"].contains(&lower.as_str())
        || lower.ends_with(".localhost")
        || lower.ends_with(".localdomain")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostname_valid_is_kept_without_trailing_dot() {
        for (text, name) in [
            ("b1", "b1"),
            ("3com", "3com"),
            ("Build-7.Example.COM", "Build-7.Example.COM"),
            ("b1.example.com.", "b1.example.com"),
            ("1.2.3.4a", "1.2.3.4a"),
            (&"a".repeat(63), &"a".repeat(63)),
        ] {
            assert_eq!(Hostname::new(text).unwrap().as_str(), name);
        }
    }

    #[test]
    fn hostname_invalid_is_refused_with_reason() {
        for (text, reason) in [
            ("", "it is empty"),
            (".", "it is empty"),
            ("a..b", "a label before a dot is empty"),
            (".a", "a label before a dot is empty"),
            ("-a", "\"-a\" begins or ends with a hyphen"),
            ("a.b-.c", "\"b-\" begins or ends with a hyphen"),
            (
                "(none)",
                "'(' at position 1 is not a letter, a digit, a hyphen or a dot",
            ),
            (
                "a\nb",
                "'\\n' at position 2 is not a letter, a digit, a hyphen or a dot",
            ),
            (
                "$(reboot)",
                "'$' at position 1 is not a letter, a digit, a hyphen or a dot",
            ),
            (
                "b1\0",
                "'\\0' at position 3 is not a letter, a digit, a hyphen or a dot",
            ),
            (
                "bücher",
                "'ü' at position 2 is not a letter, a digit, a hyphen or a dot",
            ),
            ("localhost", "it is a name of the local host"),
            ("LocalHost.localdomain", "it is a name of the local host"),
            ("b1.localhost", "it is a name of the local host"),
            (
                "12345",
                "it looks like an address: its last label is a number",
            ),
            (
                "192.0.2.1",
                "it looks like an address: its last label is a number",
            ),
            (
                "0x7F000001",
                "it looks like an address: its last label is a number",
            ),
            (
                "a.0x",
                "it looks like an address: its last label is a number",
            ),
        ] {
            assert_eq!(
                Hostname::new(text).unwrap_err().to_string(),
                reason,
                "{text:?}"
            );
        }
        let label = "a".repeat(64);
        assert_eq!(
            Hostname::new(&label),
            Err(InvalidHostname::LabelTooLong(label))
        );
        let long = ["a"; 33].join(".");
        assert_eq!(
            Hostname::new(&long).unwrap_err().to_string(),
            "65 characters are more than 64"
        );
        let longest = ["a"; 128].join(".");
        assert_eq!(
            Hostname::new_shortened(&longest).unwrap_err().to_string(),
            "255 characters are more than 253"
        );
    }

    #[test]
    fn hostname_too_long_for_linux_is_shortened_to_first_label() {
        let domain = ["example"; 10].join(".");
        let name = Hostname::new_shortened(&format!("b1.{domain}.")).unwrap();
        assert_eq!(name.as_str(), "b1");
        assert_eq!(
            Hostname::new_shortened("b1.example.com").unwrap().as_str(),
            "b1.example.com"
        );
        // The whole name is valid; its first label alone is not.
        assert_eq!(
            Hostname::new_shortened(&format!("42.{domain}")),
            Err(InvalidHostname::Number)
        );
        // The whole name is invalid.
        assert!(Hostname::new_shortened(&format!("b1.{domain}.a_b")).is_err());
    }

    #[test]
    fn hostname_from_mac_has_last_five_octets() {
        let mac = MacAddress([0xde, 0xad, 0xbe, 0xef, 0xb8, 0xda]);
        assert_eq!(Hostname::from_mac(mac).as_str(), "build-adbeefb8da");
    }

    const SEEDS: [&[u8]; 12] = [
        b"rack7",
        b"rack7.example.com.",
        b"localhost",
        b"localhost.localdomain",
        b"(none)",
        b"12345",
        b"192.0.2.1",
        b"0x7f000001",
        b"-a-.-b-",
        b"rack7\nMAINPID=1",
        b"rack7\0",
        b"a.very.long.name.that.goes.on.and.on.until.linux.has.no.room.for.it.any.more.example",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn hostname_constructed_is_valid(text in "\\PC{0,80}|[a-zA-Z0-9.-]{0,300}") {
            for name in [Hostname::new(&text), Hostname::new_shortened(&text)].into_iter().flatten() {
                prop_assert!(name.as_str().len() <= LINUX_LIMIT);
                prop_assert!(!name.as_str().ends_with('.'));
                prop_assert!(text.starts_with(name.as_str()));
                prop_assert_eq!(Hostname::new(name.as_str()), Ok(name.clone()));
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
            }
        }

        /// Mutates names as a hostile DHCP server might.
        #[test]
        fn hostname_from_hostile_bytes_is_valid_or_refused(
            seed in proptest::sample::select(SEEDS.to_vec()),
            edits in proptest::collection::vec((0_usize..260, 0_u8..4, any::<u8>()), 0..6),
        ) {
            let mut bytes = seed.to_vec();
            for (at, kind, byte) in edits {
                let at = at % (bytes.len() + 1);
                match kind {
                    0 => bytes.insert(at, byte),
                    1 => bytes.truncate(at),
                    2 => bytes.extend_from_slice(&bytes.clone()),
                    _ => {
                        if let Some(old) = bytes.get_mut(at) {
                            *old = byte;
                        }
                    }
                }
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            for name in [Hostname::new(&text), Hostname::new_shortened(&text)].into_iter().flatten() {
                let name = name.as_str();
                prop_assert!((1..=LINUX_LIMIT).contains(&name.len()));
                prop_assert!(bytes.starts_with(name.as_bytes()), "the name is a prefix of the input");
                prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)));
                for label in name.split('.') {
                    prop_assert!((1..=LABEL_LIMIT).contains(&label.len()));
                    prop_assert!(!label.starts_with('-') && !label.ends_with('-'));
                }
                let last = name.rsplit('.').next().unwrap();
                prop_assert!(!last.bytes().all(|b| b.is_ascii_digit()));
                prop_assert!(!name.eq_ignore_ascii_case("localhost"));
            }
        }

        #[test]
        fn hostname_from_different_macs_differs(a: [u8; 5], b: [u8; 5]) {
            let name = |[a, b, c, d, e]: [u8; 5]| {
                Hostname::from_mac(MacAddress([0x52, a, b, c, d, e]))
            };
            prop_assert_eq!(name(a) == name(b), a == b);
            let made = name(a);
            prop_assert_eq!(Hostname::new(made.as_str()), Ok(made.clone()));
        }
    }
}
