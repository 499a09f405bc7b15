//! The step that plugs us into the bridge, by a veth pair: one end here, the
//! other one a port of the bridge.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use buildos_dhcp::Lease;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::Netlink;
use crate::{INTERFACE, MAC};

/// Our end.
pub(crate) const HERE: &str = "eth0";
/// A namespace that ended takes a moment to be gone, and the port with it.
const FAREWELL: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// The cable could not be plugged in, or is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the netlink socket of the host is not our standard input")]
    Host(#[source] io::Error),
    #[error("cannot open our own network namespace")]
    Namespace(#[source] io::Error),
    #[error("there is no bridge {0}")]
    NoBridge(String, #[source] io::Error),
    #[error("cannot make {INTERFACE} a port of {0}")]
    Port(String, #[source] io::Error),
    #[error("{0} is gone")]
    Lost(String, #[source] io::Error),
    #[error("cannot configure {HERE}")]
    Configure(#[source] io::Error),
}

/// Plugs us into the bridge.
pub(crate) fn plug(bridge: &str) -> Result<(), LinkError> {
    let mut host = Netlink::inherited().map_err(LinkError::Host)?;
    let namespace = File::open("/proc/self/ns/net").map_err(LinkError::Namespace)?;
    let index =
        index_of(&mut host, bridge).map_err(|error| LinkError::NoBridge(bridge.into(), error))?;
    let end = Instant::now() + FAREWELL;
    loop {
        match host.create(veth(index, namespace.as_raw_fd())) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && Instant::now() < end => {
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(LinkError::Port(bridge.into(), error)),
        }
    }
    let mut here = Netlink::here().map_err(LinkError::Namespace)?;
    set_up(&mut here).map_err(LinkError::Configure)?;
    let running = |netlink: &mut Netlink, name: &str| {
        wait_until_running(netlink, name).map_err(|error| LinkError::Lost(name.into(), error))
    };
    running(&mut here, HERE)?;
    running(&mut host, INTERFACE)?;
    running(&mut host, bridge)
}

/// Our end comes down, as it cannot be up before the other one exists.
fn set_up(here: &mut Netlink) -> io::Result<()> {
    let mut message = up();
    message.header.index = index_of(here, HERE)?;
    here.change(RouteNetlinkMessage::NewLink(message))
}

/// An interface that has just got carrier drops what it is to send until the
/// kernel's link watch has seen that, which looks at some once a second only.
/// So a question that is asked before gets no answer.
fn wait_until_running(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let end = Instant::now() + FAREWELL;
    while !link(netlink, name)?
        .header
        .flags
        .contains(LinkFlags::Running)
    {
        if Instant::now() > end {
            // The next step says what is missing.
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Gives our end the address of the lease, and the way out that it names.
pub(crate) fn configure(lease: &Lease, gateway: Ipv4Addr) -> Result<(), LinkError> {
    let configure = || -> io::Result<()> {
        let mut here = Netlink::here()?;
        let index = index_of(&mut here, HERE)?;
        here.create(address(index, lease.address, lease.prefix))?;
        here.create(default_route(index, gateway))
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

/// The pair: the port in the bridge, and up, and its other end in the namespace
/// with that descriptor.
fn veth(bridge: u32, here: i32) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(HERE.into()));
    peer.attributes.push(LinkAttribute::Address(MAC.to_vec()));
    peer.attributes.push(LinkAttribute::NetNsFd(here));
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
