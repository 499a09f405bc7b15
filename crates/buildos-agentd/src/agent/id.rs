//! Names an agent.
//!
//! | where | example |
//! |---|---|
//! | messages, D-Bus methods | `bbot@default` |
//! | systemd | `buildos-bbot@default.service` |
//! | D-Bus object | `…/instance/buildos_2dbbot_40default` |

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use buildos_dbus_api::agent1::{self, Kind};

/// Longest name of an instance. systemd accepts unit names of up to 255 bytes, which
/// are hard to read.
const NAME_LIMIT: usize = 64;

/// Name of an instance of a kind, for example `default`.
///
/// Letters, digits, `-` and `_` need no quotes in TOML, on the kernel command line, in
/// unit names and in shells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Error: the text is not a valid [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a valid agent name: up to {NAME_LIMIT} letters, digits, '-' and '_' are expected, the first a letter or digit"
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
    /// Program: build bot or build slave.
    pub kind: Kind,
    /// Name, unique within the kind.
    pub name: Name,
}

/// Error: the text is not a valid [`Id`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an agent: KIND@NAME is expected, for example bbot@default")]
pub struct IdError(String);

impl Id {
    /// Returns the name of the unit.
    #[must_use]
    pub fn unit(&self) -> String {
        format!("buildos-{self}.service")
    }

    /// Parses the name of a unit; [`None`] for the unit of another program.
    #[must_use]
    pub fn from_unit(unit: &str) -> Option<Self> {
        unit.strip_prefix("buildos-")?
            .strip_suffix(".service")?
            .parse()
            .ok()
    }

    /// Returns the path of the D-Bus object.
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
    fn id_has_unit_and_object_path() {
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
    fn invalid_name_is_refused() {
        let long = "x".repeat(NAME_LIMIT + 1);
        for bad in ["", "-a", "_a", "a b", "a.b", "a@b", "ä", "a/../b", &long] {
            assert_eq!(bad.parse::<Name>(), Err(NameError(bad.to_owned())), "{bad}");
        }
        assert!("x".repeat(NAME_LIMIT).parse::<Name>().is_ok());
    }

    #[test]
    fn invalid_id_is_refused() {
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
