//! `buildosctl links`: lists the network interfaces, one a line.

use serde::Serialize;

use crate::snapshot::model::{Host, Link, SCHEMA};
use crate::term::{columns, row};

/// Renders the links that netd observes.
pub(crate) fn render(host: &Host) -> String {
    let mut rows = vec![row(&[
        "LINK",
        "ADDRESS",
        "CARRIER",
        "ROLE",
        "DHCP",
        "NEIGHBOUR",
        "WHY",
    ])];
    for link in &host.links {
        rows.push(row(&[
            &link.name,
            &link.hardware_address,
            if link.carrier { "yes" } else { "no" },
            &link.role,
            &link.dhcp_state,
            &neighbour(link),
            &link.reason,
        ]));
    }
    columns(&rows)
}

/// Returns what LLDP says about the other end of a cable, or nothing.
fn neighbour(link: &Link) -> String {
    match link.neighbour_system.as_str() {
        "" => String::new(),
        system => format!("{system} port {}", link.neighbour_port),
    }
}

/// Returns the VLANs of a neighbour's port, or nothing.
pub(crate) fn vlans(link: &Link) -> String {
    let untagged = match link.neighbour_untagged_vlan {
        0 => None,
        vlan => Some(format!("VLAN {vlan} without a tag")),
    };
    let tagged: Vec<_> = link
        .neighbour_tagged_vlans
        .iter()
        .map(u16::to_string)
        .collect();
    let tagged = match tagged.as_slice() {
        [] => None,
        [vlan] => Some(format!("VLAN {vlan} with a tag")),
        vlans => Some(format!("VLANs {} with a tag", vlans.join(", "))),
    };
    let parts: Vec<_> = untagged.into_iter().chain(tagged).collect();
    parts.join(" and ")
}

/// buildosctl links --json
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "links"))]
pub(crate) struct Json<'a> {
    /// Version of this format, as in status
    schema: u32,
    /// All links, in the order of their indexes
    links: &'a [Link],
}

impl<'a> Json<'a> {
    /// Returns the JSON form of the links of a host.
    pub(crate) fn of(host: &'a Host) -> Self {
        Self {
            schema: SCHEMA,
            links: &host.links,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::ready;

    #[test]
    fn links_are_listed_in_columns() {
        assert_eq!(
            render(&ready()),
            "\
LINK  ADDRESS            CARRIER  ROLE       DHCP  NEIGHBOUR          WHY
eth0  de:ad:be:ef:b8:da  yes      uplink           sw1 port Gi1/0/12  carrier; DHCP BOUND
eth1  de:ad:be:ef:b8:da  no       candidate                           no carrier
"
        );
    }
}
