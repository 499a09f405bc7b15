//! Defines the index and the name of a network interface.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest interface name in bytes (`IFNAMSIZ` of linux/if.h less the NUL byte).
const NAME_LIMIT: usize = 15;

/// Index of a network interface (`ifi_index` of rtnetlink(7)).
///
/// The index of an interface survives a rename. The kernel never assigns 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkIndex(NonZeroU32);

impl LinkIndex {
    /// Returns [`None`] for 0, which means "no interface" to the kernel.
    #[must_use]
    pub const fn new(index: u32) -> Option<Self> {
        match NonZeroU32::new(index) {
            Some(index) => Some(Self(index)),
            None => None,
        }
    }

    /// Returns the number that netlink messages and sockaddr_ll carry.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for LinkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of a network interface, safe in a path, a configuration file and a firewall rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct InterfaceName(String);

/// The text is not an interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an interface name: 1 to {NAME_LIMIT} letters, digits and -_.@+ are required")]
pub struct InvalidInterfaceName(pub String);

impl InterfaceName {
    /// Validates a name.
    ///
    /// # Errors
    ///
    /// The kernel refuses the name (`dev_valid_name`, net/core/dev.c: empty, 16 bytes or
    /// more, `.`, `..`, a slash, a colon, white space), or it contains anything but ASCII
    /// letters, digits and `-_.@+`.
    pub fn new(name: &str) -> Result<Self, InvalidInterfaceName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@+".contains(c);
        let valid = (1..=NAME_LIMIT).contains(&name.len())
            && name.chars().all(allowed)
            && name != "."
            && name != "..";
        match valid {
            true => Ok(Self(name.to_owned())),
            false => Err(InvalidInterfaceName(name.to_owned())),
        }
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for InterfaceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for InterfaceName {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for InterfaceName {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl FromStr for InterfaceName {
    type Err = InvalidInterfaceName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InvalidInterfaceName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_index_zero_is_refused() {
        assert_eq!(LinkIndex::new(0), None);
        assert_eq!(LinkIndex::new(7).map(LinkIndex::get), Some(7));
    }

    #[test]
    fn interface_name_valid_is_kept() {
        for name in ["br0", "br-lan_1.5", "eth0@if7", "abcdefghijklmno"] {
            assert_eq!(InterfaceName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn interface_name_unsafe_is_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:b",
            "a,b",
            "a#b",
            "eth*",
            "br1\nport=53",
            "abcdefghijklmnop",
            "é",
            "a\"b",
        ] {
            let error = InterfaceName::new(name).unwrap_err();
            assert_eq!(error, InvalidInterfaceName(name.to_owned()));
        }
    }
}
