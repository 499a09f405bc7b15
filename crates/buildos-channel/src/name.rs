//! Defines names of channels, machines, agents and toolchains, and the identity of a host.

use std::fmt;
use std::str::FromStr;

/// A name that can be a file name: letters, digits, `.`, `_`, `+` and `-`, not first `.`,
/// `+` or `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Identifies a host: its machine id (machine-id(5)), or another text that it keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(String);

/// A text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a name: it has letters, digits, '.', '_', '+' and '-', begins with a letter, a digit or '_', and has at most {} characters",
    Name::LONGEST
)]
pub struct InvalidName;

/// A text is not a [`HostId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the identity of a host: it is empty, or has more than {} bytes",
    HostId::LONGEST
)]
pub struct InvalidHostId;

impl Name {
    /// The longest name in characters. With `.` and a number it is still a file name.
    pub const LONGEST: usize = 100;

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl HostId {
    /// The longest identity in bytes.
    pub const LONGEST: usize = 255;

    /// Returns the identity.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_first = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let is_allowed = |byte: u8| is_first(&byte) || b".+-".contains(&byte);
        let valid = text.len() <= Self::LONGEST
            && text.as_bytes().first().is_some_and(is_first)
            && text.bytes().all(is_allowed);
        match valid {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidName),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for HostId {
    type Err = InvalidHostId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (1..=Self::LONGEST).contains(&text.len()) {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidHostId),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_valid_file_name() {
        for good in [
            "a",
            "x86_64-linux_debian_13-gcc",
            "_1",
            "g++.2",
            &"a".repeat(100),
        ] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "+a",
            "a/b",
            "a b",
            "é",
            "a\n",
            &"a".repeat(101),
        ] {
            assert_eq!(bad.parse::<Name>(), Err(InvalidName), "{bad:?}");
        }
    }

    #[test]
    fn host_id_is_bounded() {
        assert!("4c4c4544".parse::<HostId>().is_ok());
        for bad in [String::new(), "x".repeat(256)] {
            assert_eq!(bad.parse::<HostId>(), Err(InvalidHostId));
        }
    }
}
