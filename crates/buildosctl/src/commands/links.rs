//! `buildosctl links`: lists the network interfaces, one a line.

use serde::Serialize;

use crate::snapshot::model::{Host, Link, SCHEMA};
use crate::term::{columns, row};

/// Renders the links that netd observes.
pub(crate) fn render(host: &Host) -> String {
    let mut rows = vec![row(&["LINK", "ADDRESS", "CARRIER", "ROLE", "DHCP", "WHY"])];
    for link in &host.links {
        rows.push(row(&[
            &link.name,
            &link.hardware_address,
            if link.carrier { "yes" } else { "no" },
            &link.role,
            &link.dhcp_state,
            &link.reason,
        ]));
    }
    columns(&rows)
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
LINK  ADDRESS            CARRIER  ROLE       DHCP  WHY
eth0  de:ad:be:ef:b8:da  yes      uplink           carrier; DHCP BOUND
eth1  de:ad:be:ef:b8:da  no       candidate        no carrier
"
        );
    }
}
