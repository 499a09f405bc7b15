//! `buildosctl machine forward`: asks natd to open a port of a machine on br0.

use std::time::Duration;

use buildos_dbus_api::nat1::PortsProxy;
use zbus::Connection;
use zbus::proxy::CacheProperties;

use super::lookup::find;
use crate::commands::call;
use crate::snapshot::model::Host;
use crate::term::span;

/// Time for which a port is opened by default.
const DEFAULT_TIME: Duration = Duration::from_secs(3600);

/// What to do with a port of a machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Port of br1.
    pub(crate) link: String,
    /// TCP port of the machine.
    pub(crate) port: u16,
    pub(crate) action: Action,
}

/// An action.
#[derive(Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Action {
    Open {
        /// Time for which it is open, if not [`DEFAULT_TIME`].
        time: Option<Duration>,
        /// Port of br0, if not any.
        outside: Option<u16>,
    },
    Close,
}

/// Opens or closes a port. Returns what to print.
///
/// # Errors
///
/// natd refuses, or does not answer; there is no such machine.
pub(crate) async fn forward(bus: &Connection, request: &Request) -> Result<String, String> {
    let natd = PortsProxy::builder(bus).cache_properties(CacheProperties::No);
    let natd = natd.build().await.map_err(|error| message(&error))?;
    let (link, port) = (request.link.as_str(), request.port);
    match &request.action {
        Action::Open { time, outside } => {
            let (host, machine) = find(bus, link).await?;
            check_bridge(&host, link, &machine.bridge)?;
            let time = time.unwrap_or(DEFAULT_TIME);
            let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
            let opened = natd.open_port(link, port, outside.unwrap_or(0), seconds);
            let (outside, _) = opened.await.map_err(|error| message(&error))?;
            let time = span(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
            Ok(format!(
                "port {outside} of {} leads to port {port} of {link} for {time}\n",
                address(&host)
            ))
        }
        Action::Close => {
            let open = natd.open_ports().await.map_err(|error| message(&error))?;
            let is_wanted =
                |open: &&(u16, String, String, u16, u64)| open.2 == link && open.3 == port;
            let Some((outside, ..)) = open.iter().find(is_wanted) else {
                return Err(format!("port {port} of {link} is not open"));
            };
            let closed = natd.close_port(*outside).await;
            closed.map_err(|error| message(&error))?;
            Ok(format!(
                "closed port {outside}, which led to port {port} of {link}\n"
            ))
        }
    }
}

fn check_bridge(host: &Host, link: &str, bridge: &str) -> Result<(), String> {
    let public = host.network.as_ref().map(|network| &network.public_bridge);
    if public.is_some_and(|public| public == bridge) {
        return Err(format!(
            "{link} is on {bridge}: the LAN reaches this machine directly"
        ));
    }
    Ok(())
}

/// Returns the host's address for people.
fn address(host: &Host) -> &str {
    let network = host.network.as_ref();
    let address = network.and_then(|network| network.address.split('/').next());
    address.filter(|text| !text.is_empty()).unwrap_or("br0")
}

fn message(error: &zbus::Error) -> String {
    let denied = "org.freedesktop.DBus.Error.AccessDenied";
    if matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == denied) {
        return "only root may open and close ports of machines".to_owned();
    }
    call::error_message("buildos-natd", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::ready;

    #[test]
    fn machine_on_public_bridge_needs_no_open_port() {
        let host = ready();
        assert_eq!(check_bridge(&host, "tap0", "br1"), Ok(()));
        let refused = check_bridge(&host, "ct0", "br0").unwrap_err();
        assert_eq!(
            refused,
            "ct0 is on br0: the LAN reaches this machine directly"
        );
        assert_eq!(address(&host), "192.0.2.7");
    }
}
