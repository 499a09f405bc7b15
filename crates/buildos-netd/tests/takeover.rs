//! Moves br0 between NICs of one LAN and of two.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "support/lan.rs"]
mod lan;
#[path = "support/nics.rs"]
mod nics;
#[path = "support/servers.rs"]
mod servers;

use std::time::Duration;

use buildos_dhcp::{Instant, arp};
use buildos_netd::kernel::fake;
use buildos_netd::observed::PUBLIC_BRIDGE;
use buildos_netd::plan::Op;
use buildos_netd::reconcile::{FormerUplink, Kernel as _, Reconciler};
use buildos_netd::settings::Settings;
use buildos_types::{LinkIndex, MacAddress};
use lan::Lan;
use nics::{index, mac, nic};
use servers::{LEASE, Server, address, address_elsewhere};

const START: Instant = Duration::from_secs(100);
const SECOND: Duration = Duration::from_secs(1);
const ROUTER: MacAddress = MacAddress([2, 0, 0, 0, 0xfe, 1]);
const VIRTUAL_ROUTER: MacAddress = MacAddress([0, 0, 0x5e, 0, 1, 1]);

struct World {
    reconciler: Reconciler,
    lan: Lan,
}

impl World {
    /// A host with two NICs; the first one is the uplink for ten seconds.
    fn new(second: Server, settings: Settings, routers: [Option<MacAddress>; 2]) -> Self {
        let mut lan = Lan::new(START);
        for (number, server) in [(1, Server::Good), (2, second)] {
            let index = index(number);
            lan.servers.insert(index, (server, LEASE));
            lan.kernel.plug(index, number == 1);
            lan.kernel.add_link(nic(index, &format!("eth{number}")));
            let router = routers[usize::try_from(number).unwrap() - 1];
            lan.gateways.extend(router.map(|mac| (index, mac)));
        }
        let mut world = Self {
            reconciler: Reconciler::new(settings, 1),
            lan,
        };
        world.start(None);
        world.plug(2, true);
        world.pass(10 * SECOND);
        assert_eq!(world.uplink(), (1, mac(index(1)), address(index(1))));
        world
    }

    fn start(&mut self, former: Option<FormerUplink>) {
        let start = self.reconciler.start(&mut self.lan, former);
        fake::run(start).unwrap().unwrap();
        self.settle();
    }

    fn plug(&mut self, nic: u32, plugged: bool) {
        self.lan.kernel.plug(index(nic), plugged);
        self.reconciler.kernel_changed(None);
        self.settle();
    }

    fn set_server(&mut self, nic: u32, server: Server) {
        self.lan.servers.insert(index(nic), (server, LEASE));
    }

    fn settle(&mut self) {
        loop {
            let step = self.reconciler.step(&mut self.lan);
            fake::run(step).unwrap().unwrap();
            if let Some((nic, answer)) = self.lan.answers.pop_front() {
                self.reconciler.arp(self.lan.now(), nic, &answer);
            } else if let Some((nic, message)) = self.lan.replies.pop_front() {
                self.reconciler.packet(self.lan.now(), nic, &message);
            } else {
                return;
            }
        }
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.lan.now() + duration;
        while let Some(next) = self.reconciler.deadline().filter(|next| *next <= end) {
            self.lan.kernel.advance(next);
            self.reconciler.timeout(self.lan.now());
            self.settle();
        }
        self.lan.kernel.advance(end);
    }

    /// Returns the number of the port of br0, and hardware address and address of br0.
    fn uplink(&self) -> (u32, MacAddress, std::net::Ipv4Addr) {
        let observed = &self.lan.kernel.observed;
        let br0 = observed.bridge(PUBLIC_BRIDGE).unwrap();
        let mut ports = observed.ports(PUBLIC_BRIDGE);
        let mut addresses = observed.addresses.iter();
        let address = addresses.find(|a| a.link == br0.index).unwrap();
        (
            ports.next().unwrap().index.get(),
            br0.mac.unwrap(),
            address.net.addr(),
        )
    }

    /// Returns the number of messages sent on a NIC so far.
    fn sent(&self, nic: LinkIndex) -> usize {
        self.lan.sent.iter().filter(|(by, _)| *by == nic).count()
    }
}

#[test]
fn nic_of_same_lan_takes_br0_over_with_address_and_identity() {
    let mut world = World::new(Server::Good, Settings::default(), [None; 2]);
    let before = world.uplink();
    world.lan.attempts.clear();
    world.lan.arp.clear();
    world.plug(1, false);
    world.pass(2 * SECOND);
    assert_eq!(world.uplink(), (2, before.1, before.2));
    let touched = |op: &&Op| {
        matches!(
            op,
            Op::SetMac(..) | Op::RemoveAddress(_) | Op::RemoveRoute(_) | Op::DisableIpv6(_)
        )
    };
    assert!(!world.lan.attempts.iter().any(|op| touched(&op)));
    let br0 = world.lan.kernel.observed.bridge(PUBLIC_BRIDGE).unwrap();
    let announcement = arp::Packet::announcement(before.1, before.2);
    assert_eq!(world.lan.arp, [(br0.index, announcement)]);
}

#[test]
fn former_nic_with_carrier_again_stays_silent() {
    let mut world = World::new(Server::Good, Settings::default(), [None; 2]);
    world.plug(1, false);
    world.pass(2 * SECOND);
    let sent = world.sent(index(1));
    world.plug(1, true);
    world.pass(10_000 * SECOND);
    assert_eq!(world.sent(index(1)), sent);
    assert_eq!(world.uplink(), (2, mac(index(1)), address(index(1))));
    // The second NIC fails, and the first one has its own identity again.
    world.plug(2, false);
    world.pass(2 * SECOND);
    assert_eq!(world.uplink(), (1, mac(index(1)), address(index(1))));
}

#[test]
fn nic_of_other_lan_waits_for_grace_and_has_its_own_identity() {
    for server in [Server::Elsewhere, Server::Refuses] {
        let mut world = World::new(server, Settings::default(), [None; 2]);
        world.plug(1, false);
        world.pass(Settings::default().carrier_grace - SECOND);
        assert_eq!(world.uplink().0, 1, "{server:?}");
        world.set_server(2, Server::Elsewhere);
        world.pass(10 * SECOND);
        let expected = (2, mac(index(2)), address_elsewhere(index(2)));
        assert_eq!(world.uplink(), expected, "{server:?}");
    }
}

#[test]
fn gateway_with_known_address_confirms_lan_unless_it_is_virtual() {
    for (routers, takes_over) in [
        ([Some(ROUTER); 2], true),
        ([Some(VIRTUAL_ROUTER); 2], false),
        ([Some(ROUTER), Some(VIRTUAL_ROUTER)], false),
        ([None, Some(ROUTER)], false),
    ] {
        let mut world = World::new(Server::Silent, Settings::default(), routers);
        world.plug(1, false);
        world.pass(20 * SECOND);
        let port = if takes_over { 2 } else { 1 };
        let expected = (port, mac(index(1)), address(index(1)));
        assert_eq!(world.uplink(), expected, "{routers:?}");
    }
}

#[test]
fn nic_takes_over_from_silent_gateway_only_if_gateway_answers_there() {
    let mut world = World::new(Server::Good, Settings::default(), [Some(ROUTER); 2]);
    world.lan.gateways.clear();
    world.pass(120 * SECOND);
    assert_eq!(world.uplink().0, 1);
    world.lan.gateways.insert(index(2), ROUTER);
    world.pass(120 * SECOND);
    assert_eq!(world.uplink(), (2, mac(index(1)), address(index(1))));
}

#[test]
fn identity_ends_with_lease() {
    let mut world = World::new(Server::Good, Settings::default(), [None; 2]);
    world.plug(1, false);
    world.pass(2 * SECOND);
    world.set_server(2, Server::Refuses);
    let now = world.lan.now();
    world.reconciler.renew(now);
    world.settle();
    world.set_server(2, Server::Elsewhere);
    world.pass(100 * SECOND);
    let expected = (2, mac(index(2)), address_elsewhere(index(2)));
    assert_eq!(world.uplink(), expected);
}

#[test]
fn restarted_netd_keeps_identity() {
    let mut world = World::new(Server::Good, Settings::default(), [None; 2]);
    world.plug(1, false);
    world.pass(2 * SECOND);
    let former = FormerUplink {
        mac: mac(index(2)),
        gateway_mac: None,
        identity: Some(mac(index(1))),
        lease: world.reconciler.election().lease().unwrap().clone(),
    };
    world.reconciler = Reconciler::new(Settings::default(), 2);
    world.start(Some(former));
    world.pass(SECOND);
    assert_eq!(world.uplink(), (2, mac(index(1)), address(index(1))));
    // Renewals go on with the identity.
    world.pass(Duration::from_secs(2 * u64::from(LEASE)));
    assert_eq!(world.uplink(), (2, mac(index(1)), address(index(1))));
}

#[test]
fn identity_is_not_kept_if_configuration_forbids_it() {
    let settings = Settings {
        keep_identity: false,
        ..Settings::default()
    };
    let mut world = World::new(Server::Good, settings, [Some(ROUTER); 2]);
    world.plug(1, false);
    world.pass(30 * SECOND);
    assert_eq!(world.uplink().0, 1);
    world.pass(10 * SECOND);
    assert_eq!(world.uplink(), (2, mac(index(2)), address(index(2))));
}
