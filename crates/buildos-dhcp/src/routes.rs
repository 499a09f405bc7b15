//! Derives the routes of a lease from options 121, 33 and 3.
//!
//! | options | routes |
//! |---|---|
//! | 121 | its classless routes alone (RFC 3442) |
//! | 33 | a route to each of its hosts: the format has no masks (RFC 2132, section 5.8) |
//! | 3 | a default route through the first usable router |

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use buildos_types::Route;
use dhcproto::v4::DhcpOption;
use ipnet::Ipv4Net;

use crate::options::Options;
use crate::options::is_host;
use crate::refusal::Refusal;

/// Returns the routes for this interface address.
///
/// An impossible default gateway makes the lease unusable: the host could reach only
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

/// Returns the default route through a configured gateway.
pub(crate) fn through(interface: Ipv4Net, gateway: Ipv4Addr) -> Result<Vec<Route>, Refusal> {
    reachable(interface, vec![(Ipv4Net::default(), gateway)])
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
    let is_neighbour = |router: &&Ipv4Addr| is_other_host(interface, **router, &[]);
    let usable = routers.iter().find(|router| {
        is_neighbour(router) && (interface.prefix_len() == 32 || interface.contains(*router))
    });
    Ok(usable
        .or(routers.iter().find(is_neighbour))
        .or(routers.first())
        .map(|router| (Ipv4Net::default(), *router)))
}

/// Returns true if another host can have this address: on the link, or behind one of the
/// direct routes.
fn is_other_host(interface: Ipv4Net, gateway: Ipv4Addr, direct: &[Route]) -> bool {
    let (network, broadcast) = (interface.network(), interface.broadcast());
    let is_edge = interface.prefix_len() < 31 && (gateway == network || gateway == broadcast);
    let is_behind_route = covers(direct, gateway);
    is_host(&gateway) && gateway != interface.addr() && (!is_edge || is_behind_route)
}

fn covers(direct: &[Route], gateway: Ipv4Addr) -> bool {
    let mut direct = direct.iter();
    direct.any(|route| route.destination.contains(&gateway))
}

/// Returns the routes in the order in which the kernel accepts them: those to the gateways
/// first. A gateway that no route covers is taken to be on the link (`onlink`) if it is the
/// default gateway, or if the subnet has one host only.
fn reachable(interface: Ipv4Net, pairs: Vec<Pair>) -> Result<Vec<Route>, Refusal> {
    let mut seen = BTreeSet::new();
    // A lease lists the preferred gateway to a destination first.
    let pairs = pairs.into_iter().filter(|(to, _)| seen.insert(*to));
    let (direct, by_gateway): (Vec<_>, Vec<_>) =
        pairs.partition(|(_, gateway)| gateway.is_unspecified());
    let mut routes: Vec<Route> = Vec::new();
    routes.extend(direct.into_iter().map(|(destination, _)| Route {
        destination,
        gateway: None,
        onlink: false,
    }));
    let direct = routes.clone();
    for (destination, gateway) in by_gateway {
        let is_default = destination.prefix_len() == 0;
        if !is_other_host(interface, gateway, &direct) {
            if is_default {
                return Err(Refusal::BadGateway(gateway));
            }
            continue;
        }
        let is_single = interface.prefix_len() == 32;
        let is_covered = covers(&direct, gateway) || (!is_single && interface.contains(&gateway));
        if is_covered || is_default || is_single {
            routes.push(Route {
                destination,
                gateway: Some(gateway),
                onlink: !is_covered,
            });
        }
    }
    Ok(routes)
}
