//! Finds the machine that a port names.

use buildos_dbus_api::cache::Cache;
use zbus::Connection;

use crate::snapshot::model::{Host, Machine};
use crate::snapshot::{collect, machines};

/// Finds a machine by its port.
pub(super) async fn find(bus: &Connection, port: &str) -> Result<(Host, Machine), String> {
    let mut host = collect::host(&Cache::new(bus)).await;
    machines::find(&mut host);
    let found = host.machines.iter().find(|machine| machine.port == port);
    match found.cloned() {
        Some(machine) => Ok((host, machine)),
        None => Err(unknown(port, &host)),
    }
}

fn unknown(port: &str, host: &Host) -> String {
    let ports = host.machines.iter().map(|machine| machine.port.as_str());
    let ports: Vec<_> = ports.filter(|port| !port.is_empty()).collect();
    match ports.as_slice() {
        [] => format!("no machine at {port:?}: there are no machines"),
        ports => format!(
            "no machine at {port:?}; machines are at {}",
            ports.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::ready;

    #[test]
    fn unknown_port_names_the_known_ones() {
        let mut host = ready();
        let expected = "no machine at \"x\\n\": there are no machines";
        assert_eq!(unknown("x\n", &host), expected);
        let at = |port: &str| Machine {
            port: port.into(),
            ..Machine::default()
        };
        host.machines = vec![at("tap0"), at(""), at("tap1")];
        let expected = "no machine at \"tap2\"; machines are at tap0, tap1";
        assert_eq!(unknown("tap2", &host), expected);
    }
}
