//! Decides which links may become the uplink.
//!
//! A candidate is a physical, wired Ethernet NIC: `ARPHRD_ETHER`, without a link kind,
//! backed by a device in sysfs, not a virtual function of another NIC (SR-IOV), and not a port
//! of a bridge other than br0. The
//! configuration adds links (`include`, for virtual NICs) and removes links (`exclude`).
//!
//! Where a section of the configuration gives a NIC a VLAN, the link of the VLAN is the candidate
//! in place of the NIC ([`super::path`]).

use std::collections::BTreeSet;
use std::fmt;

use buildos_types::{InterfaceName, LinkIndex, MacAddress};
use ipnet::Ipv4Net;

use crate::observed::{Link, Observed, PUBLIC_BRIDGE};
use crate::pattern::Pattern;
use crate::settings::Settings;
use crate::uplink::path::{self, NicVlan, VlanId};

/// A link that may become the uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Candidate {
    pub index: LinkIndex,
    pub name: InterfaceName,
    pub mac: MacAddress,
    pub carrier: bool,
    /// Number of losses of carrier so far.
    pub carrier_losses: u32,
    /// The NIC: that of a VLAN, or the link itself.
    pub nic: LinkIndex,
}

/// Reason why a link is not a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exclusion {
    /// Not Ethernet, or without an Ethernet address.
    NotEthernet,
    /// A virtual link of this kind.
    Virtual(String),
    /// Not backed by a device.
    NoDevice,
    /// A virtual function of another NIC (SR-IOV), for virtual machines.
    VirtualFunction,
    /// A wireless interface.
    Wireless,
    /// Excluded by this pattern of the configuration.
    Configured(String),
    /// Another program gave it this IPv4 address, such as an initramfs (`ip=`).
    OtherAddress(Ipv4Net),
    /// Not the NIC that the machine booted from, and `bootif` is `only`.
    NotBootedFrom,
    /// Port of a bridge or bond (its index) other than br0.
    OtherController(LinkIndex),
    /// The NIC of this VLAN, which is the candidate, by the section of this name.
    NicOfVlan(VlanId, String),
    /// Another program made the VLAN, as the link of this name.
    OtherVlan(VlanId, InterfaceName),
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEthernet => f.write_str("not an Ethernet link"),
            Self::Virtual(kind) => write!(f, "virtual link of kind {kind}"),
            Self::NoDevice => f.write_str("not backed by a device"),
            Self::VirtualFunction => f.write_str("virtual function of another NIC (SR-IOV)"),
            Self::Wireless => f.write_str("wireless"),
            Self::Configured(pattern) => write!(f, "excluded by {pattern:?} in the configuration"),
            Self::OtherAddress(net) => {
                write!(f, "has {net} by another program; left alone")
            }
            Self::NotBootedFrom => f.write_str("not the NIC booted from, and bootif is \"only\""),
            Self::OtherController(controller) => {
                write!(
                    f,
                    "port of link {controller}, which buildos does not manage; left alone"
                )
            }
            Self::NicOfVlan(id, section) => write!(f, "carries VLAN {id} by {section}"),
            Self::OtherVlan(id, name) => write!(
                f,
                "its VLAN {id} is {name}, which another program made; remove {name}, or the key \
                 vlan"
            ),
        }
    }
}

/// Returns the candidates in the order of their indices.
#[must_use]
pub fn list(observed: &Observed, settings: &Settings) -> Vec<Candidate> {
    let links = observed.links.values();
    links
        .filter(|link| check_with_settings(link, observed, settings).is_ok())
        .filter_map(|link| {
            Some(Candidate {
                index: link.index,
                name: link.name.clone(),
                mac: link.mac?,
                carrier: link.up && link.carrier,
                // The NIC counts losses that are over before its VLANs notice.
                carrier_losses: nic(link, observed).carrier_losses,
                nic: nic(link, observed).index,
            })
        })
        .collect()
}

/// Returns the NIC of a VLAN that netd made; for other links the link itself.
fn nic<'a>(link: &'a Link, observed: &'a Observed) -> &'a Link {
    let nic = observed.links.get(&observed.nic_of(link.index));
    nic.unwrap_or(link)
}

/// Returns the VLANs that NICs need.
#[must_use]
pub fn vlans(observed: &Observed, settings: &Settings) -> Vec<NicVlan> {
    if settings.uplinks.is_empty() {
        return Vec::new();
    }
    let nics = observed
        .links
        .values()
        .filter(|link| link.own_vlan().is_none());
    nics.filter_map(|nic| match check_with_settings(nic, observed, settings) {
        Err(Exclusion::NicOfVlan(id, _)) => path::vlan(nic, id),
        _ => None,
    })
    .collect()
}

/// Returns all NICs, including those that `exclude` or another bridge keeps from being
/// candidates. One of them may have been the uplink before the configuration changed.
#[must_use]
pub fn nics(observed: &Observed, include: &[Pattern]) -> BTreeSet<LinkIndex> {
    let links = observed.links.values();
    links
        .filter(|link| {
            link.own_vlan().is_some() || check(link, link.controller, include, &[]).is_ok()
        })
        .map(|link| link.index)
        .collect()
}

/// Returns Ok if the link is a candidate with these settings.
///
/// # Errors
///
/// Returns the first reason why it is not.
pub fn check_with_settings(
    link: &Link,
    observed: &Observed,
    settings: &Settings,
) -> Result<(), Exclusion> {
    if let Some(vlan) = link.own_vlan() {
        let nic = observed.links.get(&vlan.nic);
        let nic = nic.filter(|nic| nic.own_vlan().is_none());
        match nic.map(|nic| check_with_settings(nic, observed, settings)) {
            Some(Err(Exclusion::NicOfVlan(id, _))) if id.get() == vlan.id => {}
            _ => return Err(Exclusion::Virtual("vlan".to_owned())),
        }
        check_controller(link, public_bridge(observed))?;
        return check_addresses(link, observed);
    }
    check(
        link,
        public_bridge(observed),
        &settings.include,
        &settings.exclude,
    )?;
    // A NIC with a VLAN may have addresses of its own: it is no port of br0.
    let path = check_path(link, observed, settings);
    if path.is_ok() {
        check_addresses(link, observed)?;
    }
    match settings.required_nic() {
        Some(nic) if link.mac != Some(nic) => Err(Exclusion::NotBootedFrom),
        Some(_) | None => path,
    }
}

/// Returns Ok if no section gives the NIC a VLAN.
fn check_path(nic: &Link, observed: &Observed, settings: &Settings) -> Result<(), Exclusion> {
    let Some((section, id)) =
        path::applied(&settings.uplinks, nic).and_then(|applied| Some((applied, applied.vlan?)))
    else {
        return Ok(());
    };
    match observed.vlan(nic.index, id.get()) {
        Some(other) if other.own_vlan().is_none() => {
            Err(Exclusion::OtherVlan(id, other.name.clone()))
        }
        _ => Err(Exclusion::NicOfVlan(id, section.to_string())),
    }
}

fn public_bridge(observed: &Observed) -> Option<LinkIndex> {
    observed.bridge(PUBLIC_BRIDGE).map(|bridge| bridge.index)
}

/// Returns Ok if another program gave the link no address.
fn check_addresses(link: &Link, observed: &Observed) -> Result<(), Exclusion> {
    // As a port of br0, the NIC would receive nothing for the address. A NIC that is a port
    // already stays one.
    let mut others = observed.other_addresses.iter();
    let address = others.find(|(index, _)| *index == link.index && link.controller.is_none());
    match address {
        Some((_, net)) => Err(Exclusion::OtherAddress(*net)),
        None => Ok(()),
    }
}

/// Returns Ok unless the link is a port of a bridge other than br0.
fn check_controller(link: &Link, public_bridge: Option<LinkIndex>) -> Result<(), Exclusion> {
    match link.controller {
        Some(controller) if Some(controller) != public_bridge => {
            Err(Exclusion::OtherController(controller))
        }
        _ => Ok(()),
    }
}

/// Returns Ok if the link may be a candidate, whatever NIC the machine booted from.
///
/// # Errors
///
/// Returns the first reason why it is not.
fn check(
    link: &Link,
    public_bridge: Option<LinkIndex>,
    include: &[Pattern],
    exclude: &[Pattern],
) -> Result<(), Exclusion> {
    if !link.ethernet || link.mac.is_none() || link.bridge.is_some() {
        return Err(Exclusion::NotEthernet);
    }
    if let Some(pattern) = exclude
        .iter()
        .find(|pattern| pattern.matches(link.name.as_str()))
    {
        return Err(Exclusion::Configured(pattern.0.clone()));
    }
    check_controller(link, public_bridge)?;
    if include
        .iter()
        .any(|pattern| pattern.matches(link.name.as_str()))
    {
        return Ok(());
    }
    match &link.kind {
        Some(kind) => Err(Exclusion::Virtual(kind.clone())),
        None if link.wireless => Err(Exclusion::Wireless),
        None if !link.device => Err(Exclusion::NoDevice),
        None if link.virtual_function => Err(Exclusion::VirtualFunction),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake;

    fn index(index: u32) -> LinkIndex {
        LinkIndex::new(index).unwrap()
    }

    fn nic() -> Link {
        Link {
            mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
            ..fake::nic(index(2), "enp1s0".parse().unwrap())
        }
    }

    fn checked(link: &Link) -> Result<(), Exclusion> {
        check(
            link,
            Some(index(7)),
            &[Pattern("lane*".into())],
            &[Pattern("enp9*".into())],
        )
    }

    #[test]
    fn physical_nic_free_or_in_br0_is_candidate() {
        assert_eq!(checked(&nic()), Ok(()));
        assert_eq!(
            checked(&Link {
                controller: Some(index(7)),
                ..nic()
            }),
            Ok(())
        );
    }

    #[test]
    fn nic_with_address_of_other_program_is_excluded_unless_port_of_br0() {
        let net: Ipv4Net = "192.0.2.5/24".parse().unwrap();
        let observed = |controller| Observed {
            links: [(
                index(2),
                Link {
                    controller,
                    ..nic()
                },
            )]
            .into(),
            other_addresses: vec![(index(2), net)],
            ..Observed::default()
        };
        let settings = Settings::default();
        let free = observed(None);
        let checked = check_with_settings(&free.links[&index(2)], &free, &settings);
        assert_eq!(checked, Err(Exclusion::OtherAddress(net)));
        assert_eq!(list(&free, &settings), []);
        let mut port = observed(Some(index(7)));
        let bridge = Link {
            name: PUBLIC_BRIDGE.parse().unwrap(),
            bridge: Some(crate::observed::BridgeSettings::FORWARD_AT_ONCE),
            ..fake::nic(index(7), PUBLIC_BRIDGE.parse().unwrap())
        };
        port.links.insert(index(7), bridge);
        assert_eq!(list(&port, &settings).len(), 1);
    }

    #[test]
    fn other_link_is_excluded_with_reason() {
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
                    virtual_function: true,
                    ..nic()
                },
                Exclusion::VirtualFunction,
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
                    name: "enp9s0".parse().unwrap(),
                    ..nic()
                },
                Exclusion::Configured("enp9*".into()),
            ),
            (
                Link {
                    controller: Some(index(8)),
                    ..nic()
                },
                Exclusion::OtherController(index(8)),
            ),
        ] {
            assert_eq!(checked(&link), Err(expected), "{link:?}");
        }
        // `include` overrides the kind and the device.
        assert_eq!(
            checked(&Link {
                name: "lane0".parse().unwrap(),
                ..virtual_link
            }),
            Ok(())
        );
    }
}
