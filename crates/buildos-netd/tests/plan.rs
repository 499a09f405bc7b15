//! Applies plans to a fake kernel.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "support/nics.rs"]
mod nics;

use std::collections::BTreeMap;
use std::time::Duration;

use buildos_dhcp::Instant;
use buildos_netd::desired::{Desired, UplinkSpec};
use buildos_netd::kernel::fake::{self, FakeKernel};
use buildos_netd::observed::{
    Address, BridgeSettings, InstalledRoute, Link, Observed, PRIVATE_BRIDGE, PUBLIC_BRIDGE,
};
use buildos_netd::plan::{Op, plan};
use buildos_netd::reconcile::Kernel as _;
use buildos_types::{LinkIndex, Route};
use ipnet::Ipv4Net;
use nics::{index, mac, nic};
use proptest::prelude::*;

const NOW: Instant = Duration::from_secs(1000);
const METRIC: u32 = 1024;

fn two_nics() -> FakeKernel {
    let mut kernel = FakeKernel::new(NOW);
    kernel.add_link(nic(index(2), "enp1s0"));
    kernel.add_link(nic(index(3), "enp2s0"));
    kernel
}

fn br0(kernel: &FakeKernel) -> LinkIndex {
    kernel.observed.bridge(PUBLIC_BRIDGE).unwrap().index
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn default_route() -> Route {
    Route {
        destination: net("0.0.0.0/0"),
        gateway: Some("192.0.2.1".parse().unwrap()),
        onlink: false,
    }
}

fn desired(uplink: Option<u32>) -> Desired {
    Desired {
        nics: [index(2), index(3)].into(),
        up: [index(2), index(3)].into(),
        vlans: Vec::new(),
        uplink: uplink.map(index),
        mac: None,
        lease: uplink.map(|_| UplinkSpec {
            net: net("192.0.2.10/24"),
            expires: Some(NOW + Duration::from_secs(3600)),
            routes: vec![default_route()],
            mtu: None,
        }),
        private: Some(net("172.23.0.1/16")),
        mtu: None,
        original_mtus: BTreeMap::new(),
        other_ports_mtu: None,
        metric: METRIC,
        ipv6: true,
    }
}

fn leased(kernel: &FakeKernel) -> Address {
    Address {
        link: br0(kernel),
        net: net("192.0.2.10/24"),
        expires: Some(NOW + Duration::from_secs(3600)),
    }
}

/// Applies plans until one is empty. Returns all operations.
fn settle(kernel: &mut FakeKernel, desired: &Desired) -> Vec<Op> {
    let mut all = Vec::new();
    for _ in 0..4 {
        let ops = plan(desired, &kernel.observed);
        if ops.is_empty() {
            return all;
        }
        for op in &ops {
            let observed = Observed::default();
            fake::run(kernel.apply(op, &observed)).unwrap().unwrap();
        }
        all.extend(ops);
    }
    let ops = plan(desired, &kernel.observed);
    panic!("not settled after four rounds: {ops:?}");
}

#[test]
fn plan_from_empty_kernel_configures_host() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(None));
    let br1 = kernel.observed.bridge(PRIVATE_BRIDGE).unwrap().index;
    let addresses = kernel.observed.addresses.iter().map(|a| a.link);
    assert_eq!(
        addresses.collect::<Vec<_>>(),
        [br1],
        "br1 has its address before there is an uplink"
    );
    let ops = settle(&mut kernel, &desired(Some(3)));
    let br0 = br0(&kernel);
    assert_eq!(
        ops,
        [
            Op::SetMac(br0, mac(index(3))),
            Op::Attach {
                port: index(3),
                bridge: br0
            },
            Op::EnableIpv6(br0),
            Op::SetAddress(leased(&kernel)),
            Op::AddRoute(InstalledRoute {
                metric: METRIC,
                link: br0,
                route: default_route(),
                source: "192.0.2.10".parse().unwrap(),
            }),
        ]
    );
}

#[test]
fn plan_for_other_uplink_detaches_former_first() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(Some(2)));
    let ops = settle(&mut kernel, &desired(Some(3)));
    let br0 = br0(&kernel);
    assert_eq!(
        ops,
        [
            Op::Detach(index(2)),
            Op::DisableIpv6(br0),
            Op::SetMac(br0, mac(index(3))),
            Op::Attach {
                port: index(3),
                bridge: br0
            },
            Op::EnableIpv6(br0),
        ]
    );
}

#[test]
fn plan_without_lease_removes_address_and_routes_and_keeps_port() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(Some(2)));
    let without_lease = Desired {
        lease: None,
        ..desired(Some(2))
    };
    let ops = settle(&mut kernel, &without_lease);
    assert!(
        matches!(ops[..], [Op::RemoveRoute(_), Op::RemoveAddress(_)]),
        "{ops:?}"
    );
    let port = &kernel.observed.links[&index(2)];
    assert_eq!(port.controller, Some(br0(&kernel)));
}

#[test]
fn plan_after_renewal_replaces_lifetime_beyond_rounding() {
    for (remaining, replaced, is_repair) in [
        (1800, true, true),
        (3590, true, true),
        // A renewal a second after the first is not a repair.
        (3597, true, false),
        (3599, false, false),
        (3601, false, false),
    ] {
        let mut kernel = two_nics();
        settle(&mut kernel, &desired(Some(2)));
        let br0 = br0(&kernel);
        let expected = Vec::from_iter(replaced.then(|| Op::SetAddress(leased(&kernel))));
        let addresses = kernel.observed.addresses.iter_mut();
        addresses
            .filter(|address| address.link == br0)
            .for_each(|address| address.expires = Some(NOW + Duration::from_secs(remaining)));
        let ops = plan(&desired(Some(2)), &kernel.observed);
        assert_eq!(ops, expected);
        let repairs = ops.iter().filter(|op| !op.only_rounds(&kernel.observed));
        assert_eq!(repairs.count(), usize::from(is_repair), "{remaining}");
    }
}

#[test]
fn plan_for_bridge_with_spanning_tree_disables_it() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(None));
    let br0 = br0(&kernel);
    kernel.observed.links.get_mut(&br0).unwrap().bridge = Some(BridgeSettings {
        stp: true,
        forward_delay: 1500,
    });
    assert_eq!(plan(&desired(None), &kernel.observed), [Op::SetBridge(br0)]);
}

#[test]
fn plan_leaves_ports_of_other_programs_alone() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(Some(2)));
    kernel.add_link(Link {
        controller: Some(br0(&kernel)),
        ..nic(index(20), "ve-slave")
    });
    assert_eq!(plan(&desired(Some(2)), &kernel.observed), []);
}

#[test]
fn plan_sets_mtu_of_lease_if_smaller_than_of_uplink() {
    for (lease, expected) in [(Some(1400), Some(1400)), (Some(9000), None), (None, None)] {
        let mut kernel = two_nics();
        settle(&mut kernel, &desired(Some(2)));
        let mut desired = desired(Some(2));
        desired.lease.as_mut().unwrap().mtu = lease;
        let ops = expected.map(|mtu| Op::SetMtu(br0(&kernel), mtu));
        assert_eq!(plan(&desired, &kernel.observed), Vec::from_iter(ops));
    }
}

proptest! {
    /// Any sequence of desired states settles. br0 then has at most one NIC as its port and
    /// that NIC's hardware address, and has an address only with a lease.
    #[test]
    fn plan_for_any_sequence_of_desired_states_settles(
        steps in prop::collection::vec((0usize..3, any::<bool>(), 1u64..100_000), 1..20)
    ) {
        let mut kernel = two_nics();
        for (uplink, leased, remaining) in steps {
            let mut desired = desired([None, Some(2), Some(3)][uplink]);
            if let (Some(lease), true) = (desired.lease.as_mut(), leased) {
                lease.expires = Some(NOW + Duration::from_secs(remaining));
            } else {
                desired.lease = None;
            }
            settle(&mut kernel, &desired);
            let observed = &kernel.observed;
            let br0 = observed.bridge(PUBLIC_BRIDGE).unwrap();
            let ports: Vec<_> = observed.ports(PUBLIC_BRIDGE).collect();
            prop_assert!(ports.len() <= 1);
            if let Some(uplink) = desired.uplink {
                prop_assert_eq!(ports[0].index, uplink);
                prop_assert_eq!(ports[0].mac, br0.mac);
            }
            let leased = observed.addresses.iter().filter(|a| a.link == br0.index);
            prop_assert_eq!(leased.count(), usize::from(desired.lease.is_some()));
        }
    }
}

#[test]
fn plan_sets_configured_mtu_on_nics_and_br0() {
    let mut kernel = two_nics();
    kernel.observed.links.get_mut(&index(3)).unwrap().max_mtu = Some(1500);
    let mut desired = desired(Some(2));
    desired.mtu = Some(9000);
    // The key has precedence over the lease.
    desired.lease.as_mut().unwrap().mtu = Some(1400);
    let ops = plan(&desired, &kernel.observed);
    let up = ops.iter().position(|op| *op == Op::SetUp(index(2)));
    let mtu = ops.iter().position(|op| *op == Op::SetMtu(index(2), 9000));
    assert!(mtu < up, "{ops:?}");
    settle(&mut kernel, &desired);
    let links = &kernel.observed.links;
    let mtus = [index(2), index(3), br0(&kernel)].map(|index| links[&index].mtu);
    assert_eq!(mtus, [9000, 1500, 9000]);
}

#[test]
fn plan_leaves_mtu_of_br0_at_that_of_smaller_port() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(Some(2)));
    kernel.observed.links.get_mut(&br0(&kernel)).unwrap().mtu = 1400;
    let desired = Desired {
        other_ports_mtu: Some(1400),
        ..desired(Some(2))
    };
    assert_eq!(plan(&desired, &kernel.observed), []);
}

#[test]
fn plan_for_other_metric_replaces_routes() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(Some(2)));
    let desired = Desired {
        metric: 100,
        ..desired(Some(2))
    };
    let ops = settle(&mut kernel, &desired);
    assert!(matches!(ops[..], [Op::RemoveRoute(_), Op::AddRoute(_)]));
    assert_eq!(kernel.observed.routes[0].metric, 100);
}

#[test]
fn plan_without_ipv6_disables_it_on_br0_and_keeps_it_off() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(Some(2)));
    let without = Desired {
        ipv6: false,
        ..desired(Some(2))
    };
    let ops = settle(&mut kernel, &without);
    assert_eq!(ops, [Op::DisableIpv6(br0(&kernel))]);
    let ops = settle(&mut kernel, &desired(Some(2)));
    assert_eq!(ops, [Op::EnableIpv6(br0(&kernel))]);
}

#[test]
fn plan_removes_own_route_of_other_metric_by_its_metric() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(Some(2)));
    let former = InstalledRoute {
        metric: 50,
        ..kernel.observed.routes[0].clone()
    };
    kernel.observed.routes.push(former.clone());
    let ops = plan(&desired(Some(2)), &kernel.observed);
    assert_eq!(ops, [Op::RemoveRoute(former)]);
}

#[test]
fn plan_leaves_ipv6_off_if_administrator_disabled_it() {
    let mut kernel = two_nics();
    kernel.observed.ipv6_disabled = true;
    let ops = settle(&mut kernel, &desired(Some(2)));
    assert!(
        !ops.iter().any(|op| matches!(op, Op::EnableIpv6(_))),
        "{ops:?}"
    );
}

#[test]
fn plan_detaches_uplink_that_is_no_longer_candidate() {
    for uplink in [None, Some(3)] {
        let mut kernel = two_nics();
        settle(&mut kernel, &desired(Some(2)));
        let desired = Desired {
            up: [index(3)].into(),
            ..desired(uplink)
        };
        settle(&mut kernel, &desired);
        let ports = kernel.observed.ports(PUBLIC_BRIDGE).map(|link| link.index);
        assert_eq!(ports.collect::<Vec<_>>(), Vec::from_iter(uplink.map(index)));
    }
}

#[test]
fn plan_for_bridge_that_cannot_have_ipv6_is_empty() {
    let mut kernel = two_nics();
    settle(&mut kernel, &desired(Some(2)));
    let br0 = br0(&kernel);
    kernel.observed.links.get_mut(&br0).unwrap().ipv6 = None;
    assert_eq!(plan(&desired(Some(2)), &kernel.observed), []);
}
