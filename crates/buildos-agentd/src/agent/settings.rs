//! What the two kinds of agent differ in: defaults, as data.

use std::fmt;
use std::str::FromStr;

use buildos_dbus_api::agent1::Kind;
use serde::Deserialize;

use crate::agent::drain::{Signal, Way};
use crate::unit::command::Program;

/// The bridge whose machines reach the world through NAT.
const PRIVATE_BRIDGE: &str = "br1";

/// What an instance of a kind has unless its configuration says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Where packages install the program.
    pub program: Program,
    /// Where its machines are connected.
    pub bridge: Bridge,
    /// Whether it can do without virtualization.
    pub kvm: Kvm,
    /// How it is drained.
    pub drain: Way,
}

/// The defaults of a kind.
#[must_use]
pub fn defaults(kind: Kind) -> Defaults {
    match kind {
        // One-shot virtual machines that need nothing from outside but through NAT.
        Kind::Bbot => Defaults {
            program: Program::known("/usr/bin/bbot-agent"),
            bridge: Bridge(PRIVATE_BRIDGE.to_owned()),
            kvm: Kvm::Required,
            drain: Way::Idle,
        },
        // Containers that are reached from outside.
        Kind::Bslave => Defaults {
            program: Program::known("/usr/bin/bslave"),
            bridge: Bridge("br0".to_owned()),
            kvm: Kvm::Waived,
            // Its containers run as long as it does: it is never without processes.
            drain: Way::Signal(Signal::TERM),
        },
    }
}

/// Whether an agent starts without `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kvm {
    /// It waits for `/dev/kvm`.
    Required,
    /// It starts without.
    Waived,
}

/// Name of the bridge that an agent's machines are connected to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Bridge(String);

/// A text cannot name a network interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a bridge: 1 to 15 characters without '/', ':' and white space can")]
pub struct BridgeError(String);

impl Bridge {
    /// Whether machines on it need NAT, DHCP and DNS from this host.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.0 == PRIVATE_BRIDGE
    }
}

impl FromStr for Bridge {
    type Err = BridgeError;

    /// The kernel's own rule (`dev_valid_name` in net/core/dev.c).
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
    fn the_defaults_are_valid() {
        for kind in Kind::ALL {
            let defaults = defaults(*kind);
            assert_eq!(defaults.program.as_str().parse(), Ok(defaults.program));
            assert_eq!(defaults.bridge.0.parse(), Ok(defaults.bridge));
        }
    }

    #[test]
    fn bridges() {
        assert!("br1".parse::<Bridge>().unwrap().is_private());
        assert!(!"br0".parse::<Bridge>().unwrap().is_private());
        for bad in ["", "a/b", "a b", "0123456789abcdef", "..", "a\n"] {
            assert!(bad.parse::<Bridge>().is_err(), "{bad}");
        }
    }
}
