//! The kernel's network configuration over rtnetlink(7).
//!
//! [`Kernel::observe`] reads all that matters, [`Kernel::apply`] does one
//! operation, [`Kernel::changed`] returns when something may be different. An
//! event only means "look again", so an overrun of the event socket is no
//! special case: it is one more event.

pub mod fake;
mod monitor;

pub use monitor::Change;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use buildos_dhcp::Instant;
use futures_util::TryStreamExt as _;
use ipnet::{Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, CacheInfo,
};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgeStpState, InfoBridge, InfoData, InfoKind,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
};
use rtnetlink::sys::AsyncSocket as _;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use self::monitor::Events;
use crate::clock;
use crate::mac::MacAddress;
use crate::observed::{BridgeSettings, Link};
use crate::plan::{Address, Observed, Op, Route};
use buildos_types::MacAddress;

/// A request that the kernel has not answered by then is lost. The first bridge
/// makes the kernel load a module, which takes seconds while a machine boots; the
/// limit must stay below the unit's `WatchdogSec=`.
const TIMEOUT: Duration = Duration::from_secs(20);
/// `IFA_PROTO` of our addresses, as `RTPROT_DHCP` of our routes: numbers of the
/// same registry (`/etc/iproute2/rt_protos`).
const PROTOCOL: u8 = 16;
/// `arp_ignore` of a NIC: answers only for addresses of its own, which normally has
/// none (kernel's `ip-sysctl`).
const ARP_IGNORE_OTHERS: i32 = 1;
/// `accept_ra` of br0: also on a host that forwards, as one with virtual machines
/// may come to do (kernel's `ip-sysctl`).
const ACCEPT_RA_ALWAYS: i32 = 2;
/// `INFINITY_LIFE_TIME` of the kernel.
const FOREVER: u32 = u32::MAX;
/// Metric of our routes; those of an administrator are normally 0 and win.
const METRIC: u32 = 1024;

/// The kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// A request failed.
    #[error("cannot {what}")]
    Request {
        /// What was asked.
        what: String,
        /// Why.
        source: rtnetlink::Error,
    },
    /// No answer.
    #[error("cannot {what}: no answer from the kernel within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// What was asked.
        what: String,
    },
    /// A setting under `/proc/sys` could not be changed.
    #[error("cannot write {value} to {path}")]
    Setting {
        /// The file.
        path: String,
        /// The value.
        value: i32,
        /// Why.
        source: io::Error,
    },
    /// The event socket is broken.
    #[error("cannot hear the kernel's announcements")]
    Events(#[source] io::Error),
}

/// The connection to the kernel.
pub struct Kernel {
    handle: Handle,
    events: Events,
    /// Netlink port of the requests; what they change is announced with it.
    port: u32,
}

impl Kernel {
    /// Opens the sockets: one for requests, one for events.
    ///
    /// # Errors
    ///
    /// The kernel refuses a netlink socket.
    pub fn open() -> Result<Self, KernelError> {
        let (mut requests, handle, _) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
        // The first socket that is bound has the number of the process as its port
        // (netlink(7), nl_pid), which tells others who made a change.
        let own = requests.socket_mut().socket_mut().bind_auto();
        let port = own.map_err(KernelError::Socket)?.port_number();
        let events = Events::listen().map_err(KernelError::Socket)?;
        tokio::spawn(requests);
        Ok(Self {
            handle,
            events,
            port,
        })
    }

    /// Returns when somebody else may have changed something since the last call;
    /// several events count as one. What [`Kernel::apply`] did is no change.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// The socket is broken; the caller ends and systemd starts it anew.
    pub async fn changed(&self) -> Result<Change, KernelError> {
        self.events
            .next(self.port)
            .await
            .map_err(KernelError::Events)
    }

    /// Reads links, and our addresses and routes.
    ///
    /// # Errors
    ///
    /// A dump failed.
    pub async fn observe(&self) -> Result<Observed, KernelError> {
        let links = self
            .handle
            .link()
            .get()
            .set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats])
            .execute()
            .try_collect::<Vec<_>>();
        let links = ask("list links", links).await?;
        let addresses = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect::<Vec<_>>();
        let addresses = ask("list addresses", addresses).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self
            .handle
            .route()
            .get(route)
            .execute()
            .try_collect::<Vec<_>>();
        let routes = ask("list routes", routes).await?;
        let now = clock::now();
        Ok(Observed {
            links: links
                .iter()
                .filter_map(link)
                .map(|link| (link.index, link))
                .collect(),
            addresses: addresses.iter().filter_map(|m| address(m, now)).collect(),
            routes: routes.iter().filter_map(route_of).collect(),
            ipv6: addresses.iter().filter_map(ipv6_address).collect(),
        })
    }

    /// Does one operation on what was observed. What is already so is no error.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub async fn apply(&self, op: &Op, observed: &Observed) -> Result<(), KernelError> {
        let what = op.describe(observed);
        let set = |index: &u32, settings: &[Setting]| match observed.links.get(index) {
            Some(link) => write_settings(&link.name, settings),
            None => Ok(()),
        };
        match op {
            Op::CreateBridge(name, mac) => {
                let bridge = LinkMessageBuilder::<LinkBridge>::new(name)
                    .address(mac.0.to_vec())
                    .stp_state(BridgeStpState::Disabled)
                    .forward_delay(BridgeSettings::OURS.forward_delay)
                    .build();
                ask(&what, self.handle.link().add(bridge).execute()).await
            }
            Op::Silence(index) => set(
                index,
                &[
                    ("ipv6", "disable_ipv6", 1),
                    ("ipv4", "arp_ignore", ARP_IGNORE_OTHERS),
                ],
            ),
            Op::DisableIpv6(index) => set(index, &[("ipv6", "disable_ipv6", 1)]),
            Op::EnableIpv6(index) => set(
                index,
                &[
                    ("ipv6", "accept_ra", ACCEPT_RA_ALWAYS),
                    ("ipv6", "disable_ipv6", 0),
                ],
            ),
            Op::SetBridge(index) => {
                let bridge = || LinkMessageBuilder::<LinkBridge>::new("").index(*index);
                let delay = BridgeSettings::OURS.forward_delay;
                // One after the other: with spanning tree on, the kernel refuses the delay.
                for bridge in [
                    bridge().stp_state(BridgeStpState::Disabled).build(),
                    bridge().forward_delay(delay).build(),
                ] {
                    // Not by RTM_SETLINK, which passes over the settings of a kind.
                    let change = self.handle.link().change(without_name(bridge));
                    ask(&what, change.execute()).await?;
                }
                Ok(())
            }
            Op::SetMac(index, mac) => {
                self.set(&what, change(*index).address(mac.0.to_vec()).build())
                    .await
            }
            Op::SetMtu(index, mtu) => self.set(&what, change(*index).mtu(*mtu).build()).await,
            Op::SetUp(index) => self.set(&what, change(*index).up().build()).await,
            Op::Detach(index) => self.set(&what, change(*index).nocontroller().build()).await,
            Op::Attach { port, bridge } => {
                self.set(&what, change(*port).controller(*bridge).build())
                    .await
            }
            Op::SetAddress(address) => {
                let ip = IpAddr::V4(address.net.addr());
                let mut request = self
                    .handle
                    .address()
                    .add(address.link, ip, address.net.prefix_len())
                    .replace();
                request.message_mut().attributes.extend(marks(address));
                ask(&what, request.execute()).await
            }
            Op::RemoveAddress(address) => {
                ask(&what, self.handle.address().del(removal(address)).execute()).await
            }
            Op::AddRoute(route) => {
                ask(
                    &what,
                    self.handle
                        .route()
                        .add(message_of(route))
                        .replace()
                        .execute(),
                )
                .await
            }
            Op::RemoveRoute(route) => {
                ask(&what, self.handle.route().del(message_of(route)).execute()).await
            }
        }
    }

    async fn set(&self, what: &str, message: LinkMessage) -> Result<(), KernelError> {
        ask(what, self.handle.link().set(message).execute()).await
    }
}

/// Awaits an answer of the kernel. That something is there already or gone
/// already is what was wanted; the next look shows what really is.
async fn ask<T: Default>(
    what: &str,
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, KernelError> {
    let result = tokio::time::timeout(TIMEOUT, request).await;
    match result.map_err(|_| KernelError::Timeout {
        what: what.to_owned(),
    })? {
        Ok(answer) => Ok(answer),
        Err(rtnetlink::Error::NetlinkError(error))
            if [
                -libc::EEXIST,
                -libc::ESRCH,
                -libc::ENODEV,
                -libc::EADDRNOTAVAIL,
            ]
            .contains(&error.raw_code()) =>
        {
            tracing::debug!(code = error.raw_code(), "no need to {what}");
            Ok(T::default())
        }
        Err(source) => Err(KernelError::Request {
            what: what.to_owned(),
            source,
        }),
    }
}

/// Family, name and value of a link's setting (kernel's `ip-sysctl`).
type Setting = (&'static str, &'static str, i32);

/// Writes settings in their order. A kernel without IPv6 has none of its settings.
fn write_settings(link: &str, settings: &[Setting]) -> Result<(), KernelError> {
    for (family, name, value) in settings {
        let path = format!("/proc/sys/net/{family}/conf/{link}/{name}");
        match std::fs::write(&path, value.to_string()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(KernelError::Setting {
                    path,
                    value: *value,
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn change(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}

/// The builder of a bridge insists on a name; an empty one would be an error.
fn without_name(mut message: LinkMessage) -> LinkMessage {
    message
        .attributes
        .retain(|attribute| !matches!(attribute, LinkAttribute::IfName(_)));
    message
}

fn link(message: &LinkMessage) -> Option<Link> {
    // Port changes are also sent with family AF_BRIDGE; those are no links.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        controller: None,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        kind: None,
        device: false,
        wireless: false,
        ipv6: None,
        answers_arp: false,
        bridge: None,
    };
    #[allow(clippy::wildcard_enum_match_arm)] // The kernel sends dozens of others.
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) if link.ethernet => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddress);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|i| *i != 0),
            LinkAttribute::LinkInfo(info) => {
                (link.kind, link.bridge) = kind(info);
            }
            LinkAttribute::AfSpecUnspec(families) => {
                (link.answers_arp, link.ipv6) = protocols(families);
            }
            _ => {}
        }
    }
    if link.name.is_empty() {
        return None;
    }
    // Nothing is read of links of a kind, of which there may be hundreds.
    if link.kind.is_none() {
        let sysfs = Path::new("/sys/class/net").join(&link.name);
        link.device = sysfs.join("device").exists();
        link.wireless = sysfs.join("wireless").exists() || sysfs.join("phy80211").exists();
    }
    Some(link)
}

#[allow(clippy::wildcard_enum_match_arm)] // Only the kind and bridges matter.
fn kind(info: &[LinkInfo]) -> (Option<String>, Option<BridgeSettings>) {
    let mut kind = None;
    let mut bridge = None;
    for part in info {
        match part {
            LinkInfo::Kind(InfoKind::Other(name)) => kind = Some(name.clone()),
            LinkInfo::Kind(known) => kind = Some(known.to_string()),
            LinkInfo::Data(InfoData::Bridge(settings)) => {
                let mut found = BridgeSettings {
                    stp: false,
                    forward_delay: 0,
                };
                for setting in settings {
                    match setting {
                        InfoBridge::StpState(state) => {
                            found.stp = *state != BridgeStpState::Disabled;
                        }
                        InfoBridge::ForwardDelay(delay) => found.forward_delay = *delay,
                        _ => {}
                    }
                }
                bridge = Some(found);
            }
            _ => {}
        }
    }
    (kind, bridge)
}

/// Whether the link answers ARP for other links' addresses, and whether it has IPv6.
#[allow(clippy::wildcard_enum_match_arm)] // Other protocols do not matter.
fn protocols(families: &[AfSpecUnspec]) -> (bool, Option<bool>) {
    let (mut arp, mut ipv6) = (false, None);
    for family in families {
        match family {
            AfSpecUnspec::Inet(parts) => {
                arp |= parts
                    .iter()
                    .any(|part| matches!(part, AfSpecInet::DevConf(c) if c.arp_ignore == 0));
            }
            AfSpecUnspec::Inet6(parts) => {
                ipv6 = parts.iter().find_map(|part| match part {
                    AfSpecInet6::DevConf(settings) => Some(settings.disable_ipv6 == 0),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (arp, ipv6)
}

fn address(message: &AddressMessage, now: Instant) -> Option<Address> {
    let mut ip = None;
    let mut valid = FOREVER;
    let mut ours = false;
    #[allow(clippy::wildcard_enum_match_arm)] // The rest does not matter.
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(local)) => ip = Some(*local),
            AddressAttribute::CacheInfo(info) => valid = info.ifa_valid,
            AddressAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    let net = Ipv4Net::new(ip?, message.header.prefix_len).ok()?;
    ours.then_some(Address {
        link: message.header.index,
        net,
        expires: (valid != FOREVER).then(|| now + Duration::from_secs(valid.into())),
    })
}

/// An IPv6 address that is in use.
fn ipv6_address(message: &AddressMessage) -> Option<(u32, Ipv6Net)> {
    let mut ip = None;
    #[allow(clippy::wildcard_enum_match_arm)] // The rest does not matter.
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(IpAddr::V6(address)) => ip = Some(*address),
            // Under duplicate address detection, or failed it.
            AddressAttribute::Flags(flags)
                if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) =>
            {
                return None;
            }
            _ => {}
        }
    }
    let net = Ipv6Net::new(ip?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

fn marks(address: &Address) -> [AddressAttribute; 2] {
    let valid = address.expires.map_or(FOREVER, whole_seconds);
    let mut info = CacheInfo::default();
    info.ifa_valid = valid;
    info.ifa_preferred = valid;
    [
        AddressAttribute::CacheInfo(info),
        AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
    ]
}

/// What is left until `end`, rounded down: an address must never outlive its lease.
/// Zero would be an error to the kernel.
fn whole_seconds(end: Instant) -> u32 {
    let left = end.saturating_sub(clock::now()).as_secs();
    u32::try_from(left).unwrap_or(FOREVER).clamp(1, FOREVER - 1)
}

fn removal(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = address.link;
    message.header.prefix_len = address.net.prefix_len();
    message.header.flags = AddressHeaderFlags::empty();
    message
        .attributes
        .push(AddressAttribute::Local(IpAddr::V4(address.net.addr())));
    message
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN
        || message.header.protocol != RouteProtocol::Dhcp
        || message.header.address_family != AddressFamily::Inet
    {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let (mut link, mut gateway, mut source) = (None, None, None);
    #[allow(clippy::wildcard_enum_match_arm)] // The rest does not matter.
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    Some(Route {
        link: link?,
        destination: Ipv4Net::new(destination, message.header.destination_prefix_length).ok()?,
        gateway,
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        source: source.unwrap_or(Ipv4Addr::UNSPECIFIED),
    })
}

fn message_of(route: &Route) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.addr(), route.destination.prefix_len())
        .output_interface(route.link)
        .protocol(RouteProtocol::Dhcp)
        .pref_source(route.source)
        .priority(METRIC);
    match route.gateway {
        Some(gateway) => builder = builder.gateway(gateway),
        None => builder = builder.scope(rtnetlink::packet_route::route::RouteScope::Link),
    }
    if route.onlink {
        builder = builder.onlink();
    }
    builder.build()
}
