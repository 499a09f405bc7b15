//! Decides by which path a NIC leads to its network: without a tag, or by a VLAN (IEEE 802.1Q).
//!
//! ```text
//!   [uplink.lan]            eno1 ---- eno1.42 ---> candidate (eno1 carries it)
//!   links = ["eno1"]        eno2 ----------------> candidate
//!   vlan = 42
//! ```
//!
//! Each NIC has one path. Of several sections that match a NIC, the one with its name or hardware
//! address applies; otherwise the first in the order of names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use buildos_types::{InterfaceName, LinkIndex, MacAddress};
use serde::Deserialize;

use crate::observed::Link;
use crate::pattern::Pattern;

/// The sections `[uplink.NAME]`.
pub type Uplinks = BTreeMap<UplinkName, Uplink>;

/// Name of a section.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UplinkName(String);

/// A section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplink {
    /// NICs that the section is for.
    pub links: Vec<NicPattern>,
    /// Their VLAN; [`None`] for frames without a tag.
    pub vlan: Option<VlanId>,
}

/// One or several NICs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum NicPattern {
    /// The NIC with this hardware address.
    Mac(MacAddress),
    /// The NICs with matching names.
    Name(Pattern),
}

/// Number of a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct VlanId(u16);

/// A VLAN of a NIC, with the name that its link has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NicVlan {
    pub nic: LinkIndex,
    pub id: VlanId,
    pub name: InterfaceName,
}

/// The section that applies to a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Applied<'a> {
    pub name: &'a UplinkName,
    pub vlan: Option<VlanId>,
    /// A section that matches the NIC equally well, and does not apply.
    pub rival: Option<&'a UplinkName>,
}

/// Returns the section that applies to a NIC.
#[must_use]
pub fn applied<'a>(uplinks: &'a Uplinks, nic: &Link) -> Option<Applied<'a>> {
    let matching = |exact: bool| {
        let of_nic = uplinks.iter().filter(move |(_, uplink)| {
            let mut links = uplink.links.iter();
            links.any(|link| link.matches(nic) && link.is_exact() == exact)
        });
        let mut found = of_nic;
        let (name, uplink) = found.next()?;
        Some(Applied {
            name,
            vlan: uplink.vlan,
            rival: found.next().map(|(name, _)| name),
        })
    };
    matching(true).or_else(|| matching(false))
}

/// Returns the VLAN with its name on a NIC: `eno1.42`, or `vlan42.INDEX` if that is too long.
#[must_use]
pub fn vlan(nic: &Link, id: VlanId) -> Option<NicVlan> {
    let (name, index) = (&nic.name, nic.index);
    let name = InterfaceName::new(&format!("{name}.{id}"))
        .or_else(|_| InterfaceName::new(&format!("vlan{id}.{index}")));
    let (nic, name) = (index, name.ok()?);
    Some(NicVlan { nic, id, name })
}

/// Removes what contradicts from the sections. Returns keys and errors.
pub fn remove_contradictions(uplinks: &mut Uplinks) -> Vec<(String, String)> {
    let mut errors = Vec::new();
    let mut seen: BTreeMap<String, UplinkName> = BTreeMap::new();
    for (name, uplink) in uplinks {
        if uplink.links.is_empty() {
            let error = "links is missing, so it has no effect; add links = [\"eno1\"], or \
                         [\"*\"] for all NICs";
            errors.push((format!("uplink.{name}"), error.to_owned()));
        }
        let mut twice = BTreeSet::new();
        uplink.links.retain(|link| {
            let other = seen.entry(link.to_string()).or_insert_with(|| name.clone());
            let is_kept = *other == *name;
            if !is_kept {
                twice.insert((link.to_string(), other.clone()));
            }
            is_kept
        });
        errors.extend(twice.into_iter().map(|(link, other)| {
            let error = format!(
                "{link:?} is in uplink.{other}.links, too, which applies; remove it from one of \
                 them"
            );
            (format!("uplink.{name}.links"), error)
        }));
    }
    errors
}

impl fmt::Display for Applied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[uplink.{}]", self.name)?;
        match self.rival {
            Some(rival) => write!(f, "; [uplink.{rival}] matches it, too, without effect"),
            None => Ok(()),
        }
    }
}

impl NicPattern {
    fn matches(&self, nic: &Link) -> bool {
        match self {
            Self::Mac(mac) => nic.mac == Some(*mac),
            Self::Name(pattern) => pattern.matches(nic.name.as_str()),
        }
    }

    /// Returns true for the name or hardware address of one NIC.
    fn is_exact(&self) -> bool {
        match self {
            Self::Mac(_) => true,
            Self::Name(pattern) => !pattern.0.contains('*'),
        }
    }
}

impl TryFrom<String> for NicPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if let Ok(mac) = text.parse() {
            return Ok(Self::Mac(mac));
        }
        // A star stands for any text, none included.
        let name = text.replace('*', "");
        let is_name = InterfaceName::new(&name).is_ok() || (name.is_empty() && !text.is_empty());
        match is_name {
            true => Ok(Self::Name(Pattern(text))),
            false => Err(format!(
                "{text:?} is not the name of a NIC, a pattern such as \"eno*\", or a hardware \
                 address"
            )),
        }
    }
}

impl fmt::Display for NicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Name(pattern) => f.write_str(&pattern.0),
        }
    }
}

impl VlanId {
    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for VlanId {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, Self::Error> {
        match u16::try_from(number) {
            Ok(id @ 1..=4094) => Ok(Self(id)),
            Ok(_) | Err(_) => Err(format!(
                "{number} is not a VLAN from 1 to 4094; remove the key for frames without a tag"
            )),
        }
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UplinkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        match (1..=32).contains(&text.len()) && text.chars().all(is_allowed) {
            true => Ok(Self(text.to_owned())),
            false => Err("a name has 1 to 32 letters, digits, '-' and '_'".to_owned()),
        }
    }
}

impl fmt::Display for UplinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake;

    fn uplinks(sections: &[(&str, &[&str], Option<i64>)]) -> Uplinks {
        let sections = sections.iter().map(|(name, links, vlan)| {
            let links = links.iter().map(|link| (*link).to_owned().try_into());
            let uplink = Uplink {
                links: links.collect::<Result<_, _>>().unwrap(),
                vlan: vlan.map(|vlan| vlan.try_into().unwrap()),
            };
            (name.parse().unwrap(), uplink)
        });
        sections.collect()
    }

    fn nic(name: &str) -> Link {
        Link {
            mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
            ..fake::nic(LinkIndex::new(2).unwrap(), name.parse().unwrap())
        }
    }

    fn section(uplinks: &Uplinks, name: &str) -> Option<(String, Option<u16>, Option<String>)> {
        let applied = applied(uplinks, &nic(name))?;
        let rival = applied.rival.map(ToString::to_string);
        Some((
            applied.name.to_string(),
            applied.vlan.map(VlanId::get),
            rival,
        ))
    }

    #[test]
    fn name_and_hardware_address_precede_patterns() {
        let of = |name: &str, vlan| Some((name.to_owned(), vlan, None));
        let by_name = uplinks(&[
            ("a", &["*"], Some(1)),
            ("b", &["eno1"], Some(2)),
            ("c", &["eno9", "enp9s0"], None),
        ]);
        assert_eq!(section(&by_name, "eno1"), of("b", Some(2)));
        assert_eq!(section(&by_name, "eno2"), of("a", Some(1)));
        assert_eq!(section(&by_name, "enp9s0"), of("c", None));
        let by_mac = uplinks(&[("a", &["e*"], Some(1)), ("b", &["02-00-00-00-00-01"], None)]);
        assert_eq!(section(&by_mac, "eno7"), of("b", None));
        assert_eq!(section(&uplinks(&[]), "eno1"), None);
        assert_eq!(section(&uplinks(&[("a", &["x*"], None)]), "eno1"), None);
    }

    #[test]
    fn sections_that_match_equally_apply_in_order_of_names() {
        let both = uplinks(&[
            ("a", &["en*"], Some(1)),
            ("b", &["*1"], Some(2)),
            ("c", &["x"], None),
        ]);
        let expected = Some(("a".to_owned(), Some(1), Some("b".to_owned())));
        assert_eq!(section(&both, "eno1"), expected);
        let exact = uplinks(&[
            ("n", &["eno1"], Some(3)),
            ("m", &["02:00:00:00:00:01"], None),
        ]);
        let expected = Some(("m".to_owned(), None, Some("n".to_owned())));
        assert_eq!(section(&exact, "eno1"), expected);
    }

    #[test]
    fn link_in_two_sections_and_section_without_links_are_reported() {
        let mut sections = uplinks(&[
            ("a", &["eno1", "eno1", "02:00:00:00:00:01"], Some(1)),
            ("b", &["eno1", "eno2", "02-00-00-00-00-01"], Some(2)),
            ("c", &[], Some(3)),
        ]);
        let errors = remove_contradictions(&mut sections);
        assert_eq!(
            errors
                .iter()
                .map(|(key, error)| format!("{key}: {error}"))
                .collect::<Vec<_>>(),
            [
                "uplink.b.links: \"02:00:00:00:00:01\" is in uplink.a.links, too, which applies; \
                 remove it from one of them",
                "uplink.b.links: \"eno1\" is in uplink.a.links, too, which applies; remove it \
                 from one of them",
                "uplink.c: links is missing, so it has no effect; add links = [\"eno1\"], or \
                 [\"*\"] for all NICs",
            ]
        );
        assert_eq!(
            sections.values().nth(1).unwrap().links,
            ["eno2".to_owned().try_into().unwrap()]
        );
    }

    #[test]
    fn vlan_link_has_name_that_kernel_accepts() {
        let name = |nic_name: &str, id: i64| {
            let id = VlanId::try_from(id).unwrap();
            vlan(&nic(nic_name), id).unwrap().name.to_string()
        };
        assert_eq!(name("eno1", 42), "eno1.42");
        assert_eq!(name("enp129s0f1", 4094), "enp129s0f1.4094");
        assert_eq!(name("enp129s0f1n", 4094), "vlan4094.2");
        assert_eq!(name("enx020000000001", 7), "vlan7.2");
    }

    #[test]
    fn values_outside_of_their_range_are_refused() {
        for number in [-1, 0, 4095, 70_000] {
            let error = VlanId::try_from(number).unwrap_err();
            assert!(error.contains("is not a VLAN from 1 to 4094"), "{error}");
        }
        for text in ["", "a b", "eth0/1", "waytoolongforalinkname"] {
            assert!(NicPattern::try_from(text.to_owned()).is_err(), "{text}");
        }
        for text in ["*", "en*s*", "eth0", "de-ad-be-ef-b8-da"] {
            assert!(NicPattern::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for name in ["", "a.b", "a b", &"x".repeat(33)] {
            assert!(name.parse::<UplinkName>().is_err(), "{name}");
        }
    }
}
