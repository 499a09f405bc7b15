//! Defines domain names that a resolver can use.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name, without the root's dot (RFC 1035, section 2.3.4).
const MAXIMUM_NAME: usize = 253;
/// Longest label (RFC 1035, section 2.3.4).
const MAXIMUM_LABEL: usize = 63;

/// A domain name of letters, digits, hyphens and underscores (RFC 1123, section 2.1;
/// RFC 2181, section 11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

/// The text is not a domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a domain name: labels of 1 to 63 letters, digits, hyphens or underscores, \
     separated by dots, at most 253 characters"
)]
pub struct InvalidDomainName(String);

impl DomainName {
    /// Returns the labels, without the root.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.0.trim_end_matches('.').split('.')
    }
}

impl TryFrom<String> for DomainName {
    type Error = InvalidDomainName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_label = |label: &str| {
            (1..=MAXIMUM_LABEL).contains(&label.len()) && label.chars().all(is_allowed)
        };
        let name = text.strip_suffix('.').unwrap_or(&text);
        match name.len() <= MAXIMUM_NAME && name.split('.').all(is_label) {
            true => Ok(Self(text)),
            false => Err(InvalidDomainName(text)),
        }
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_name_of_valid_labels_is_accepted() {
        let long = ["a"; 127].join(".");
        for good in ["a", "gateway.lan.example", "a.b.", "_x.y-1", &long] {
            assert!(DomainName::try_from(good.to_owned()).is_ok(), "{good}");
        }
        let label = "a".repeat(64);
        let longer = format!("{long}.a");
        for bad in [
            "", ".", "a..b", ".a", "a b", "ä", "a,b", "a\n", &label, &longer,
        ] {
            assert!(DomainName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
