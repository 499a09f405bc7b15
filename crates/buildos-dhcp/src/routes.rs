//! The routes of a lease, from options 121, 33 and 3.
//!
//! Classless routes (121) replace the others as a whole (RFC 3442). Else the
//! default gateway is the first usable router (3), and the static routes (33)
//! add to it, each to one host, for their format has no masks (RFC 2132,
//! section 5.8).

use std::net::Ipv4Addr;

use dhcproto::v4::DhcpOption;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::options::is_host;
use crate::{Options, Refusal};

/// One route of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; `0.0.0.0/0` is the default route.
    pub destination: Ipv4Net,
    /// By whom; none when the destination itself is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// The gateway is on the link although no subnet says so (`onlink` of
    /// iproute2): the lease has a /32 mask.
    pub onlink: bool,
}

impl Route {
    /// Whether this is the default route.
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }
}

/// The routes that follow from the options for this address.
///
/// A default gateway out of reach is a reason to refuse the whole message: with
/// such a lease the host would be configured and yet reach nobody. Any other
/// route out of reach is left out alone.
pub(crate) fn routes(interface: Ipv4Net, options: &Options) -> Result<Vec<Route>, Refusal> {
    match classless(options) {
        Some(routes) => reachable(interface, routes),
        None => {
            let mut routes = classful(options);
            routes.extend(default_route(interface, options)?);
            reachable(interface, routes)
        }
    }
}

type Pair = (Ipv4Net, Ipv4Addr);

fn classless(options: &Options) -> Option<Vec<Pair>> {
    let DhcpOption::ClasslessStaticRoute(routes) = options.decode(121, &[])? else {
        return None;
    };
    let routes = routes.into_iter().map(|(to, by)| (to.trunc(), by));
    Some(routes.collect()).filter(|routes: &Vec<_>| !routes.is_empty())
}

fn classful(options: &Options) -> Vec<Pair> {
    let Some(DhcpOption::StaticRoutingTable(routes)) = options.decode(33, &[]) else {
        return Vec::new();
    };
    // RFC 2132: the default route is no legal destination here.
    routes
        .into_iter()
        .filter(|(to, by)| is_host(to) && is_host(by))
        .map(|(to, by)| (Ipv4Net::from(to), by))
        .collect()
}

fn default_route(interface: Ipv4Net, options: &Options) -> Result<Option<Pair>, Refusal> {
    if options.get(3).is_none() {
        return Ok(None);
    }
    let routers = options.hosts(3).ok_or(Refusal::BadRouters)?;
    let usable = routers
        .iter()
        .find(|router| is_neighbour(interface, **router));
    Ok(usable
        .or(routers.first())
        .map(|router| (Ipv4Net::default(), *router)))
}

/// Whether another host of the subnet can have this address.
fn is_neighbour(interface: Ipv4Net, gateway: Ipv4Addr) -> bool {
    let (network, broadcast) = (interface.network(), interface.broadcast());
    let edge = interface.prefix_len() < 31 && (gateway == network || gateway == broadcast);
    is_host(&gateway)
        && gateway != interface.addr()
        && (interface.prefix_len() == 32 || (interface.contains(&gateway) && !edge))
}

fn reachable(interface: Ipv4Net, pairs: Vec<Pair>) -> Result<Vec<Route>, Refusal> {
    let mut routes: Vec<Route> = Vec::with_capacity(pairs.len());
    for (destination, gateway) in pairs {
        let by_route = || {
            let direct = routes.iter().filter(|route| route.gateway.is_none());
            is_host(&gateway)
                && gateway != interface.addr()
                && direct
                    .into_iter()
                    .any(|route| route.destination.contains(&gateway))
        };
        if gateway.is_unspecified() {
            routes.push(Route {
                destination,
                gateway: None,
                onlink: false,
            });
        } else if by_route() {
            routes.push(Route {
                destination,
                gateway: Some(gateway),
                onlink: false,
            });
        } else if is_neighbour(interface, gateway) {
            let onlink = interface.prefix_len() == 32;
            routes.push(Route {
                destination,
                gateway: Some(gateway),
                onlink,
            });
        } else if destination.prefix_len() == 0 {
            return Err(Refusal::GatewayOffLink(gateway));
        }
    }
    Ok(routes)
}
