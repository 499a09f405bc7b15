//! Validates the values of bbot-agent's options.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

/// Builds that an agent accepts: without a login, with one, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interactive {
    /// Only builds without a login.
    False,
    /// Only builds with a login.
    True,
    /// Both.
    Both,
}

impl<'de> Deserialize<'de> for Interactive {
    /// Accepts a boolean, too: on the kernel command line, `true` is one.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Text {
            Boolean(bool),
            Word(String),
        }
        let bad = || de::Error::custom("\"false\", \"true\" or \"both\" is expected");
        match Text::deserialize(deserializer).map_err(|_| bad())? {
            Text::Boolean(false) => Ok(Self::False),
            Text::Boolean(true) => Ok(Self::True),
            Text::Word(word) => match word.as_str() {
                "false" => Ok(Self::False),
                "true" => Ok(Self::True),
                "both" => Ok(Self::Both),
                _ => Err(bad()),
            },
        }
    }
}

impl fmt::Display for Interactive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::False => "false",
            Self::True => "true",
            Self::Both => "both",
        })
    }
}

/// SHA-256 fingerprint of the certificate of a package repository, 32 bytes in
/// hexadecimal, separated by colons.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Fingerprint(String);

/// Absolute path of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Directory(String);

/// One word, such as a version.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Word(String);

/// Scheduling priority, -20 to 19 (nice(1)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i32")]
pub struct Nice(i8);

/// Number of a toolchain, 1 to 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "u32")]
pub struct ToolchainNumber(u8);

/// Reason why a value does not fit an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The text is not a valid [`Fingerprint`].
    #[error("{0:?} is not a fingerprint: 32 pairs of hexadecimal digits, XX:XX:…, are expected")]
    Fingerprint(String),
    /// The text is not a valid [`Directory`].
    #[error("{0:?} is not an absolute path of a directory")]
    Directory(String),
    /// The text is not a valid [`Word`].
    #[error("{0:?} is not one word of printable ASCII characters")]
    Word(String),
    /// The number is not a valid [`Nice`].
    #[error("{0} is not a priority: -20 to 19 is expected")]
    Nice(i32),
    /// The number is not a valid [`ToolchainNumber`].
    #[error("{0} is not a number of a toolchain: 1 to 9 is expected")]
    ToolchainNumber(u32),
}

impl TryFrom<String> for Fingerprint {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
        if text.split(':').count() == 32 && text.split(':').all(pair) {
            Ok(Self(text))
        } else {
            Err(ValueError::Fingerprint(text))
        }
    }
}

impl TryFrom<String> for Directory {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fits = text.strip_prefix('/').is_some_and(|path| {
            !path.chars().any(char::is_control) && path.split('/').all(|name| name != "..")
        });
        if fits {
            Ok(Self(text))
        } else {
            Err(ValueError::Directory(text))
        }
    }
}

impl TryFrom<String> for Word {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text))
        } else {
            Err(ValueError::Word(text))
        }
    }
}

impl TryFrom<i32> for Nice {
    type Error = ValueError;

    fn try_from(level: i32) -> Result<Self, Self::Error> {
        i8::try_from(level)
            .ok()
            .filter(|level| (-20..=19).contains(level))
            .map(Self)
            .ok_or(ValueError::Nice(level))
    }
}

impl TryFrom<u32> for ToolchainNumber {
    type Error = ValueError;

    fn try_from(number: u32) -> Result<Self, Self::Error> {
        u8::try_from(number)
            .ok()
            .filter(|number| (1..=9).contains(number))
            .map(Self)
            .ok_or(ValueError::ToolchainNumber(number))
    }
}

impl ToolchainNumber {
    /// Returns all numbers, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=9).map(Self)
    }
}

macro_rules! display {
    ($($type:ty)*) => {
        $(impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        })*
    };
}

display!(Fingerprint Directory Word Nice ToolchainNumber);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_checked_and_shown_unchanged() {
        let good = ["AB"; 32].join(":");
        let fingerprint = Fingerprint::try_from(good.clone());
        assert_eq!(fingerprint.unwrap().to_string(), good);
        for bad in [
            "",
            "AB:CD",
            &good[1..],
            &good.replace('A', "X"),
            &format!("{good}:AB"),
        ] {
            assert!(Fingerprint::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        for bad in ["", "build", "/build/../etc", "/a\nb"] {
            assert!(Directory::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        for bad in ["", "a b", "ü", "a\n"] {
            assert!(Word::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert!(Nice::try_from(-20).is_ok() && Nice::try_from(19).is_ok());
        assert!(Nice::try_from(-21).is_err() && Nice::try_from(300).is_err());
        assert!(ToolchainNumber::try_from(0).is_err() && ToolchainNumber::try_from(10).is_err());
        assert_eq!(ToolchainNumber::all().count(), 9);
    }
}
