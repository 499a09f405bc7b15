//! Derives the routes of a lease from options 121, 33 and 3.
//!
//! | options | routes |
//! |---|---|
//! | 121 | its classless routes alone (RFC 3442) |
//! | 33 | a route to each of its hosts: the format has no masks (RFC 2132, section 5.8) |
//! | 3 | a default route through the first usable router |

use std::net::Ipv4Addr;

use buildos_types::Route;
use dhcproto::v4::DhcpOption;
use ipnet::Ipv4Net;

use crate::options::Options;
use crate::options::is_host;
use crate::refusal::Refusal;

/// Returns the routes for this interface address.
///
/// An unreachable default gateway makes the lease unusable: the host could reach only
/// its own subnet. Any other unreachable route is left out.
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

/// Destination and gateway, as received; the gateway 0.0.0.0 means "on the link".
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
    // RFC 2132, section 5.8: the default route is not a legal destination here.
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

/// Returns true if another host of the subnet can have this address.
fn is_neighbour(interface: Ipv4Net, gateway: Ipv4Addr) -> bool {
    let (network, broadcast) = (interface.network(), interface.broadcast());
    let is_edge = interface.prefix_len() < 31 && (gateway == network || gateway == broadcast);
    is_host(&gateway)
        && gateway != interface.addr()
        && (interface.prefix_len() == 32 || (interface.contains(&gateway) && !is_edge))
}

fn reachable(interface: Ipv4Net, pairs: Vec<Pair>) -> Result<Vec<Route>, Refusal> {
    let mut routes: Vec<Route> = Vec::with_capacity(pairs.len());
    for (destination, gateway) in pairs {
        let is_behind_route = || {
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
        } else if is_behind_route() {
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
