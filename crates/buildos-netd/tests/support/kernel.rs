//! A kernel that does what it is told.

use buildos_netd::link::{BridgeSettings, Link};
use buildos_netd::mac::MacAddress;
use buildos_netd::plan::{Observed, Op, PUBLIC_BRIDGE};

/// Index that br0 gets.
pub(crate) const BR0: u32 = 10;
/// Index that br1 gets.
pub(crate) const BR1: u32 = 11;

/// A NIC that nobody has touched.
pub(crate) fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        mac: Some(MacAddress([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])),
        mtu: 1500,
        up: false,
        carrier: false,
        controller: None,
        ethernet: true,
        kind: None,
        device: true,
        wireless: false,
        ipv6: true,
        answers_arp: true,
        bridge: None,
    }
}

/// Does one operation.
pub(crate) fn apply(observed: &mut Observed, op: &Op) {
    match op {
        Op::CreateBridge(name, mac) => {
            let index = if *name == PUBLIC_BRIDGE { BR0 } else { BR1 };
            let bridge = Link {
                bridge: Some(BridgeSettings::OURS),
                ipv6: true,
                kind: Some("bridge".into()),
                mac: Some(*mac),
                ..link(index, name)
            };
            observed.links.insert(index, bridge);
        }
        Op::Silence(i) => {
            let link = observed.links.get_mut(i).unwrap();
            (link.ipv6, link.answers_arp) = (false, false);
        }
        Op::DisableIpv6(i) => observed.links.get_mut(i).unwrap().ipv6 = false,
        Op::EnableIpv6(i) => observed.links.get_mut(i).unwrap().ipv6 = true,
        Op::SetBridge(i) => observed.links.get_mut(i).unwrap().bridge = Some(BridgeSettings::OURS),
        Op::SetMac(i, mac) => observed.links.get_mut(i).unwrap().mac = Some(*mac),
        Op::SetMtu(i, mtu) => observed.links.get_mut(i).unwrap().mtu = *mtu,
        Op::SetUp(i) => observed.links.get_mut(i).unwrap().up = true,
        Op::Detach(i) => observed.links.get_mut(i).unwrap().controller = None,
        Op::Attach { port, bridge } => {
            observed.links.get_mut(port).unwrap().controller = Some(*bridge);
        }
        Op::RemoveAddress(a) => observed.addresses.retain(|o| o != a),
        Op::SetAddress(a) => {
            observed
                .addresses
                .retain(|o| (o.link, o.net) != (a.link, a.net));
            observed.addresses.push(a.clone());
        }
        Op::RemoveRoute(r) => observed.routes.retain(|o| o != r),
        Op::AddRoute(r) => observed.routes.push(r.clone()),
    }
}
