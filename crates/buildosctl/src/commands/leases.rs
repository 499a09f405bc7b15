//! `buildosctl leases`: lists the lease of the host and those of the machines on br1.

use buildos_dbus_api::network1::AddressOrigin;
use serde::Serialize;

use crate::snapshot::model::{Host, Lease, SCHEMA};
use crate::term::{columns, relative, row};

/// Renders the leases.
pub(crate) fn render(host: &Host) -> String {
    let now = host.taken_usec;
    let end = |usec: u64| match usec {
        0 => "never".to_owned(),
        usec => relative(now, usec),
    };
    let mut rows = vec![row(&["ADDRESS", "HARDWARE ADDRESS", "ENDS", "WHO"])];
    if let Some(network) = host.network.as_ref().filter(|n| !n.address.is_empty()) {
        let holder = match network.address_origin.parse() {
            Ok(AddressOrigin::Static) => "this host, static address".to_owned(),
            Ok(AddressOrigin::Lease | AddressOrigin::ExpiredLease) | Err(_) => {
                format!("this host, from {}", network.lease.server)
            }
        };
        let ends = end(network.lease.expires_usec);
        rows.push(row(&[
            &network.address,
            &network.uplink_address,
            &ends,
            &holder,
        ]));
    }
    for (address, hardware, seconds) in &host.usage.machines {
        let ends = end(seconds.saturating_mul(1_000_000));
        rows.push(row(&[address, hardware, &ends, "machine on br1"]));
    }
    columns(&rows)
}

/// buildosctl leases --json
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "leases"))]
pub(crate) struct Json<'a> {
    /// Version of this format, as in status
    schema: u32,
    /// Lease of the host; null if buildos-netd does not answer
    lease: Option<&'a Lease>,
    /// Machines on br1 with a lease: address, hardware address, and end of the lease in
    /// seconds since 1970 (0: never)
    machines: &'a [(String, String, u64)],
}

impl<'a> Json<'a> {
    /// Returns the JSON form of the leases of a host and its machines.
    pub(crate) fn of(host: &'a Host) -> Self {
        Self {
            schema: SCHEMA,
            lease: host.network.as_ref().map(|network| &network.lease),
            machines: &host.usage.machines,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::ready;

    #[test]
    fn leases_are_listed_in_columns() {
        assert_eq!(
            render(&ready()),
            "\
ADDRESS       HARDWARE ADDRESS   ENDS           WHO
192.0.2.7/24  de:ad:be:ef:b8:da  in 59 min 0 s  this host, from 192.0.2.1
172.23.0.9    02:00:00:00:00:09  in 1 h 0 min   machine on br1
"
        );
    }
}
