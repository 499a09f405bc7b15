//! Names the bridge of an agent's machines.

use std::fmt;
use std::str::FromStr;

use buildos_types::{InterfaceName, InvalidInterfaceName};
use serde::Deserialize;

/// Bridge of an agent's machines.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Bridge {
    /// `br0`, the bridge of the uplink.
    Uplink,
    /// `br1`, whose machines need NAT, DHCP and DNS from this host.
    Private,
    /// A bridge that an operator created.
    Other(InterfaceName),
}

impl Bridge {
    fn as_str(&self) -> &str {
        match self {
            Self::Uplink => "br0",
            Self::Private => "br1",
            Self::Other(name) => name.as_str(),
        }
    }
}

impl FromStr for Bridge {
    type Err = InvalidInterfaceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "br0" => Ok(Self::Uplink),
            "br1" => Ok(Self::Private),
            other => other.parse().map(Self::Other),
        }
    }
}

impl TryFrom<String> for Bridge {
    type Error = InvalidInterfaceName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_name_is_parsed_and_shown() {
        for (text, bridge) in [("br0", Bridge::Uplink), ("br1", Bridge::Private)] {
            assert_eq!(text.parse(), Ok(bridge.clone()));
            assert_eq!(bridge.to_string(), text);
        }
        let other: Bridge = "br-lan".parse().unwrap();
        assert_eq!(other.to_string(), "br-lan");
    }

    #[test]
    fn invalid_bridge_name_is_refused() {
        for bad in ["", "a/b", "a b", "0123456789abcdef", "..", "a\n"] {
            assert!(bad.parse::<Bridge>().is_err(), "{bad}");
        }
    }
}
