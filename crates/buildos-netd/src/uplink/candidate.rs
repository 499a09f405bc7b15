//! Which links may become the uplink.
//!
//! A physical Ethernet NIC: `ARPHRD_ETHER`, no link kind, a device behind it in
//! sysfs, no radio, and in nobody else's bridge. The configuration can make
//! other links count (`include`, for virtual NICs in tests) and take links out
//! (`exclude`).

use std::collections::BTreeSet;
use std::fmt;

use crate::config::Settings;
use crate::observed::Link;
use crate::pattern::Pattern;
use crate::plan::{Observed, PUBLIC_BRIDGE};
use crate::uplink::election::Candidate;

/// Why a link takes no part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exclusion {
    /// Not Ethernet, or without an Ethernet address.
    NotEthernet,
    /// A virtual link of this kind.
    Virtual(String),
    /// No device stands behind it.
    NoDevice,
    /// A radio.
    Wireless,
    /// Taken out by this pattern of the configuration.
    Configured(String),
    /// Port of a bridge or bond (its index) that is not ours.
    Foreign(u32),
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEthernet => f.write_str("not an Ethernet link"),
            Self::Virtual(kind) => write!(f, "virtual link of kind {kind}"),
            Self::NoDevice => f.write_str("no device behind it"),
            Self::Wireless => f.write_str("wireless"),
            Self::Configured(pattern) => write!(f, "excluded by {pattern:?} in the configuration"),
            Self::Foreign(controller) => {
                write!(
                    f,
                    "port of link {controller}, which is not ours; left alone"
                )
            }
        }
    }
}

/// Whether a link is a NIC, that may have been the uplink before the configuration
/// took it out.
#[must_use]
pub fn is_nic(link: &Link, include: &[Pattern]) -> bool {
    check(link, link.controller, include, &[]).is_ok()
}

/// The candidates, as the kernel shows them.
#[must_use]
pub fn list(observed: &Observed, settings: &Settings) -> Vec<Candidate> {
    let public = observed.bridge(PUBLIC_BRIDGE).map(|bridge| bridge.index);
    let links = observed.links.values();
    links
        .filter(|link| check(link, public, &settings.include, &settings.exclude).is_ok())
        .filter_map(|link| {
            Some(Candidate {
                index: link.index,
                name: link.name.clone(),
                mac: link.mac?,
                carrier: link.up && link.carrier,
            })
        })
        .collect()
}

/// The indices of all NICs, candidates or not.
#[must_use]
pub fn nics(observed: &Observed, include: &[Pattern]) -> BTreeSet<u32> {
    let links = observed.links.values();
    links
        .filter(|link| is_nic(link, include))
        .map(|link| link.index)
        .collect()
}

/// Decides about one link.
///
/// # Errors
///
/// The link takes no part, for the reason given.
pub fn check(
    link: &Link,
    public_bridge: Option<u32>,
    include: &[Pattern],
    exclude: &[Pattern],
) -> Result<(), Exclusion> {
    if !link.ethernet || link.mac.is_none() || link.bridge.is_some() {
        return Err(Exclusion::NotEthernet);
    }
    if let Some(pattern) = exclude.iter().find(|pattern| pattern.matches(&link.name)) {
        return Err(Exclusion::Configured(pattern.0.clone()));
    }
    match link.controller {
        Some(controller) if Some(controller) != public_bridge => {
            return Err(Exclusion::Foreign(controller));
        }
        _ => {}
    }
    if include.iter().any(|pattern| pattern.matches(&link.name)) {
        return Ok(());
    }
    match &link.kind {
        Some(kind) => Err(Exclusion::Virtual(kind.clone())),
        None if link.wireless => Err(Exclusion::Wireless),
        None if !link.device => Err(Exclusion::NoDevice),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake;
    use crate::mac::MacAddress;

    fn nic() -> Link {
        Link {
            mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
            ..fake::nic(2, "enp1s0")
        }
    }

    fn checked(link: &Link) -> Result<(), Exclusion> {
        check(
            link,
            Some(7),
            &[Pattern("lane*".into())],
            &[Pattern("enp9*".into())],
        )
    }

    #[test]
    fn hardware_counts_whether_free_or_in_our_bridge() {
        assert_eq!(checked(&nic()), Ok(()));
        assert_eq!(
            checked(&Link {
                controller: Some(7),
                ..nic()
            }),
            Ok(())
        );
    }

    #[test]
    fn everything_else_is_left_out_with_its_reason() {
        let virtual_link = Link {
            kind: Some("veth".into()),
            device: false,
            ..nic()
        };
        for (link, expected) in [
            (
                Link {
                    ethernet: false,
                    ..nic()
                },
                Exclusion::NotEthernet,
            ),
            (Link { mac: None, ..nic() }, Exclusion::NotEthernet),
            (virtual_link.clone(), Exclusion::Virtual("veth".into())),
            (
                Link {
                    device: false,
                    ..nic()
                },
                Exclusion::NoDevice,
            ),
            (
                Link {
                    wireless: true,
                    ..nic()
                },
                Exclusion::Wireless,
            ),
            (
                Link {
                    name: "enp9s0".into(),
                    ..nic()
                },
                Exclusion::Configured("enp9*".into()),
            ),
            (
                Link {
                    controller: Some(8),
                    ..nic()
                },
                Exclusion::Foreign(8),
            ),
        ] {
            assert_eq!(checked(&link), Err(expected), "{link:?}");
        }
        // Unless the configuration says so.
        assert_eq!(
            checked(&Link {
                name: "lane0".into(),
                ..virtual_link
            }),
            Ok(())
        );
    }
}
