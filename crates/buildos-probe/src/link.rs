//! Runs step `link`: connects the probe to the bridge with a veth pair.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use buildos_dhcp::Lease;
use buildos_netlink::{BlockingSocket, RouteNetlinkMessage};
use buildos_types::InterfaceName;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::identity::{INTERFACE, MAC, PROBE_END};

/// Time limit for the kernel to remove the previous probe's namespace, and to report
/// carrier.
const LIMIT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

type Netlink = BlockingSocket<RouteNetlinkMessage>;

/// The veth pair could not be made or configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("standard input is not the host's netlink socket")]
    Host(#[source] io::Error),
    #[error("cannot open the probe's network namespace")]
    Namespace(#[source] io::Error),
    #[error("there is no bridge {0}")]
    NoBridge(InterfaceName, #[source] io::Error),
    #[error("cannot make {INTERFACE} a port of {0}")]
    Port(InterfaceName, #[source] io::Error),
    #[error("{0} is gone")]
    Lost(String, #[source] io::Error),
    #[error("cannot configure {PROBE_END}")]
    Configure(#[source] io::Error),
}

/// Connects the namespace of the process to the bridge, and waits for carrier.
pub(crate) fn connect(bridge: &InterfaceName) -> Result<(), LinkError> {
    let mut host = inherited().map_err(LinkError::Host)?;
    let namespace = File::open("/proc/self/ns/net").map_err(LinkError::Namespace)?;
    let index = index_of(&mut host, bridge.as_str())
        .map_err(|error| LinkError::NoBridge(bridge.clone(), error))?;
    let end = Instant::now() + LIMIT;
    loop {
        match host.create(veth(index, namespace.as_raw_fd())) {
            Ok(()) => break,
            // The previous probe's port goes away with its namespace, a moment after the
            // process.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && Instant::now() < end => {
                std::thread::sleep(POLL_INTERVAL);
            }
            Err(error) => return Err(LinkError::Port(bridge.clone(), error)),
        }
    }
    let mut probe = Netlink::open().map_err(LinkError::Namespace)?;
    set_up(&mut probe).map_err(LinkError::Configure)?;
    let running = |netlink: &mut Netlink, name: &str| {
        wait_until_running(netlink, name).map_err(|error| LinkError::Lost(name.into(), error))
    };
    running(&mut probe, PROBE_END)?;
    running(&mut host, INTERFACE)?;
    running(&mut host, bridge.as_str())
}

/// Returns the host's netlink socket, which is standard input.
fn inherited() -> io::Result<Netlink> {
    Netlink::inherit(io::stdin().as_fd().try_clone_to_owned()?)
}

/// Sets the probe's end up. The kernel creates it down, as its peer does not exist yet.
fn set_up(netlink: &mut Netlink) -> io::Result<()> {
    let mut message = up();
    message.header.index = index_of(netlink, PROBE_END)?;
    netlink.change(RouteNetlinkMessage::NewLink(message))
}

/// Waits for the running flag, so that the first DHCP message is not lost. A link that
/// just got carrier drops packets until the kernel's link watch has run, which can take
/// a second.
fn wait_until_running(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let end = Instant::now() + LIMIT;
    while !link(netlink, name)?
        .header
        .flags
        .contains(LinkFlags::Running)
    {
        if Instant::now() > end {
            // The next step then fails, and reports the reason.
            break;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Adds the address of the lease and its default route to the probe's end.
pub(crate) fn configure(lease: &Lease, gateway: Ipv4Addr) -> Result<(), LinkError> {
    let configure = || -> io::Result<()> {
        let mut netlink = Netlink::open()?;
        let index = index_of(&mut netlink, PROBE_END)?;
        netlink.create(address(index, lease.address, lease.prefix))?;
        netlink.create(default_route(index, gateway))
    };
    configure().map_err(LinkError::Configure)
}

fn index_of(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    Ok(link(netlink, name)?.header.index)
}

fn link(netlink: &mut Netlink, name: &str) -> io::Result<LinkMessage> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    let answer = netlink.get(RouteNetlinkMessage::GetLink(message))?;
    let RouteNetlinkMessage::NewLink(link) = answer else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok(link)
}

fn up() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Describes the veth pair: the host's end is up and a port of the bridge, the probe's
/// end is in the namespace with this descriptor.
fn veth(bridge: u32, namespace: i32) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes
        .push(LinkAttribute::IfName(PROBE_END.into()));
    peer.attributes.push(LinkAttribute::Address(MAC.0.to_vec()));
    peer.attributes.push(LinkAttribute::NetNsFd(namespace));
    let mut port = up();
    port.attributes
        .push(LinkAttribute::IfName(INTERFACE.into()));
    port.attributes.push(LinkAttribute::Controller(bridge));
    port.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(port)
}

fn address(index: u32, address: Ipv4Addr, prefix: u8) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = prefix;
    message
        .attributes
        .push(AddressAttribute::Local(address.into()));
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(index: u32, gateway: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Dhcp;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message
        .attributes
        .push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    message.attributes.push(RouteAttribute::Oif(index));
    RouteNetlinkMessage::NewRoute(message)
}
