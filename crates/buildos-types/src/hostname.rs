//! What a host name is: RFC 952 and RFC 1123 (section 2.1), in the 64 bytes
//! that Linux has for it (`__NEW_UTS_LEN`).

use std::fmt;

use serde::Deserialize;

/// Longest name that Linux takes.
const LINUX_LIMIT: usize = 64;
/// Longest name in the DNS, written with dots (RFC 1035, section 2.3.4).
const DNS_LIMIT: usize = 253;
/// Longest part between dots (RFC 1035, section 2.3.4).
const LABEL_LIMIT: usize = 63;

/// A name that the host may have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Hostname(String);

/// Why a text is no name for a host. Positions count characters from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAHostname {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Longer than can be.
    #[error("{length} characters are more than {limit}")]
    TooLong {
        /// Length of the text.
        length: usize,
        /// What would have been possible.
        limit: usize,
    },
    /// A character that names do not have.
    #[error("{character:?} at position {position} is not a letter, a digit, a hyphen or a dot")]
    Character {
        /// The character.
        character: char,
        /// Where it stands.
        position: usize,
    },
    /// Two dots in a row, or one at the beginning.
    #[error("there is nothing before a dot")]
    EmptyLabel,
    /// A part between dots is too long.
    #[error("{0:?} is longer than {LABEL_LIMIT} characters")]
    LabelTooLong(String),
    /// A part between dots begins or ends with a hyphen.
    #[error("{0:?} begins or ends with a hyphen")]
    Hyphen(String),
    /// Programs would take it for an IPv4 address.
    #[error("it looks like an address, as its last part is a number")]
    Number,
    /// Names that mean "this host" on every host.
    #[error("it means every host itself")]
    Localhost,
}

impl Hostname {
    /// Checks a name. One dot at the end, which the DNS allows, is dropped.
    ///
    /// # Errors
    ///
    /// The first reason why it cannot be a host's name.
    pub fn new(text: &str) -> Result<Self, NotAHostname> {
        let name = checked(text)?;
        match name.len() {
            length if length > LINUX_LIMIT => Err(NotAHostname::TooLong {
                length,
                limit: LINUX_LIMIT,
            }),
            _ => Ok(Self(name.to_owned())),
        }
    }

    /// Like [`Hostname::new`], but of a sound name that Linux has no room for
    /// the first label is taken.
    ///
    /// # Errors
    ///
    /// As [`Hostname::new`].
    pub fn shortened(text: &str) -> Result<Self, NotAHostname> {
        let name = checked(text)?;
        match name.split_once('.') {
            Some((label, _)) if name.len() > LINUX_LIMIT => Self::new(label),
            _ => Self::new(name),
        }
    }

    /// The name of a host that nobody has named: `build-` and the last ten
    /// hexadecimal digits of a MAC address as `aa:bb:cc:dd:ee:ff`. [`None`]
    /// for what is no such address.
    #[must_use]
    pub fn of_mac(mac: &str) -> Option<Self> {
        let octets: Vec<&str> = mac.split(':').collect();
        let is_octet = |s: &&str| s.len() == 2 && s.chars().all(|c| c.is_ascii_hexdigit());
        let valid = octets.len() == 6 && octets.iter().all(is_octet);
        valid.then(|| {
            Self(format!(
                "build-{}",
                octets[1..].concat().to_ascii_lowercase()
            ))
        })
    }

    /// The name.
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

impl TryFrom<String> for Hostname {
    type Error = NotAHostname;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

/// The name without the dot at its end, when it is sound but for Linux's limit.
fn checked(text: &str) -> Result<&str, NotAHostname> {
    if let Some((index, character)) = text.chars().enumerate().find(|(_, c)| !is_allowed(*c)) {
        return Err(NotAHostname::Character {
            character,
            position: index + 1,
        });
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err(NotAHostname::Empty);
    }
    if name.len() > DNS_LIMIT {
        return Err(NotAHostname::TooLong {
            length: name.len(),
            limit: DNS_LIMIT,
        });
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(NotAHostname::EmptyLabel);
        }
        if label.len() > LABEL_LIMIT {
            return Err(NotAHostname::LabelTooLong(label.to_owned()));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(NotAHostname::Hyphen(label.to_owned()));
        }
    }
    if is_number(name.rsplit('.').next().unwrap_or(name)) {
        return Err(NotAHostname::Number);
    }
    if is_localhost(name) {
        return Err(NotAHostname::Localhost);
    }
    Ok(name)
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '.'
}

/// inet_aton(3) takes decimal, octal and hexadecimal numbers for addresses.
fn is_number(label: &str) -> bool {
    let lower = label.to_ascii_lowercase();
    match lower.strip_prefix("0x") {
        Some(digits) => digits.chars().all(|c| c.is_ascii_hexdigit()),
        None => lower.chars().all(|c| c.is_ascii_digit()),
    }
}

/// RFC 6761, section 6.3, and what old distributions put into `/etc/hosts`.
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
    fn names() {
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
    fn what_is_none_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "it is empty"),
            (".", "it is empty"),
            ("a..b", "there is nothing before a dot"),
            (".a", "there is nothing before a dot"),
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
            ("localhost", "it means every host itself"),
            ("LocalHost.localdomain", "it means every host itself"),
            ("b1.localhost", "it means every host itself"),
            (
                "12345",
                "it looks like an address, as its last part is a number",
            ),
            (
                "192.0.2.1",
                "it looks like an address, as its last part is a number",
            ),
            (
                "0x7F000001",
                "it looks like an address, as its last part is a number",
            ),
            (
                "a.0x",
                "it looks like an address, as its last part is a number",
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
            Err(NotAHostname::LabelTooLong(label))
        );
        let long = ["a"; 33].join(".");
        assert_eq!(
            Hostname::new(&long).unwrap_err().to_string(),
            "65 characters are more than 64"
        );
        let longest = ["a"; 128].join(".");
        assert_eq!(
            Hostname::shortened(&longest).unwrap_err().to_string(),
            "255 characters are more than 253"
        );
    }

    #[test]
    fn a_long_name_is_shortened_to_its_first_label() {
        let domain = ["example"; 10].join(".");
        let name = Hostname::shortened(&format!("b1.{domain}.")).unwrap();
        assert_eq!(name.as_str(), "b1");
        assert_eq!(
            Hostname::shortened("b1.example.com").unwrap().as_str(),
            "b1.example.com"
        );
        // Sound as a whole, but the first label alone is none.
        assert_eq!(
            Hostname::shortened(&format!("42.{domain}")),
            Err(NotAHostname::Number)
        );
        // Not sound as a whole.
        assert!(Hostname::shortened(&format!("b1.{domain}.a_b")).is_err());
    }

    #[test]
    fn a_host_without_a_name_is_called_after_its_mac_address() {
        let name = |mac| Hostname::of_mac(mac).map(|name| name.to_string());
        assert_eq!(
            name("de:ad:be:ef:b8:da").as_deref(),
            Some("build-adbeefb8da")
        );
        assert_eq!(
            name("DE:AD:BE:EF:B8:DA").as_deref(),
            Some("build-adbeefb8da")
        );
        for bad in [
            "",
            "de:ad:be:ef:b8",
            "de:ad:be:ef:b8:da:00",
            "de:ad:be:ef:b8:g0",
            "d:ea:db:ee:fb:8d",
        ] {
            assert_eq!(name(bad), None, "{bad}");
        }
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
        fn a_name_that_exists_is_valid(text in "\\PC{0,80}|[a-zA-Z0-9.-]{0,300}") {
            for name in [Hostname::new(&text), Hostname::shortened(&text)].into_iter().flatten() {
                prop_assert!(name.as_str().len() <= LINUX_LIMIT);
                prop_assert!(!name.as_str().ends_with('.'));
                prop_assert!(text.starts_with(name.as_str()));
                prop_assert_eq!(Hostname::new(name.as_str()), Ok(name.clone()));
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
            }
        }

        /// What DHCP brings, as buildos-netd publishes it: any bytes, often close to
        /// a name, escaped. What comes out is fit for everybody.
        #[test]
        fn hostile_bytes_become_a_name_or_nothing(
            seed in proptest::sample::select(SEEDS.to_vec()),
            edits in proptest::collection::vec((0_usize..260, 0_u8..4, any::<u8>()), 0..6),
        ) {
            let mut bytes = seed.to_vec();
            for (at, what, byte) in edits {
                let at = at % (bytes.len() + 1);
                match what {
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
            let text = buildos_service::text::escape_bytes(&bytes);
            for name in [Hostname::new(&text), Hostname::shortened(&text)].into_iter().flatten() {
                let name = name.as_str();
                prop_assert!((1..=LINUX_LIMIT).contains(&name.len()));
                prop_assert!(bytes.starts_with(name.as_bytes()), "nothing is made up");
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
        fn different_cards_have_different_names(a: [u8; 5], b: [u8; 5]) {
            let name = |octets: [u8; 5]| {
                let text: Vec<_> = octets.iter().map(|o| format!("{o:02x}")).collect();
                Hostname::of_mac(&format!("52:{}", text.join(":"))).unwrap()
            };
            prop_assert_eq!(name(a) == name(b), a == b);
            let made = name(a);
            prop_assert_eq!(Hostname::new(made.as_str()), Ok(made.clone()));
        }
    }
}
