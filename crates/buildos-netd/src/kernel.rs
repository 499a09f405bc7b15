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

use std::net::{IpAddr, Ipv4Addr};

use buildos_dhcp::Instant;
use buildos_netlink::{Change, Monitor};
use buildos_types::LinkIndex;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkExtentMask, LinkMessage};
use rtnetlink::sys::AsyncSocket as _;
use rtnetlink::{Handle, RouteMessageBuilder};

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
    handle: Handle,
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
        let (mut requests, handle, _) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
        // The kernel assigns the process id as the port of the first socket that a
        // process binds (netlink(7), nl_pid). Other programs that monitor changes see it
        // as their author.
        let own = requests.socket_mut().socket_mut().bind_auto();
        let port = own.map_err(KernelError::Socket)?.port_number();
        let monitor = Monitor::rtnetlink(GROUPS as u32).map_err(KernelError::Socket)?;
        tokio::spawn(requests);
        Ok(Self {
            handle,
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

    async fn set(&self, operation: &str, message: LinkMessage) -> Result<(), KernelError> {
        request(
            self.deadline,
            operation,
            self.handle.link().set(message).execute(),
        )
        .await
    }

    /// Applies the bridge settings with RTM_NEWLINK: RTM_SETLINK ignores settings of the
    /// link kind.
    async fn set_bridge(&self, operation: &str, index: LinkIndex) -> Result<(), KernelError> {
        for message in build::bridge_settings(index) {
            request(
                self.deadline,
                operation,
                self.handle.link().change(message).execute(),
            )
            .await?;
        }
        Ok(())
    }
}

impl Kernel for Rtnetlink {
    type Error = KernelError;

    fn now(&self) -> Instant {
        clock::now()
    }

    async fn observe(&mut self) -> Result<Observed, KernelError> {
        let links = self.handle.link().get();
        let links = links.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let links = request(
            self.deadline,
            "list links",
            links.execute().try_collect::<Vec<_>>(),
        )
        .await?;
        let addresses = self.handle.address().get().execute();
        let addresses = request(
            self.deadline,
            "list addresses",
            addresses.try_collect::<Vec<_>>(),
        )
        .await?;
        let routes = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self.handle.route().get(routes).execute();
        let routes = request(self.deadline, "list routes", routes.try_collect::<Vec<_>>()).await?;
        let now = self.now();
        let parsed = addresses.iter().filter_map(|m| parse::address(m, now));
        let (marked, others): (Vec<_>, Vec<_>) = parsed.partition(|(_, marked)| *marked);
        Ok(Observed {
            links: links
                .iter()
                .filter_map(parse::link)
                .map(|link| (link.index, link))
                .collect(),
            addresses: marked.into_iter().map(|(address, _)| address).collect(),
            other_addresses: others.iter().map(|(a, _)| (a.link, a.net)).collect(),
            ipv6_disabled: sysctl::is_ipv6_disabled(),
            routes: routes.iter().filter_map(parse::route).collect(),
            ipv6: addresses.iter().filter_map(parse::ipv6_address).collect(),
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
                request(
                    self.deadline,
                    &operation,
                    self.handle.link().add(bridge).execute(),
                )
                .await
            }
            Op::DisableIpv6AndArp(index) => {
                if let Some(link) = observed.links.get(index) {
                    sysctl::disable_lro(&link.name);
                }
                sysctl(index, &sysctl::IPV6_AND_ARP_OFF)
            }
            Op::DisableIpv6(index) => sysctl(index, &sysctl::IPV6_OFF),
            Op::EnableIpv6(index) => sysctl(index, &sysctl::IPV6_ON),
            Op::SetBridge(index) => self.set_bridge(&operation, *index).await,
            Op::SetMac(index, mac) => {
                let message = build::change(*index).address(mac.0.to_vec()).build();
                self.set(&operation, message).await
            }
            Op::SetMtu(index, mtu) => {
                self.set(&operation, build::change(*index).mtu(*mtu).build())
                    .await
            }
            Op::SetUp(index) => {
                self.set(&operation, build::change(*index).up().build())
                    .await
            }
            Op::Detach(index) => {
                self.set(&operation, build::change(*index).nocontroller().build())
                    .await
            }
            Op::Attach { port, bridge } => {
                let message = build::change(*port).controller(bridge.get()).build();
                self.set(&operation, message).await
            }
            Op::SetAddress(address) => {
                let (link, ip) = (address.link.get(), IpAddr::V4(address.net.addr()));
                let add = self.handle.address();
                let mut add = add.add(link, ip, address.net.prefix_len()).replace();
                let attributes = build::lifetime_and_mark(address, self.now());
                add.message_mut().attributes.extend(attributes);
                request(self.deadline, &operation, add.execute()).await
            }
            Op::RemoveAddress(address) => {
                let message = build::removal(address);
                request(
                    self.deadline,
                    &operation,
                    self.handle.address().del(message).execute(),
                )
                .await
            }
            Op::AddRoute(route) => {
                let add = self.handle.route().add(build::route(route));
                // Without replacing: a route of an administrator keeps its place.
                request(self.deadline, &operation, add.execute()).await
            }
            Op::RemoveRoute(route) => {
                let message = build::route(route);
                request(
                    self.deadline,
                    &operation,
                    self.handle.route().del(message).execute(),
                )
                .await
            }
        }
    }
}

/// Awaits the kernel's answer. An object that already exists, or is already gone, is not an
/// error: the next observation shows the result.
async fn request<T: Default>(
    deadline: tokio::time::Instant,
    operation: &str,
    answer: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, KernelError> {
    const ALREADY_DONE: [i32; 4] = [
        -libc::EEXIST,
        -libc::ESRCH,
        -libc::ENODEV,
        -libc::EADDRNOTAVAIL,
    ];
    let operation = || operation.to_owned();
    let answer = tokio::time::timeout_at(deadline, answer).await;
    match answer.map_err(|_| KernelError::Timeout {
        operation: operation(),
    })? {
        Ok(answer) => Ok(answer),
        Err(rtnetlink::Error::NetlinkError(error)) if ALREADY_DONE.contains(&error.raw_code()) => {
            tracing::debug!(code = error.raw_code(), "no need to {}", operation());
            Ok(T::default())
        }
        Err(source) => Err(KernelError::Request {
            operation: operation(),
            source,
        }),
    }
}
