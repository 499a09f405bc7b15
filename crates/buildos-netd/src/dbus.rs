//! Serves `org.build2.buildos.network1` on the system bus.
//!
//! The network comes up before the bus and without it. Therefore a task of its own serves
//! the bus: it takes the latest status from a `watch` channel and passes requests of clients
//! to the daemon. The daemon never waits for it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use buildos_dbus_api::network1::{AddressOrigin, LINK_PREFIX, NAME, Network, PATH, Reachability};
use buildos_dbus_api::{system_bus, update};
use buildos_types::LinkIndex;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use zbus::zvariant::{self, OwnedObjectPath, OwnedValue, Value};
use zbus::{Connection, MessageStream, fdo, interface};

use crate::status::{LinkStatus, Status, text_or_empty};

/// Limits of the delay between attempts to connect, which is a tenth of the time since
/// the connection was lost. The first delays are short, because at boot other daemons
/// wait for netd on the bus. A bus that has been missing for long rarely returns soon.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// Debounce for PropertiesChanged: a renewal flips the state for the duration of two packets.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// A request of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Request an extension of the lease now.
    Renew,
    /// Reload the configuration.
    Reconfigure,
}

/// Serves the latest status until the daemon ends. Connects again after losing the bus.
pub async fn serve(mut statuses: watch::Receiver<Status>, commands: mpsc::Sender<Command>) {
    let mut disconnected = Instant::now();
    loop {
        match session(&mut statuses, &commands, &mut disconnected).await {
            Ok(()) => return, // The daemon has ended.
            Err(error) => tracing::debug!("not on the bus: {error}"),
        }
        let retry = disconnected.elapsed() / 10;
        tokio::time::sleep(retry.clamp(SHORTEST_RETRY, LONGEST_RETRY)).await;
    }
}

/// Serves over one connection until the bus closes it. Sets `disconnected` at its end.
/// Returns Ok if the daemon has ended.
async fn session(
    statuses: &mut watch::Receiver<Status>,
    commands: &mpsc::Sender<Command>,
    disconnected: &mut Instant,
) -> zbus::Result<()> {
    let connection = system_bus().await?;
    let status = statuses.borrow_and_update().clone();
    let manager = Manager {
        published: status.published(),
        status: status.clone(),
        commands: commands.clone(),
    };
    connection.object_server().at(PATH, manager).await?;
    let mut links = BTreeMap::new();
    publish_links(&connection, &mut links, &status).await?;
    connection.request_name(NAME).await?;
    tracing::debug!("serving {NAME}");
    let result = follow(&connection, statuses, &mut links, status).await;
    *disconnected = Instant::now();
    result
}

/// Publishes each status that differs from `published`, until the connection or the daemon
/// ends.
async fn follow(
    connection: &Connection,
    statuses: &mut watch::Receiver<Status>,
    links: &mut BTreeMap<LinkIndex, LinkStatus>,
    mut published: Status,
) -> zbus::Result<()> {
    let mut messages = MessageStream::from(connection);
    loop {
        tokio::select! {
            changed = statuses.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            message = messages.next() => match message {
                // The object server handles calls. Here only the end of the stream matters.
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error),
                None => return Err(zbus::Error::Failure("the bus closed the connection".to_owned())),
            },
        }
        tokio::time::sleep(DEBOUNCE).await;
        let status = statuses.borrow_and_update().clone();
        publish_links(connection, links, &status).await?;
        // Most changes concern the state of one link only.
        if !is_same_for_manager(&published, &status) {
            update::<Manager>(connection, PATH, |m| {
                m.published = status.published();
                m.status = status.clone();
            })
            .await?;
            published = status;
        }
    }
}

/// Returns true if [`Manager`] serves the same for both. It serves only the indices of links,
/// and the names of candidates.
fn is_same_for_manager(a: &Status, b: &Status) -> bool {
    let indices = |status: &Status| status.links.iter().map(|l| l.index).collect::<Vec<_>>();
    let bare = |status: &Status| Status {
        links: Vec::new(),
        ..status.clone()
    };
    indices(a) == indices(b) && a.candidates().eq(b.candidates()) && bare(a) == bare(b)
}

/// Adds, updates and removes the objects of links.
async fn publish_links(
    connection: &Connection,
    served: &mut BTreeMap<LinkIndex, LinkStatus>,
    status: &Status,
) -> zbus::Result<()> {
    let server = connection.object_server();
    let gone: Vec<LinkIndex> = served
        .keys()
        .copied()
        .filter(|i| status.links.iter().all(|l| l.index != *i))
        .collect();
    for index in gone {
        server.remove::<Link, _>(link_path(index)?).await?;
        served.remove(&index);
    }
    for link in &status.links {
        let path = link_path(link.index)?;
        match served.insert(link.index, link.clone()) {
            None => {
                server.at(path, Link(link.clone())).await?;
            }
            Some(old) if old != *link => {
                update::<Link>(connection, path.as_str(), |served| served.0 = link.clone()).await?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn link_path(index: LinkIndex) -> zbus::Result<OwnedObjectPath> {
    Ok(OwnedObjectPath::try_from(format!("{LINK_PREFIX}/{index}"))?)
}

struct Manager {
    published: Network,
    status: Status,
    commands: mpsc::Sender<Command>,
}

#[interface(name = "org.build2.buildos.network1.Manager")]
impl Manager {
    /// Asks the DHCP server to extend the lease now.
    async fn renew(&self) -> fdo::Result<()> {
        if self.status.address_origin != Some(AddressOrigin::Lease) {
            return Err(fdo::Error::Failed(format!(
                "no lease to renew: {}",
                self.status.reason
            )));
        }
        self.send(Command::Renew)
    }

    /// Reads the configuration again and applies what changed.
    async fn reconfigure(&self) -> fdo::Result<()> {
        self.send(Command::Reconfigure)
    }

    /// The state: `no-carrier`, `acquiring`, `online`, `no-default-route` or `carrier-lost`.
    #[zbus(property)]
    fn state(&self) -> &str {
        &self.published.state
    }

    /// One line for operators: what is configured, or what netd waits for.
    #[zbus(property)]
    fn reason(&self) -> &str {
        &self.published.reason
    }

    /// True in the state `online`.
    #[zbus(property)]
    fn online(&self) -> bool {
        self.published.online
    }

    /// True if br0 has a lease that a better one on another NIC would replace.
    #[zbus(property)]
    fn provisional(&self) -> bool {
        self.status.provisional
    }

    /// Name of the NIC in br0, or empty.
    #[zbus(property)]
    fn uplink(&self) -> &str {
        &self.published.uplink
    }

    /// MAC address of br0 (`aa:bb:cc:dd:ee:ff`): that of the NIC that the lease was granted
    /// on. Empty without an uplink.
    #[zbus(property)]
    fn uplink_address(&self) -> &str {
        &self.published.uplink_address
    }

    /// Names of the NICs that can become the uplink, including the uplink.
    #[zbus(property)]
    fn candidates(&self) -> &[String] {
        &self.published.candidates
    }

    /// Name of the public bridge, `br0`.
    #[zbus(property)]
    fn public_bridge(&self) -> &str {
        &self.published.public_bridge
    }

    /// Name of the private bridge, `br1`.
    #[zbus(property)]
    fn private_bridge(&self) -> &str {
        &self.published.private_bridge
    }

    /// Address of the host on the private bridge with its prefix
    /// (`172.23.0.1/16`), or empty while br1 has none.
    #[zbus(property)]
    fn private_network(&self) -> &str {
        &self.published.private_network
    }

    /// Address of br0 with its prefix (`192.0.2.7/24`), or empty.
    #[zbus(property)]
    fn address(&self) -> &str {
        &self.published.address
    }

    /// Where the address is from: `lease`, `expired-lease` (`keep_expired`) or `static`; empty
    /// without an address.
    #[zbus(property)]
    fn address_origin(&self) -> &str {
        let origin = self.status.address_origin;
        origin.map_or("", AddressOrigin::as_str)
    }

    /// Default gateway, or empty.
    #[zbus(property)]
    fn gateway(&self) -> &str {
        &self.published.gateway
    }

    /// Whether the gateway answers ARP: `unknown`, `reachable` or `unreachable`; empty
    /// without a gateway.
    #[zbus(property)]
    fn gateway_reachability(&self) -> &str {
        let reachability = self.status.gateway_reachability;
        reachability.map_or("", Reachability::as_str)
    }

    /// Name servers of the lease, in its order.
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> &[String] {
        &self.published.dns
    }

    /// Search domains of the lease, options 119 and 15.
    #[zbus(property)]
    fn search_domains(&self) -> &[String] {
        &self.published.search_domains
    }

    /// NTP servers of the lease.
    #[zbus(property, name = "NTP")]
    fn ntp(&self) -> Vec<String> {
        let lease = self.status.lease.as_ref();
        lease.map(|lease| texts(&lease.ntp)).unwrap_or_default()
    }

    /// Host name of the lease (option 12) as received but escaped, or empty.
    #[zbus(property)]
    fn hostname(&self) -> &str {
        &self.published.hostname
    }

    /// Fully qualified name of the lease (option 81) as received but escaped, or empty.
    #[zbus(property, name = "FQDN")]
    fn fqdn(&self) -> &str {
        &self.published.fqdn
    }

    /// The lease: `Address`, `PrefixLength`, `Server`, its length as `LeaseSeconds`, the
    /// times `AcquiredUSec`, `RenewUSec` (T1), `RebindUSec` (T2) and `ExpiresUSec`
    /// (CLOCK_REALTIME; absent for an unlimited lease), and `Option1` … as received.
    #[zbus(property)]
    fn lease(&self) -> fdo::Result<HashMap<String, OwnedValue>> {
        lease(&self.status).map_err(|error| fdo::Error::Failed(error.to_string()))
    }

    /// IPv6 addresses of br0 with their prefixes, link-local ones included. The
    /// kernel configures them by router advertisements.
    #[zbus(property, name = "IPv6Addresses")]
    fn ipv6_addresses(&self) -> Vec<String> {
        texts(&self.status.ipv6)
    }

    /// Names of the ports of br0: the uplink, and ports of other programs.
    #[zbus(property)]
    fn public_ports(&self) -> Vec<String> {
        texts(&self.status.public_ports)
    }

    /// Names of the ports of br1.
    #[zbus(property)]
    fn private_ports(&self) -> Vec<String> {
        texts(&self.status.private_ports)
    }

    /// Objects of the links, see LinkProxy.
    #[zbus(property)]
    fn links(&self) -> Vec<OwnedObjectPath> {
        self.status
            .links
            .iter()
            .filter_map(|link| link_path(link.index).ok())
            .collect()
    }

    /// Errors in the configuration, one line each; empty if there are none.
    #[zbus(property)]
    fn configuration_problems(&self) -> Vec<String> {
        self.status.configuration_problems.clone()
    }
}

impl Manager {
    fn send(&self, command: Command) -> fdo::Result<()> {
        self.commands.try_send(command).map_err(|_| {
            fdo::Error::LimitsExceeded("buildos-netd still processes earlier requests".to_owned())
        })
    }
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

struct Link(LinkStatus);

#[interface(name = "org.build2.buildos.network1.Link")]
impl Link {
    /// Kernel name of the link.
    #[zbus(property)]
    fn name(&self) -> &str {
        self.0.name.as_str()
    }

    /// Kernel index of the link.
    #[zbus(property)]
    fn index(&self) -> u32 {
        self.0.index.get()
    }

    /// MAC address.
    #[zbus(property)]
    fn hardware_address(&self) -> String {
        text_or_empty(self.0.mac)
    }

    /// True if the link has carrier.
    #[zbus(property)]
    fn carrier(&self) -> bool {
        self.0.carrier
    }

    /// The role: `ignored`, `candidate`, `uplink` or `bridge`.
    #[zbus(property)]
    fn role(&self) -> &str {
        self.0.role.as_str()
    }

    /// RFC 2131 state of the DHCP client on this link (`SELECTING`), or empty.
    #[zbus(property, name = "DHCPState")]
    fn dhcp_state(&self) -> &str {
        self.0.dhcp_state.unwrap_or_default()
    }

    /// One line for operators: why the link is in this role and state.
    #[zbus(property)]
    fn reason(&self) -> &str {
        &self.0.reason
    }
}

/// Returns the lease as a dictionary: its parameters, and the options as received.
fn lease(status: &Status) -> zvariant::Result<HashMap<String, OwnedValue>> {
    let lease = status.lease.as_ref();
    let Some(lease) = lease.filter(|lease| !lease.is_configured()) else {
        return Ok(HashMap::new());
    };
    let mut entries: Vec<(String, Value<'_>)> = vec![
        ("Address".into(), lease.address.to_string().into()),
        ("PrefixLength".into(), lease.prefix.into()),
        ("Server".into(), lease.server.to_string().into()),
        ("AcquiredUSec".into(), status.acquired_usec.into()),
    ];
    if let Some(term) = lease.term {
        let at = |after: Duration| {
            let after = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
            status.acquired_usec.saturating_add(after)
        };
        entries.push(("LeaseSeconds".into(), term.lease.as_secs().into()));
        entries.push(("RenewUSec".into(), at(term.renew).into()));
        entries.push(("RebindUSec".into(), at(term.rebind).into()));
        entries.push(("ExpiresUSec".into(), at(term.lease).into()));
    }
    for (code, bytes) in lease.options.iter() {
        entries.push((format!("Option{code}"), bytes.to_vec().into()));
    }
    entries
        .into_iter()
        .map(|(key, value)| Ok((key, value.try_to_owned()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples;
    use zbus::object_server::Interface as _;

    /// Compares the served interfaces with the XML of record. `BUILDOS_BLESS=1` rewrites it.
    #[test]
    fn interfaces_equal_xml_of_record() {
        let status = samples::online();
        let link = Link(status.links[0].clone());
        let (commands, _) = mpsc::channel(1);
        let mut xml = String::from("<node>\n");
        let manager = Manager {
            published: status.published(),
            status,
            commands,
        };
        manager.introspect_to_writer(&mut xml, 2);
        link.introspect_to_writer(&mut xml, 2);
        xml.push_str("</node>\n");
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/dbus/org.build2.buildos.network1.xml"
        );
        if std::env::var_os("BUILDOS_BLESS").is_some() {
            std::fs::write(path, &xml).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), xml);
    }
}
