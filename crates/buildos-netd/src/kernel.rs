//! Reads and changes the kernel's network configuration over rtnetlink(7).
//!
//! | module | subject |
//! |---|---|
//! | [`Rtnetlink`] | requests (observe, apply) and notifications |
//! | `parse`, `build` | conversion of netlink messages to values, and of values to messages |
//! | `sysctl` | settings below `/proc/sys/net` |
//! | [`fake`] | a kernel as a value, for simulation and tests |
//!
//! A notification only triggers a re-read. Lost notifications (ENOBUFS) are therefore
//! treated like a notification.

mod build;
mod error;
pub mod fake;
#[cfg(test)]
mod fuzz;
mod parse;
mod sysctl;

use std::io;

use buildos_dhcp::Instant;
use buildos_netlink::{Change, Monitor, RouteNetlinkMessage, Socket};
use rtnetlink::LinkMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;

pub use self::error::KernelError;
use self::error::TIMEOUT;
use crate::clock;
use crate::observed::{Link, Observed};
use crate::plan::Op;
use crate::reconcile::Kernel;

/// Notifications of links, IPv4 addresses and routes, and IPv6 addresses
/// (linux/rtnetlink.h).
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR;

/// The connection to the kernel.
pub struct Rtnetlink {
    requests: Socket<RouteNetlinkMessage>,
    monitor: Monitor,
    /// Time by which the kernel must have answered all requests of the current step.
    deadline: tokio::time::Instant,
    /// Netlink port of the requests. Notifications of their effects carry it.
    port: u32,
}

impl Rtnetlink {
    /// Opens a socket for requests and one for notifications.
    ///
    /// # Errors
    ///
    /// The kernel refuses a netlink socket.
    pub fn open() -> Result<Self, KernelError> {
        // The kernel assigns the process id as the port of the first socket that a
        // process binds (netlink(7), nl_pid). Other programs that monitor changes see it
        // as their author.
        let requests = Socket::open().map_err(KernelError::Socket)?;
        let port = requests.port().map_err(KernelError::Socket)?;
        let monitor = Monitor::rtnetlink(GROUPS as u32).map_err(KernelError::Socket)?;
        Ok(Self {
            requests,
            monitor,
            deadline: tokio::time::Instant::now() + TIMEOUT,
            port,
        })
    }

    /// Begins a step of the event loop, in which the kernel has [`TIMEOUT`] for all requests.
    pub fn begin_step(&mut self) {
        self.deadline = tokio::time::Instant::now() + TIMEOUT;
    }

    /// Waits for a change by another process or the kernel. Combines all changes since the
    /// last call, and ignores those that `apply` made. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The socket failed. Restart the daemon.
    pub async fn changed(&self) -> Result<Change, KernelError> {
        self.monitor
            .changed(Some(self.port))
            .await
            .map_err(KernelError::Monitor)
    }

    async fn read(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        request(self.deadline, operation, self.requests.readable(message)).await
    }

    /// Changes or removes what exists.
    async fn change(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<(), KernelError> {
        request(self.deadline, operation, self.requests.change(message)).await
    }

    async fn create(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<(), KernelError> {
        request(self.deadline, operation, self.requests.create(message)).await
    }
}

impl Kernel for Rtnetlink {
    type Error = KernelError;

    fn now(&self) -> Instant {
        clock::now()
    }

    #[allow(clippy::wildcard_enum_match_arm)] // Each answer has one kind.
    async fn observe(&mut self) -> Result<Observed, KernelError> {
        let mut links = LinkMessage::default();
        let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        links.attributes.push(mask);
        let links = RouteNetlinkMessage::GetLink(links);
        let links = self.read("list links", links).await?;
        let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let addresses = self.read("list addresses", addresses).await?;
        let mut routes = RouteMessage::default();
        routes.header.address_family = AddressFamily::Inet;
        let routes = RouteNetlinkMessage::GetRoute(routes);
        let routes = self.read("list routes", routes).await?;
        let links = links.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => parse::link(link),
            _ => None,
        });
        let addresses = addresses.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        });
        let routes = routes.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => parse::route(route),
            _ => None,
        });
        let now = self.now();
        let ipv6 = addresses.clone().filter_map(parse::ipv6_address);
        let parsed = addresses.clone().filter_map(|m| parse::address(m, now));
        let (marked, others): (Vec<_>, Vec<_>) = parsed.partition(|(_, marked)| *marked);
        Ok(Observed {
            links: links.map(|link| (link.index, link)).collect(),
            addresses: marked.into_iter().map(|(address, _)| address).collect(),
            other_addresses: others.iter().map(|(a, _)| (a.link, a.net)).collect(),
            ipv6_disabled: sysctl::is_ipv6_disabled(),
            routes: routes.collect(),
            ipv6: ipv6.collect(),
        })
    }

    fn has_link(&self, link: &Link) -> bool {
        let path = format!("/sys/class/net/{}/ifindex", link.name);
        let index = std::fs::read_to_string(path).unwrap_or_default();
        index.trim() == link.index.to_string()
    }

    async fn apply(&mut self, op: &Op, observed: &Observed) -> Result<(), KernelError> {
        let operation = op.describe(observed);
        let sysctl = |index, settings| match observed.links.get(index) {
            Some(link) => sysctl::write(&link.name, settings),
            None => Ok(()),
        };
        match op {
            Op::CreateBridge(name, mac) => {
                let bridge = build::new_bridge(name, *mac);
                self.create(&operation, bridge).await
            }
            Op::CreateVlan(vlan) => self.create(&operation, build::new_vlan(vlan)).await,
            Op::RemoveVlan(index) => {
                let removal = build::link_removal(*index);
                self.change(&operation, removal).await
            }
            Op::DisableIpv6AndArp(index) => {
                // A VLAN has no LRO of its own.
                let nic = observed.links.get(index).filter(|link| link.vlan.is_none());
                if let Some(link) = nic {
                    sysctl::disable_lro(&link.name);
                }
                sysctl(index, &sysctl::IPV6_AND_ARP_OFF)
            }
            Op::DisableIpv6(index) => sysctl(index, &sysctl::IPV6_OFF),
            Op::EnableIpv6(index) => sysctl(index, &sysctl::IPV6_ON),
            Op::SetBridge(index) => {
                for message in build::bridge_settings(*index) {
                    self.change(&operation, message).await?;
                }
                Ok(())
            }
            Op::SetMac(index, mac) => {
                let mac = mac.0.to_vec();
                self.change(&operation, build::change(*index, |link| link.address(mac)))
                    .await
            }
            Op::SetMtu(index, mtu) => {
                self.change(&operation, build::change(*index, |link| link.mtu(*mtu)))
                    .await
            }
            Op::SetUp(index) => {
                self.change(&operation, build::change(*index, LinkMessageBuilder::up))
                    .await
            }
            Op::Detach(index) => {
                self.change(
                    &operation,
                    build::change(*index, |link| link.nocontroller()),
                )
                .await
            }
            Op::Attach { port, bridge } => {
                let bridge = bridge.get();
                self.change(
                    &operation,
                    build::change(*port, |link| link.controller(bridge)),
                )
                .await
            }
            Op::SetAddress(address) => {
                let message = build::address(address, self.now());
                let replaced = self.requests.replace(message);
                request(self.deadline, &operation, replaced).await
            }
            Op::RemoveAddress(address) => self.change(&operation, build::removal(address)).await,
            Op::AddRoute(route) => {
                // Without replacing: a route of an administrator keeps its place.
                let route = RouteNetlinkMessage::NewRoute(build::route(route));
                self.create(&operation, route).await
            }
            Op::RemoveRoute(route) => {
                let route = RouteNetlinkMessage::DelRoute(build::route(route));
                self.change(&operation, route).await
            }
        }
    }
}

/// Awaits the kernel's answer. An object that already exists, or is already gone, is not an
/// error: the next observation shows the result.
async fn request<T: Default>(
    deadline: tokio::time::Instant,
    operation: &str,
    answer: impl Future<Output = io::Result<T>>,
) -> Result<T, KernelError> {
    const ALREADY_DONE: [i32; 4] = [libc::EEXIST, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL];
    let operation = || operation.to_owned();
    let answer = tokio::time::timeout_at(deadline, answer).await;
    match answer.map_err(|_| KernelError::Timeout {
        operation: operation(),
    })? {
        Ok(answer) => Ok(answer),
        Err(source) => match source.raw_os_error() {
            Some(code) if ALREADY_DONE.contains(&code) => {
                tracing::debug!(code, "no need to {}", operation());
                Ok(T::default())
            }
            _ => Err(KernelError::Request {
                operation: operation(),
                source,
            }),
        },
    }
}
