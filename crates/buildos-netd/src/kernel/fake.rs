//! A kernel that does as it is told, as a value: for simulation and for tests.

use crate::observed::{BridgeSettings, Link};
use crate::plan::{Observed, Op};

/// A NIC that nobody has touched yet.
#[must_use]
pub fn nic(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: None,
        mtu: 1500,
        up: false,
        carrier: false,
        controller: None,
        ethernet: true,
        kind: None,
        device: true,
        wireless: false,
        ipv6: Some(true),
        answers_arp: true,
        bridge: None,
    }
}

/// What there is after an operation. A bridge that it creates gets the index `created`;
/// an operation on a link that is not there changes nothing.
pub fn apply(observed: &mut Observed, op: &Op, created: u32) {
    let mut change = |index: &u32, change: &dyn Fn(&mut Link)| {
        if let Some(link) = observed.links.get_mut(index) {
            change(link);
        }
    };
    match op {
        Op::CreateBridge(name, mac) => {
            let bridge = Link {
                mac: Some(*mac),
                kind: Some("bridge".to_owned()),
                device: false,
                bridge: Some(BridgeSettings::OURS),
                ..nic(created, name)
            };
            observed.links.insert(created, bridge);
        }
        Op::Silence(index) => change(index, &|link| {
            (link.ipv6, link.answers_arp) = (Some(false), false);
        }),
        Op::DisableIpv6(index) => change(index, &|link| link.ipv6 = Some(false)),
        Op::EnableIpv6(index) => change(index, &|link| link.ipv6 = Some(true)),
        Op::SetBridge(index) => change(index, &|link| link.bridge = Some(BridgeSettings::OURS)),
        Op::SetMac(index, mac) => change(index, &|link| link.mac = Some(*mac)),
        Op::SetMtu(index, mtu) => change(index, &|link| link.mtu = *mtu),
        Op::SetUp(index) => change(index, &|link| link.up = true),
        Op::Detach(index) => change(index, &|link| link.controller = None),
        Op::Attach { port, bridge } => change(port, &|link| link.controller = Some(*bridge)),
        Op::RemoveAddress(address) => observed.addresses.retain(|other| other != address),
        Op::SetAddress(address) => {
            let same = |other: &crate::plan::Address| {
                (other.link, other.net) == (address.link, address.net)
            };
            observed.addresses.retain(|other| !same(other));
            observed.addresses.push(address.clone());
        }
        Op::RemoveRoute(route) => observed.routes.retain(|other| other != route),
        Op::AddRoute(route) => observed.routes.push(route.clone()),
    }
}
