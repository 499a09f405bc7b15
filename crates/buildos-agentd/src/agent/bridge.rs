//! Names the bridge of an agent's machines.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Bridge whose machines reach other networks through NAT.
const PRIVATE: &str = "br1";

/// Name of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Bridge(String);

/// Error: the text is not a valid interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a valid bridge name: 1 to 15 characters except '/', ':' and white space are expected"
)]
pub struct BridgeError(String);

impl Bridge {
    /// Returns `br1`, the bridge behind NAT.
    #[must_use]
    pub fn private() -> Self {
        Self(PRIVATE.to_owned())
    }

    /// Returns `br0`, the bridge of the uplink.
    #[must_use]
    pub fn uplink() -> Self {
        Self("br0".to_owned())
    }

    /// Returns true if its machines need NAT, DHCP and DNS from this host.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.0 == PRIVATE
    }
}

impl FromStr for Bridge {
    type Err = BridgeError;

    /// Applies the rule of the kernel (`dev_valid_name` in net/core/dev.c).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=15).contains(&text.len())
            && text != "."
            && text != ".."
            && !text
                .contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(BridgeError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Bridge {
    type Error = BridgeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_name_is_checked_as_by_kernel() {
        assert!("br1".parse::<Bridge>().unwrap().is_private());
        assert!(!"br0".parse::<Bridge>().unwrap().is_private());
        for bad in ["", "a/b", "a b", "0123456789abcdef", "..", "a\n"] {
            assert!(bad.parse::<Bridge>().is_err(), "{bad}");
        }
    }

    #[test]
    fn default_bridges_are_valid() {
        for bridge in [Bridge::private(), Bridge::uplink()] {
            assert_eq!(bridge.0.parse(), Ok(bridge));
        }
    }
}
