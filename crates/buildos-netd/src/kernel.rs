//! The kernel's network configuration over rtnetlink(7).
//!
//! [`Kernel::observe`] reads all that matters, [`Kernel::apply`] does one
//! operation, [`Kernel::changed`] returns when something may be different. An
//! event only means "look again", so an overrun of the event socket is no
//! special case: it is one more event.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::Ipv4Net;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol, CacheInfo,
};
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, MulticastGroup, RouteMessageBuilder,
};

use crate::link::{BridgeSettings, Link};
use crate::mac::MacAddress;
use crate::plan::{Address, Observed, Op, Route};

/// A request that the kernel has not answered by then is lost. The first bridge
/// makes the kernel load a module, which takes seconds while a machine boots; the
/// limit must stay below the unit's `WatchdogSec=`.
const TIMEOUT: Duration = Duration::from_secs(20);
/// `IFA_PROTO` of our addresses, as `RTPROT_DHCP` of our routes: numbers of the
/// same registry (`/etc/iproute2/rt_protos`).
const PROTOCOL: u8 = 16;
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
    #[error("cannot {what}")]
    Sysctl {
        /// What was asked.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The event socket is gone.
    #[error("the kernel closed the socket for events")]
    Closed,
}

type Events = futures_util::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

/// The connection to the kernel.
pub struct Kernel {
    handle: Handle,
    events: Events,
}

impl Kernel {
    /// Opens the sockets: one for requests, one for events.
    ///
    /// # Errors
    ///
    /// The kernel refuses a netlink socket.
    pub fn open() -> Result<Self, KernelError> {
        let (requests, handle, _) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
        ];
        let (listening, _, events) =
            rtnetlink::new_multicast_connection(&groups).map_err(KernelError::Socket)?;
        tokio::spawn(requests);
        tokio::spawn(listening);
        Ok(Self {
            handle,
            events: events.map(|(message, _)| message).boxed(),
        })
    }

    /// Returns when something may have changed since the last call; several
    /// events count as one. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The socket is gone; the caller ends and systemd starts it anew.
    pub async fn changed(&mut self) -> Result<(), KernelError> {
        self.events.next().await.ok_or(KernelError::Closed)?;
        // What has piled up meanwhile is answered by the same look.
        while let Some(event) = futures_util::FutureExt::now_or_never(self.events.next()) {
            event.ok_or(KernelError::Closed)?;
        }
        Ok(())
    }

    /// Reads links, and our addresses and routes.
    ///
    /// # Errors
    ///
    /// A dump failed.
    pub async fn observe(&self) -> Result<Observed, KernelError> {
        let links = self.handle.link().get().execute().try_collect::<Vec<_>>();
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
        Ok(Observed {
            links: links
                .iter()
                .filter_map(link)
                .map(|link| (link.index, link))
                .collect(),
            addresses: addresses.iter().filter_map(address).collect(),
            routes: routes.iter().filter_map(route_of).collect(),
        })
    }

    /// Does one operation. What is already so is no error.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub async fn apply(&self, op: &Op) -> Result<(), KernelError> {
        let what = describe(op);
        match op {
            Op::CreateBridge(name) => {
                let bridge = LinkBridge::new(name)
                    .stp_state(BridgeStpState::Disabled)
                    .forward_delay(BridgeSettings::OURS.forward_delay)
                    .up()
                    .build();
                ask(&what, self.handle.link().add(bridge).execute()).await
            }
            Op::DisableIpv6(_, name) => std::fs::write(disable_ipv6(name), "1")
                .map_err(|source| KernelError::Sysctl { what, source }),
            Op::SetBridge(index) => {
                let bridge = LinkMessageBuilder::<LinkBridge>::new("")
                    .index(*index)
                    .stp_state(BridgeStpState::Disabled)
                    .forward_delay(BridgeSettings::OURS.forward_delay)
                    .build();
                self.set(&what, without_name(bridge)).await
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

/// Where IPv6 is switched off for a link (kernel's `ip-sysctl`).
fn disable_ipv6(name: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv6/conf")
        .join(name)
        .join("disable_ipv6")
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
        ipv6: false,
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
            _ => {}
        }
    }
    if link.name.is_empty() {
        return None;
    }
    let sysfs = Path::new("/sys/class/net").join(&link.name);
    link.device = sysfs.join("device").exists();
    link.ipv6 = std::fs::read(disable_ipv6(&link.name)).is_ok_and(|content| content == b"0\n");
    link.wireless = sysfs.join("wireless").exists() || sysfs.join("phy80211").exists();
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

fn address(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    let mut valid = u32::MAX;
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
        valid,
    })
}

fn marks(address: &Address) -> [AddressAttribute; 2] {
    let mut info = CacheInfo::default();
    info.ifa_valid = address.valid;
    info.ifa_preferred = address.valid;
    [
        AddressAttribute::CacheInfo(info),
        AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
    ]
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

fn describe(op: &Op) -> String {
    match op {
        Op::CreateBridge(name) => format!("create bridge {name}"),
        Op::DisableIpv6(_, name) => format!("switch IPv6 off on {name}"),
        Op::SetBridge(index) => format!("switch spanning tree off on link {index}"),
        Op::SetMac(index, mac) => format!("give link {index} the hardware address {mac}"),
        Op::SetMtu(index, mtu) => format!("set the MTU of link {index} to {mtu}"),
        Op::SetUp(index) => format!("set link {index} up"),
        Op::Detach(index) => format!("take link {index} out of its bridge"),
        Op::Attach { port, bridge } => format!("put link {port} into bridge {bridge}"),
        Op::SetAddress(a) => format!("set address {} on link {}", a.net, a.link),
        Op::RemoveAddress(a) => format!("remove address {} from link {}", a.net, a.link),
        Op::AddRoute(r) => format!("add the route to {} by link {}", r.destination, r.link),
        Op::RemoveRoute(r) => format!("remove the route to {} by link {}", r.destination, r.link),
    }
}
