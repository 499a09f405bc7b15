//! Tests refusals of the kernel, and retries.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "support/errors.rs"]
mod errors;
#[path = "support/lan.rs"]
mod lan;
#[path = "support/nics.rs"]
mod nics;
#[path = "support/servers.rs"]
mod servers;

use std::time::Duration;

use buildos_dhcp::{Instant, MessageKind};
use buildos_netd::kernel::fake;
use buildos_netd::observed::{Link, PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use buildos_netd::plan::Op;
use buildos_netd::reconcile::{Kernel as _, RETRY, Reconciler};
use buildos_netd::settings::{Ipv6, Settings};
use buildos_netd::status::{Clocks, Status};
use errors::errors_logged;
use lan::Lan;
use nics::{index, nic};
use servers::{LEASE, Server};

const START: Instant = Duration::from_secs(100);
const CLOCKS: Clocks = Clocks {
    boottime: START,
    realtime: START,
};

/// Two NICs with a server each.
fn host() -> (Reconciler, Lan) {
    let mut lan = Lan::new(START);
    for number in [1, 2] {
        let index = index(number);
        lan.servers.insert(index, (Server::Good, LEASE));
        lan.kernel.plug(index, true);
        lan.kernel.add_link(nic(index, &format!("eth{number}")));
    }
    (Reconciler::new(Settings::default(), 1), lan)
}

fn start(reconciler: &mut Reconciler, lan: &mut Lan) {
    let start = reconciler.start(lan, None);
    fake::run(start).unwrap().unwrap();
    settle(reconciler, lan);
}

/// Delivers messages until no message is left.
fn settle(reconciler: &mut Reconciler, lan: &mut Lan) {
    loop {
        let step = reconciler.step(lan);
        fake::run(step).unwrap().unwrap();
        let Some((nic, message)) = lan.replies.pop_front() else {
            return;
        };
        reconciler.packet(lan.now(), nic, &message);
    }
}

fn pass(reconciler: &mut Reconciler, lan: &mut Lan, duration: Duration) {
    let end = lan.now() + duration;
    while let Some(next) = reconciler.deadline().filter(|next| *next <= end) {
        lan.kernel.advance(next);
        reconciler.timeout(lan.now());
        settle(reconciler, lan);
    }
    lan.kernel.advance(end);
}

#[test]
fn refused_operation_does_not_stop_others() {
    let (mut reconciler, mut lan) = host();
    let refused = |op: &Op| *op == Op::SetUp(index(1));
    lan.kernel.refuse(refused);
    start(&mut reconciler, &mut lan);
    assert_eq!(reconciler.refused(), [Op::SetUp(index(1))]);
    assert!(!reconciler.is_settled());
    let port = reconciler.election().port().unwrap();
    assert_eq!(port.candidate.index, index(2));
    assert!(lan.kernel.observed.bridge(PRIVATE_BRIDGE).is_some());
}

#[test]
fn refused_operation_is_retried_every_two_seconds() {
    let (mut reconciler, mut lan) = host();
    let refused = |op: &Op| matches!(op, Op::SetAddress(_));
    lan.kernel.refuse(refused);
    start(&mut reconciler, &mut lan);
    assert_eq!(lan.kernel.observed.addresses, []);
    lan.refused.clear();
    pass(&mut reconciler, &mut lan, 3 * RETRY);
    // The addresses of br0 and br1.
    assert_eq!(lan.refused.len(), 3 * 2, "{:?}", lan.refused);
    lan.kernel.refuse(|_| false);
    pass(&mut reconciler, &mut lan, RETRY);
    assert!(reconciler.is_settled());
    assert_eq!(reconciler.refused(), []);
    assert_eq!(lan.kernel.observed.addresses.len(), 2);
}

#[test]
fn refused_detach_keeps_other_nic_out_of_br0() {
    let (mut reconciler, mut lan) = host();
    start(&mut reconciler, &mut lan);
    let first = reconciler.election().port().unwrap().candidate.index;
    lan.kernel.refuse(Op::is_detach);
    lan.kernel.plug(first, false);
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    let grace = Settings::default().carrier_grace;
    pass(&mut reconciler, &mut lan, grace);
    let second = reconciler.election().port().unwrap().candidate.index;
    assert_ne!(second, first);
    let ports = lan.kernel.observed.ports(PUBLIC_BRIDGE);
    assert_eq!(ports.map(|port| port.index).collect::<Vec<_>>(), [first]);
    lan.kernel.refuse(|_| false);
    pass(&mut reconciler, &mut lan, RETRY);
    let ports = lan.kernel.observed.ports(PUBLIC_BRIDGE);
    assert_eq!(ports.map(|port| port.index).collect::<Vec<_>>(), [second]);
}

#[test]
fn refusal_is_logged_once_even_after_another_refusal() {
    let (mut reconciler, mut lan) = host();
    start(&mut reconciler, &mut lan);
    let first = reconciler.election().port().unwrap().candidate.index;
    lan.kernel.plug(first, false);
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    lan.kernel.refuse(Op::is_detach);
    let grace = Settings::default().carrier_grace;
    let mut pass_for = |duration| errors_logged(|| pass(&mut reconciler, &mut lan, duration));
    assert_eq!(
        pass_for(grace),
        ["cannot detach eth1 from its bridge: refused"]
    );
    assert_eq!(pass_for(3 * RETRY), [""; 0]);
    lan.kernel.refuse(|op| matches!(op, Op::Attach { .. }));
    let mut pass_for = |duration| errors_logged(|| pass(&mut reconciler, &mut lan, duration));
    assert_eq!(
        pass_for(3 * RETRY),
        ["cannot attach eth2 to bridge br0: refused"]
    );
}

#[test]
fn changes_that_others_undo_are_applied_again() {
    let (mut reconciler, mut lan) = host();
    start(&mut reconciler, &mut lan);
    let configured = lan.kernel.observed.clone();
    lan.kernel.observed.addresses.pop();
    let links = lan.kernel.observed.links.values_mut();
    links.for_each(|link| link.controller = None);
    reconciler.kernel_changed(Some(7));
    settle(&mut reconciler, &mut lan);
    assert!(reconciler.is_settled());
    assert_eq!(lan.kernel.observed, configured);
}

#[test]
fn operation_without_effect_is_reported_once_and_retried_with_backoff() {
    let (mut reconciler, mut lan) = host();
    lan.kernel.ignore(|op| matches!(op, Op::AddRoute(_)));
    let errors = errors_logged(|| {
        start(&mut reconciler, &mut lan);
        pass(&mut reconciler, &mut lan, Duration::from_secs(20));
    });
    let expected = "cannot add the route to 0.0.0.0/0 on br0: the kernel accepts the operation \
                    without effect, or a different program undoes it";
    assert_eq!(errors, [expected]);
    let attempts = lan
        .attempts
        .iter()
        .filter(|op| matches!(op, Op::AddRoute(_)));
    assert!(attempts.count() <= 5);
    assert!(!reconciler.is_settled());
    lan.kernel.ignore(|_| false);
    pass(&mut reconciler, &mut lan, Duration::from_secs(64));
    assert!(reconciler.is_settled());
}

#[test]
fn link_with_name_of_bridge_is_reported_and_retried_with_backoff() {
    let (mut reconciler, mut lan) = host();
    lan.kernel.add_link(nic(index(9), PUBLIC_BRIDGE));
    let errors = errors_logged(|| {
        start(&mut reconciler, &mut lan);
        pass(&mut reconciler, &mut lan, Duration::from_secs(20));
    });
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("a link with this name exists that is not a bridge"));
    let creates = |op: &&Op| matches!(op, Op::CreateBridge(PUBLIC_BRIDGE, _));
    assert!(lan.attempts.iter().filter(creates).count() <= 5);
    let status = Status::new(&reconciler, Vec::new(), CLOCKS);
    assert!(status.reason.contains("not a bridge"), "{}", status.reason);
    lan.kernel.observed.links.remove(&index(9));
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    assert!(reconciler.is_settled());
}

#[test]
fn mtu_follows_smaller_port_of_other_program() {
    let (mut reconciler, mut lan) = host();
    start(&mut reconciler, &mut lan);
    let br0 = lan.kernel.observed.bridge(PUBLIC_BRIDGE).unwrap().index;
    let port = index(20);
    lan.kernel.add_link(Link {
        mtu: 1400,
        controller: Some(br0),
        kind: Some("veth".to_owned()),
        device: false,
        ..nic(port, "ve-slave")
    });
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    assert_eq!(lan.kernel.observed.links[&br0].mtu, 1400);
    lan.kernel.observed.links.remove(&port);
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    assert_eq!(lan.kernel.observed.links[&br0].mtu, 1500);
}

#[test]
fn nic_gets_its_mtu_back_when_the_key_is_removed() {
    let (mut reconciler, mut lan) = host();
    let mtu_of = |lan: &Lan| lan.kernel.observed.links[&index(1)].mtu;
    let original = mtu_of(&lan);
    let mut settings = reconciler.settings().clone();
    settings.mtu = Some(9000.try_into().unwrap());
    start(&mut reconciler, &mut lan);
    reconciler.configure(lan.now(), settings.clone());
    settle(&mut reconciler, &mut lan);
    assert_eq!(mtu_of(&lan), 9000);
    settings.mtu = None;
    reconciler.configure(lan.now(), settings);
    settle(&mut reconciler, &mut lan);
    assert_eq!(mtu_of(&lan), original);
    let br0 = lan.kernel.observed.bridge(PUBLIC_BRIDGE).unwrap();
    assert_eq!(br0.mtu, original);
    // A later change is that of an administrator.
    lan.kernel.observed.links.get_mut(&index(1)).unwrap().mtu = 1400;
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    assert_eq!(mtu_of(&lan), 1400);
}

#[test]
fn kernel_is_observed_only_after_changes() {
    let (mut reconciler, mut lan) = host();
    start(&mut reconciler, &mut lan);
    let observed = reconciler.observed().clone();
    lan.kernel.observed.routes.clear();
    settle(&mut reconciler, &mut lan);
    assert_eq!(*reconciler.observed(), observed);
}

#[test]
fn renewal_sets_lifetime_without_observing_kernel() {
    let (mut reconciler, mut lan) = host();
    start(&mut reconciler, &mut lan);
    pass(&mut reconciler, &mut lan, Duration::from_secs(60));
    let before = reconciler.election().lease().unwrap().clone();
    lan.observed_at.clear();
    lan.attempts.clear();
    reconciler.renew(lan.now());
    settle(&mut reconciler, &mut lan);
    let after = reconciler.election().lease().unwrap();
    assert!(after.acquired > before.acquired);
    assert!(
        matches!(lan.attempts[..], [Op::SetAddress(_)]),
        "{:?}",
        lan.attempts
    );
    assert_eq!(lan.observed_at, []);
    assert!(reconciler.is_settled());
    // The kernel, which counts whole seconds, has what the reconciler assumes.
    lan.attempts.clear();
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    assert_eq!(lan.attempts, []);
}

#[test]
fn refused_lifetime_is_retried() {
    let (mut reconciler, mut lan) = host();
    start(&mut reconciler, &mut lan);
    pass(&mut reconciler, &mut lan, Duration::from_secs(60));
    lan.kernel.refuse(|op| matches!(op, Op::SetAddress(_)));
    reconciler.renew(lan.now());
    settle(&mut reconciler, &mut lan);
    assert!(!reconciler.is_settled());
    lan.kernel.refuse(|_| false);
    pass(&mut reconciler, &mut lan, RETRY);
    assert!(reconciler.is_settled());
    let expires = reconciler.election().lease().unwrap().expires_at().unwrap();
    let mut addresses = lan.kernel.observed.addresses.iter();
    let is_kept = |end: Instant| end.abs_diff(expires) <= Duration::from_secs(3);
    assert!(addresses.any(|address| address.expires.is_some_and(is_kept)));
}

#[test]
fn offer_is_requested_before_remaining_operations() {
    let (mut reconciler, mut lan) = host();
    lan.immediate = true;
    let start = reconciler.start(&mut lan, None);
    fake::run(start).unwrap().unwrap();
    // One call configures the host: no message waits for the end of the operations.
    assert!(reconciler.is_settled());
    let port = reconciler.election().port().unwrap().candidate.index;
    let attach = |op: &Op| matches!(op, Op::Attach { port: p, .. } if *p == port);
    let private = |op: &Op| matches!(op, Op::SetAddress(a) if a.expires.is_none());
    let position = |is: &dyn Fn(&Op) -> bool| lan.attempts.iter().position(is).unwrap();
    assert!(position(&attach) < position(&private), "{:?}", lan.attempts);
}

#[test]
fn offer_in_the_socket_is_requested_before_kernel_is_read() {
    let (mut reconciler, mut lan) = host();
    let start = reconciler.start(&mut lan, None);
    fake::run(start).unwrap().unwrap();
    assert!(!lan.replies.is_empty(), "an OFFER is in the socket");
    lan.immediate = true;
    lan.sent.clear();
    lan.sent_when_observed.clear();
    reconciler.kernel_changed(None);
    fake::run(reconciler.step(&mut lan)).unwrap().unwrap();
    assert_eq!(lan.sent[0].1, MessageKind::Request);
    assert!(lan.sent_when_observed[0] > 0, "the kernel was read before");
}

#[test]
fn uplink_that_changes_between_operations_is_configured_at_once() {
    let bridge_is_remade = |looks| {
        let (mut reconciler, mut lan) = host();
        lan.servers.insert(index(1), (Server::NoRoute, LEASE));
        lan.servers.insert(index(2), (Server::Silent, LEASE));
        start(&mut reconciler, &mut lan);
        pass(&mut reconciler, &mut lan, Duration::from_secs(30));
        let port = reconciler.election().port().unwrap().candidate.index;
        assert_eq!(port, index(1));
        lan.servers.insert(index(2), (Server::Good, LEASE));
        while lan.replies.is_empty() {
            let next = reconciler.deadline().unwrap();
            lan.kernel.advance(next);
            reconciler.timeout(lan.now());
            fake::run(reconciler.step(&mut lan)).unwrap().unwrap();
        }
        let observed = &mut lan.kernel.observed;
        observed.links.retain(|_, link| link.bridge.is_none());
        let links = observed.links.values_mut();
        links.for_each(|link| link.controller = None);
        observed.addresses.clear();
        observed.routes.clear();
        (lan.immediate, lan.looks) = (true, looks);
        reconciler.kernel_changed(None);
        settle(&mut reconciler, &mut lan);
        let port = reconciler.election().port().unwrap().candidate.index;
        assert_eq!(port, index(2), "{looks}");
        assert!(reconciler.is_settled(), "{looks}");
        assert_eq!(reconciler.refused(), [], "{looks}");
    };
    let errors = errors_logged(|| (0..30).for_each(bridge_is_remade));
    assert_eq!(errors, Vec::<String>::new());
}

#[test]
fn link_whose_message_is_not_decoded_keeps_its_lease() {
    let (mut reconciler, mut lan) = host();
    start(&mut reconciler, &mut lan);
    let port = reconciler.election().port().unwrap().candidate.index;
    let configured = lan.kernel.observed.clone();
    lan.undecodable = Some(port);
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    assert!(reconciler.election().lease().is_some());
    assert_eq!(lan.kernel.observed, configured);
    lan.kernel.observed.links.remove(&port);
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    assert!(reconciler.election().contender(port).is_none());
}

#[test]
fn overlap_with_every_private_network_is_in_status() {
    let (_, mut lan) = host();
    let settings = Settings {
        private: vec!["192.0.2.1/24".parse().unwrap()],
        ..Settings::default()
    };
    let mut reconciler = Reconciler::new(settings, 1);
    start(&mut reconciler, &mut lan);
    let reason = Status::new(&reconciler, Vec::new(), CLOCKS).reason;
    let expected = "; br1 has 192.0.2.1/24, which overlaps with the network 192.0.2.0/24, as no \
                    private network is free";
    assert!(reason.ends_with(expected), "{reason}");
}

/// Returns the ports of br0.
fn ports(lan: &Lan) -> Vec<u32> {
    let ports = lan.kernel.observed.ports(PUBLIC_BRIDGE);
    ports.map(|port| port.index.get()).collect()
}

#[test]
fn nics_without_lease_are_port_of_br0_in_turn_until_one_has_ipv6() {
    let (mut reconciler, mut lan) = host();
    for number in [1, 2] {
        lan.servers.insert(index(number), (Server::Silent, LEASE));
    }
    start(&mut reconciler, &mut lan);
    let mut pass_for = |seconds, lan: &mut Lan| {
        pass(&mut reconciler, lan, Duration::from_secs(seconds));
        ports(lan)
    };
    assert_eq!(pass_for(9, &mut lan), [0; 0]);
    assert_eq!(pass_for(2, &mut lan), [1]);
    assert_eq!(pass_for(15, &mut lan), [2]);
    // The next round is slow.
    assert_eq!(pass_for(60, &mut lan), [2]);
    assert_eq!(pass_for(300, &mut lan), [1]);
    let br0 = lan.kernel.observed.bridge(PUBLIC_BRIDGE).unwrap().index;
    let address = "2001:db8::7/64".parse().unwrap();
    lan.kernel.observed.ipv6.push((br0, address));
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    pass(&mut reconciler, &mut lan, Duration::from_secs(3000));
    assert_eq!(ports(&lan), [1]);
    let reason = Status::new(&reconciler, Vec::new(), CLOCKS).reason;
    assert!(
        reason.contains("br0 has 2001:db8::7 by eth1, for IPv6 only"),
        "{reason}"
    );
    // The first lease decides.
    lan.servers.insert(index(2), (Server::Good, LEASE));
    pass(&mut reconciler, &mut lan, Duration::from_secs(120));
    assert_eq!(ports(&lan), [2]);
}

#[test]
fn br0_has_no_port_without_lease_if_ipv6_is_off() {
    let (_, mut lan) = host();
    let settings = Settings {
        ipv6: Ipv6::Off,
        ..Settings::default()
    };
    lan.servers
        .values_mut()
        .for_each(|server| server.0 = Server::Silent);
    let mut reconciler = Reconciler::new(settings, 1);
    start(&mut reconciler, &mut lan);
    pass(&mut reconciler, &mut lan, Duration::from_secs(100));
    assert_eq!(ports(&lan), [0; 0]);
}
