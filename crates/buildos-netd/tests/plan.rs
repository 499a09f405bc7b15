//! The difference between wish and kernel, applied to a kernel that does what it is
//! told.

#![allow(clippy::unwrap_used)] // A test says what it expects by panicking.

#[path = "support/fake_kernel.rs"]
mod kernel;

use std::time::Duration;

use buildos_dhcp::Instant;
use buildos_netd::desired::{LeaseWish, Wish};
use buildos_netd::mac::MacAddress;
use buildos_netd::observed::{BridgeSettings, Link};
use buildos_netd::plan::{Address, Observed, Op, Route, plan};
use ipnet::Ipv4Net;
use kernel::{BR0, apply, link};
use proptest::prelude::*;

const NOW: Instant = Duration::from_secs(1000);

fn two_nics() -> Observed {
    let links = [link(2, "enp1s0"), link(3, "enp2s0")];
    Observed {
        links: links.into_iter().map(|l| (l.index, l)).collect(),
        ..Observed::default()
    }
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn wish(uplink: Option<u32>) -> Wish {
    Wish {
        nics: [2, 3].into(),
        up: [2, 3].into(),
        uplink,
        lease: uplink.map(|_| LeaseWish {
            net: net("192.0.2.10/24"),
            expires: Some(NOW + Duration::from_secs(3600)),
            routes: vec![(net("0.0.0.0/0"), Some("192.0.2.1".parse().unwrap()), false)],
            mtu: None,
        }),
        private: Some(net("172.23.0.1/16")),
    }
}

/// Rounds until there is nothing left to do.
fn settle(observed: &mut Observed, wish: &Wish) -> Vec<Op> {
    let mut all = Vec::new();
    for _ in 0..4 {
        let ops = plan(wish, observed);
        if ops.is_empty() {
            return all;
        }
        ops.iter().for_each(|op| apply(observed, op));
        all.extend(ops);
    }
    panic!("still to do after four rounds: {:?}", plan(wish, observed));
}

#[test]
fn from_nothing_to_a_configured_host() {
    let mut observed = two_nics();
    settle(&mut observed, &wish(None));
    assert_eq!(
        observed.addresses.len(),
        1,
        "br1 has its address before there is an uplink"
    );
    let ops = settle(&mut observed, &wish(Some(3)));
    assert_eq!(
        ops,
        [
            Op::SetMac(BR0, MacAddress([2, 0, 0, 0, 0, 3])),
            Op::Attach {
                port: 3,
                bridge: BR0
            },
            Op::EnableIpv6(BR0),
            Op::SetAddress(Address {
                link: BR0,
                net: net("192.0.2.10/24"),
                expires: Some(NOW + Duration::from_secs(3600))
            }),
            Op::AddRoute(Route {
                link: BR0,
                destination: net("0.0.0.0/0"),
                gateway: Some("192.0.2.1".parse().unwrap()),
                onlink: false,
                source: "192.0.2.10".parse().unwrap(),
            }),
        ]
    );
}

#[test]
fn another_uplink_takes_the_place_of_the_first() {
    let mut observed = two_nics();
    settle(&mut observed, &wish(Some(2)));
    let ops = settle(&mut observed, &wish(Some(3)));
    assert_eq!(
        ops,
        [
            Op::Detach(2),
            Op::DisableIpv6(BR0),
            Op::SetMac(BR0, MacAddress([2, 0, 0, 0, 0, 3])),
            Op::Attach {
                port: 3,
                bridge: BR0
            },
            Op::EnableIpv6(BR0),
        ]
    );
}

#[test]
fn a_lost_lease_takes_its_address_and_routes_along_and_leaves_the_port() {
    let mut observed = two_nics();
    settle(&mut observed, &wish(Some(2)));
    let ops = settle(
        &mut observed,
        &Wish {
            lease: None,
            ..wish(Some(2))
        },
    );
    assert!(
        matches!(ops[..], [Op::RemoveRoute(_), Op::RemoveAddress(_)]),
        "{ops:?}"
    );
    assert_eq!(observed.links[&2].controller, Some(BR0));
}

#[test]
fn a_renewal_replaces_the_lifetime_in_place_and_rounding_does_not() {
    for (remaining, replaced, undone) in [
        (1800, true, true),
        (3590, true, true),
        // A renewal a second after the first: nobody has undone anything.
        (3597, true, false),
        (3599, false, false),
        (3601, false, false),
    ] {
        let mut observed = two_nics();
        settle(&mut observed, &wish(Some(2)));
        let leased = observed.addresses.iter_mut().filter(|a| a.link == BR0);
        leased.for_each(|address| address.expires = Some(NOW + Duration::from_secs(remaining)));
        let ops = plan(&wish(Some(2)), &observed);
        let expected = Address {
            link: BR0,
            net: net("192.0.2.10/24"),
            expires: Some(NOW + Duration::from_secs(3600)),
        };
        assert_eq!(
            ops,
            Vec::from_iter(replaced.then_some(Op::SetAddress(expected)))
        );
        let counted = ops.iter().filter(|op| !op.only_rounds(&observed));
        assert_eq!(counted.count(), usize::from(undone), "{remaining}");
    }
}

#[test]
fn a_bridge_with_spanning_tree_is_mended() {
    let mut observed = two_nics();
    settle(&mut observed, &wish(None));
    observed.links.get_mut(&BR0).unwrap().bridge = Some(BridgeSettings {
        stp: true,
        forward_delay: 1500,
    });
    assert_eq!(plan(&wish(None), &observed), [Op::SetBridge(BR0)]);
}

#[test]
fn ports_of_somebody_else_stay() {
    let mut observed = two_nics();
    settle(&mut observed, &wish(Some(2)));
    observed.links.insert(
        20,
        Link {
            controller: Some(BR0),
            ..link(20, "ve-slave")
        },
    );
    assert_eq!(plan(&wish(Some(2)), &observed), []);
}

#[test]
fn the_mtu_of_the_lease_counts_if_it_is_the_smaller() {
    for (lease, expected) in [(Some(1400), Some(1400)), (Some(9000), None), (None, None)] {
        let mut observed = two_nics();
        settle(&mut observed, &wish(Some(2)));
        let mut wish = wish(Some(2));
        wish.lease.as_mut().unwrap().mtu = lease;
        let ops: Vec<_> = expected
            .map(|mtu| Op::SetMtu(BR0, mtu))
            .into_iter()
            .collect();
        assert_eq!(plan(&wish, &observed), ops);
    }
}

proptest! {
    /// Whatever the order of wishes: it settles, br0 has at most one port of
    /// ours and its address, and an address only with a lease.
    #[test]
    fn any_sequence_settles(steps in prop::collection::vec((0usize..3, any::<bool>(), 1u64..100_000), 1..20)) {
        let mut observed = two_nics();
        for (uplink, leased, remaining) in steps {
            let mut wish = wish([None, Some(2), Some(3)][uplink]);
            if let (Some(lease), true) = (wish.lease.as_mut(), leased) {
                lease.expires = Some(NOW + Duration::from_secs(remaining));
            } else {
                wish.lease = None;
            }
            settle(&mut observed, &wish);
            let ports: Vec<_> = observed.links.values().filter(|l| l.controller == Some(BR0)).collect();
            prop_assert!(ports.len() <= 1);
            if let Some(uplink) = wish.uplink {
                prop_assert_eq!(ports[0].index, uplink);
                prop_assert_eq!(ports[0].mac, observed.links[&BR0].mac);
            }
            let leased = observed.addresses.iter().filter(|a| a.link == BR0).count();
            prop_assert_eq!(leased, usize::from(wish.lease.is_some()));
        }
    }
}

#[test]
fn an_uplink_that_is_no_candidate_any_more_goes_out() {
    for uplink in [None, Some(3)] {
        let mut observed = two_nics();
        settle(&mut observed, &wish(Some(2)));
        let wish = Wish {
            up: [3].into(),
            ..wish(uplink)
        };
        settle(&mut observed, &wish);
        let ports = observed
            .links
            .values()
            .filter(|l| l.controller == Some(BR0));
        assert_eq!(
            ports.map(|l| l.index).collect::<Vec<_>>(),
            Vec::from_iter(uplink)
        );
    }
}

#[test]
fn a_bridge_that_can_have_no_ipv6_is_none_to_mend() {
    let mut observed = two_nics();
    settle(&mut observed, &wish(Some(2)));
    observed.links.get_mut(&BR0).unwrap().ipv6 = None;
    assert_eq!(plan(&wish(Some(2)), &observed), []);
}
