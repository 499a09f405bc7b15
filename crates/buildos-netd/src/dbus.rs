//! Serves `org.build2.buildos.network1` on the system bus.
//!
//! The network comes up before the bus and without it. Therefore a task of its own serves
//! the bus: it takes the latest status from a `watch` channel and passes requests of clients
//! to the daemon. The daemon never waits for it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use buildos_dbus_api::network1::{AddressOrigin, LINK_PREFIX, NAME, Network, PATH, Reachability};
use buildos_dbus_api::{request_name, system_bus, update};
use buildos_types::LinkIndex;
use futures_util::StreamExt as _;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use tokio::sync::{mpsc, watch};
use zbus::object_server::Interface as _;
use zbus::zvariant::as_value::Serialize as AsValue;
use zbus::zvariant::{self, OwnedObjectPath, OwnedValue, Value};
use zbus::{Connection, MessageStream, fdo, interface};

use crate::lldp::Neighbour;
use crate::status::{LinkStatus, Status, text_or_empty};

/// Limits of the delay between attempts to connect, which is a tenth of the time since
/// the connection was lost. The first delays are short, because at boot other daemons
/// wait for netd on the bus. A bus that has been missing for long rarely returns soon.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// The interface of the signal PropertiesChanged.
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

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
    request_name(&connection, NAME).await?;
    tracing::debug!("serving {NAME}");
    let result = follow(&connection, statuses, &mut links).await;
    *disconnected = Instant::now();
    result
}

/// Publishes each status, until the connection or the daemon ends.
async fn follow(
    connection: &Connection,
    statuses: &mut watch::Receiver<Status>,
    links: &mut BTreeMap<LinkIndex, LinkStatus>,
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
        let status = statuses.borrow_and_update().clone();
        publish_links(connection, links, &status).await?;
        publish_manager(connection, status).await?;
    }
}

/// Updates the object of the manager, unless the status changed for links only.
async fn publish_manager(connection: &Connection, status: Status) -> zbus::Result<()> {
    let server = connection.object_server();
    let served = server.interface::<_, Manager>(PATH).await?;
    let mut manager = served.get_mut().await;
    match manager.difference(&status) {
        Difference::None => {}
        // Of a renewal. Comparing all properties takes longer than the rest of it.
        Difference::Times => {
            manager.status = status;
            let lease = LeaseFields(&manager.status);
            let changed = BTreeMap::from([("Lease", AsValue(&lease))]);
            let invalidated: [&str; 0] = [];
            let body = (Manager::name(), changed, &invalidated[..]);
            let emitter = served.signal_emitter();
            emitter.emit(PROPERTIES, "PropertiesChanged", &body).await?;
        }
        Difference::Other => {
            drop(manager);
            update::<Manager>(connection, PATH, |m| {
                m.published = status.published();
                m.status = status;
            })
            .await?;
        }
    }
    Ok(())
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

/// What [`Manager`] serves differently for another status.
#[derive(Debug, PartialEq, Eq)]
enum Difference {
    None,
    /// The times of the lease only.
    Times,
    Other,
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

    /// Name of the NIC, or of its VLAN, in br0, or empty.
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

    /// Device and port at the other end of the uplink's cable by LLDP (`sw1 port 12`), escaped, or
    /// empty.
    #[zbus(property)]
    fn uplink_neighbour(&self) -> &str {
        &self.status.uplink_neighbour
    }

    /// Names of the NICs and VLANs that can become the uplink, including the uplink.
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
        let context = zvariant::serialized::Context::new_dbus(zvariant::LE, 0);
        let fields = zvariant::to_bytes(context, &LeaseFields(&self.status))
            .and_then(|bytes| Ok(bytes.deserialize()?.0));
        fields.map_err(|error| fdo::Error::Failed(error.to_string()))
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
    /// Compares a status with the served one. Of links, [`Manager`] serves only the indices, and
    /// the names of candidates.
    fn difference(&self, status: &Status) -> Difference {
        let served = &self.status;
        let indices = |status: &Status| status.links.iter().map(|l| l.index).collect::<Vec<_>>();
        let mut same = status.clone();
        same.links.clone_from(&served.links);
        same.acquired_usec = served.acquired_usec;
        if let Some((lease, served)) = same.lease.as_mut().zip(served.lease.as_ref()) {
            (lease.acquired, lease.term) = (served.acquired, served.term);
        }
        if same != *served
            || indices(served) != indices(status)
            || !served.candidates().eq(status.candidates())
        {
            Difference::Other
        } else if served.lease != status.lease || served.acquired_usec != status.acquired_usec {
            Difference::Times
        } else {
            Difference::None
        }
    }

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

    /// The role: `ignored`, `candidate`, `uplink`, `nic` (of a VLAN) or `bridge`.
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

    /// Number of the VLAN, if netd made the link for one; otherwise 0.
    #[zbus(property, name = "VLAN")]
    fn vlan(&self) -> u16 {
        self.0.vlan.as_ref().map_or(0, |(_, id)| *id)
    }

    /// Name of the NIC of that VLAN, or empty.
    #[zbus(property, name = "VLANParent")]
    fn vlan_parent(&self) -> &str {
        self.0.vlan.as_ref().map_or("", |(nic, _)| nic.as_str())
    }

    /// Device at the other end of the cable by LLDP, escaped, or empty.
    #[zbus(property)]
    fn neighbour_system(&self) -> &str {
        let neighbour = self.0.neighbour.as_ref();
        neighbour.map_or("", |neighbour| neighbour.system.as_str())
    }

    /// Its port, escaped, or empty.
    #[zbus(property)]
    fn neighbour_port(&self) -> &str {
        let neighbour = self.0.neighbour.as_ref();
        neighbour.map_or("", |neighbour| neighbour.port.as_str())
    }

    /// VLAN of frames without a tag on that port; 0 if the device does not say.
    #[zbus(property, name = "NeighbourUntaggedVLAN")]
    fn neighbour_untagged_vlan(&self) -> u16 {
        let neighbour = self.0.neighbour.as_ref();
        neighbour
            .and_then(|neighbour| neighbour.untagged_vlan)
            .unwrap_or(0)
    }

    /// VLANs of frames with a tag on that port, in ascending order, 16 at most.
    #[zbus(property, name = "NeighbourTaggedVLANs")]
    fn neighbour_tagged_vlans(&self) -> Vec<u16> {
        let neighbour = self.0.neighbour.iter();
        neighbour.flat_map(Neighbour::tagged_vlans).collect()
    }
}

/// The lease of a status as a dictionary: its parameters, and the options as received. Empty
/// without a lease.
///
/// The fields are serialized from the status without a [`Value`] of each field and of each byte
/// of an option, because every renewal signals them.
struct LeaseFields<'a>(&'a Status);

impl zvariant::Type for LeaseFields<'_> {
    const SIGNATURE: &'static zvariant::Signature =
        <HashMap<&str, Value<'_>> as zvariant::Type>::SIGNATURE;
}

impl Serialize for LeaseFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let Self(status) = self;
        let lease = status.lease.as_ref();
        let Some(lease) = lease.filter(|lease| !lease.is_configured()) else {
            return map.end();
        };
        map.serialize_entry("Address", &AsValue(&lease.address.to_string()))?;
        map.serialize_entry("PrefixLength", &AsValue(&lease.prefix))?;
        map.serialize_entry("Server", &AsValue(&lease.server.to_string()))?;
        map.serialize_entry("AcquiredUSec", &AsValue(&status.acquired_usec))?;
        if let Some(term) = lease.term {
            let at = |after: Duration| {
                let after = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
                status.acquired_usec.saturating_add(after)
            };
            map.serialize_entry("LeaseSeconds", &AsValue(&term.lease.as_secs()))?;
            map.serialize_entry("RenewUSec", &AsValue(&at(term.renew)))?;
            map.serialize_entry("RebindUSec", &AsValue(&at(term.rebind)))?;
            map.serialize_entry("ExpiresUSec", &AsValue(&at(term.lease)))?;
        }
        for (code, bytes) in lease.options.iter() {
            map.serialize_entry(&format!("Option{code}"), &AsValue(&bytes))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples;

    #[test]
    fn difference_of_renewal_is_times_of_lease() {
        let served = samples::online();
        let (commands, _) = mpsc::channel(1);
        let manager = Manager {
            published: served.published(),
            status: served.clone(),
            commands,
        };
        let with = |change: fn(&mut Status)| {
            let mut status = served.clone();
            change(&mut status);
            manager.difference(&status)
        };
        let renew = |status: &mut Status| {
            let lease = status.lease.as_mut().unwrap();
            lease.acquired += Duration::from_secs(1800);
            lease.term.as_mut().unwrap().renew += Duration::from_secs(1);
            status.acquired_usec += 1_800_000_000;
        };
        assert_eq!(with(|_| {}), Difference::None);
        assert_eq!(with(renew), Difference::Times);
        let reason = with(|status| status.links[0].reason.push('.'));
        assert_eq!(reason, Difference::None);
        let dns = with(|status| status.lease.as_mut().unwrap().dns.clear());
        assert_eq!(dns, Difference::Other);
        assert_eq!(with(|status| status.lease = None), Difference::Other);
        assert_eq!(with(|status| status.links.clear()), Difference::Other);
    }

    #[test]
    fn lease_has_parameters_and_options_as_received() {
        let status = samples::online();
        let (commands, _) = mpsc::channel(1);
        let manager = Manager {
            published: status.published(),
            status: status.clone(),
            commands: commands.clone(),
        };
        let fields = manager.lease().unwrap();
        let leased = status.lease.as_ref().unwrap();
        let has = |name: &str, value: Value<'_>| {
            let served: &Value<'_> = &fields[name];
            assert_eq!(*served, value, "{name}");
        };
        has("Address", leased.address.to_string().into());
        has("PrefixLength", leased.prefix.into());
        has("AcquiredUSec", status.acquired_usec.into());
        has("LeaseSeconds", leased.term.unwrap().lease.as_secs().into());
        for (code, bytes) in leased.options.iter() {
            has(&format!("Option{code}"), bytes.to_vec().into());
        }
        assert_eq!(fields.len(), 8 + leased.options.iter().count());
        let status = samples::offline();
        let manager = Manager {
            published: status.published(),
            status,
            commands,
        };
        assert!(manager.lease().unwrap().is_empty());
    }

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
