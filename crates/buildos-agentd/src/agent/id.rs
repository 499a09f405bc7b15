//! What an agent is called: `bbot@default` in the configuration and on the
//! bus, `buildos-bbot@default.service` for systemd.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use buildos_dbus_api::agent1::{self, Kind};

/// Longest name of an instance. systemd takes unit names of up to 255 bytes;
/// nobody wants to read them.
const NAME_LIMIT: usize = 64;

/// Name of an instance of a kind, for example `default`.
///
/// Letters, digits, `-` and `_` need no quoting in TOML, on the kernel command
/// line, in a unit name or in a shell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// A text is no [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name an agent: up to {NAME_LIMIT} letters, digits, '-' and '_' can, beginning with a letter or digit"
)]
pub struct NameError(String);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = text.len() <= NAME_LIMIT
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An agent of this host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Id {
    /// What program it is.
    pub kind: Kind,
    /// Which one of that kind.
    pub name: Name,
}

/// A text is no [`Id`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no agent: KIND@NAME is expected, for example bbot@default")]
pub struct IdError(String);

impl Id {
    /// Name of the unit that runs it.
    #[must_use]
    pub fn unit(&self) -> String {
        format!("buildos-{self}.service")
    }

    /// The agent that a unit runs, if the unit is one of ours.
    #[must_use]
    pub fn from_unit(unit: &str) -> Option<Self> {
        unit.strip_prefix("buildos-")?
            .strip_suffix(".service")?
            .parse()
            .ok()
    }

    /// Path of its object on the bus.
    #[must_use]
    pub fn object_path(&self) -> String {
        agent1::instance_path(&format!("buildos-{self}"))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.kind, self.name)
    }
}

impl FromStr for Id {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('@')
            .and_then(|(kind, name)| {
                Some(Self {
                    kind: kind.parse().ok()?,
                    name: name.parse().ok()?,
                })
            })
            .ok_or_else(|| IdError(text.to_owned()))
    }
}

impl Ord for Id {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.kind.as_str(), &self.name).cmp(&(other.kind.as_str(), &other.name))
    }
}

impl PartialOrd for Id {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_agent() {
        let id: Id = "bbot@gcc-14".parse().unwrap();
        assert_eq!(id.to_string(), "bbot@gcc-14");
        assert_eq!(id.unit(), "buildos-bbot@gcc-14.service");
        assert_eq!(Id::from_unit(&id.unit()), Some(id.clone()));
        assert_eq!(
            id.object_path(),
            "/org/build2/buildos/agent1/instance/buildos_2dbbot_40gcc_2d14"
        );
    }

    #[test]
    fn what_is_no_name() {
        let long = "x".repeat(NAME_LIMIT + 1);
        for bad in ["", "-a", "_a", "a b", "a.b", "a@b", "ä", "a/../b", &long] {
            assert_eq!(bad.parse::<Name>(), Err(NameError(bad.to_owned())), "{bad}");
        }
        assert!("x".repeat(NAME_LIMIT).parse::<Name>().is_ok());
    }

    #[test]
    fn what_is_no_agent() {
        for bad in ["", "bbot", "bbot@", "dbot@default", "@default"] {
            assert!(bad.parse::<Id>().is_err(), "{bad}");
        }
        for unit in [
            "bbot@default.service",
            "buildos-bbot@default",
            "buildos-natd.service",
        ] {
            assert_eq!(Id::from_unit(unit), None);
        }
    }
}
