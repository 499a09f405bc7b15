//! Runs the reconciler with random events: over a fake kernel with a clock, with servers
//! that behave or misbehave, operators that pull cables, and programs that undo changes.
//!
//! [`World::check`] checks the invariants after each step.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "support/lan.rs"]
mod lan;
#[path = "support/nics.rs"]
mod nics;
#[path = "support/servers.rs"]
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use buildos_dhcp::arp::Packet;
use buildos_dhcp::{Instant, State};
use buildos_netd::kernel::fake;
use buildos_netd::observed::{Link, PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use buildos_netd::pattern::Pattern;
use buildos_netd::plan::Op;
use buildos_netd::reconcile::{FormerUplink, Kernel as _, RETRY, Reconciler};
use buildos_netd::settings::Settings;
use buildos_netd::uplink::path::Uplink;
use buildos_types::{LinkIndex, MacAddress};
use lan::Lan;
use nics::{index, mac, nic};
use proptest::prelude::*;
use servers::{Server, address};

/// A static address that a server grants, too.
const STATIC: &str = "192.0.2.102/24 via 192.0.2.1";
const NICS: std::ops::RangeInclusive<u32> = 1..=3;

fn all_nics() -> impl Iterator<Item = LinkIndex> {
    NICS.map(index)
}

/// Operations that the kernel refuses.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    Everything,
    /// Creation and settings of bridges, links up, hardware addresses.
    Links,
    /// Addition of ports to bridges.
    Attach,
    /// Removal of ports from bridges.
    Detach,
    Addresses,
    Routes,
}

impl Refusal {
    fn applies_to(self, op: &Op) -> bool {
        match op {
            _ if matches!(self, Self::Everything) => true,
            Op::CreateBridge(..)
            | Op::CreateVlan(_)
            | Op::RemoveVlan(_)
            | Op::DisableIpv6AndArp(_)
            | Op::DisableIpv6(_)
            | Op::EnableIpv6(_)
            | Op::SetBridge(_)
            | Op::SetMac(..)
            | Op::SetMtu(..)
            | Op::SetUp(_) => matches!(self, Self::Links),
            Op::Attach { .. } => matches!(self, Self::Attach),
            Op::Detach(_) => matches!(self, Self::Detach),
            Op::SetAddress(_) | Op::RemoveAddress(_) => matches!(self, Self::Addresses),
            Op::AddRoute(_) | Op::RemoveRoute(_) => matches!(self, Self::Routes),
        }
    }
}

/// An event.
#[derive(Debug, Clone)]
enum Step {
    Carrier(LinkIndex, bool),
    /// A NIC is added or removed.
    Plug(LinkIndex, bool),
    /// The configuration excludes a NIC, or includes it again.
    Exclude(LinkIndex, bool),
    /// The configuration gives a NIC a VLAN, or takes it away.
    Tag(LinkIndex, Option<i64>),
    Server(LinkIndex, Server, u32),
    Pass(u32),
    /// Another host claims the address.
    Claim(LinkIndex),
    Renew,
    /// netd receives messages between operations, or only after them.
    Immediate(bool),
    /// netd is killed and restarted with its saved state.
    Restart,
    /// netd starts without it, as in a new boot, with the lease of the boot before.
    Boot,
    /// The lease of the boot before is found late.
    FormerLease,
    /// The kernel refuses operations from now on.
    Refuse(Refusal),
    /// The kernel accepts all operations again.
    Accept,
    // Other programs undo netd's changes.
    RemoveAddresses,
    RemoveRoutes,
    RemovePort,
    RemoveBridge,
    SetDown(LinkIndex),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let nic = || NICS.prop_map(index);
    let server = prop_oneof![
        4 => Just(Server::Good),
        1 => Just(Server::OffersOnly),
        1 => Just(Server::Silent),
        1 => Just(Server::Refuses),
    ];
    let refusal = prop_oneof![
        Just(Refusal::Everything),
        Just(Refusal::Links),
        Just(Refusal::Attach),
        Just(Refusal::Detach),
        Just(Refusal::Addresses),
        Just(Refusal::Routes),
    ];
    let step = prop_oneof![
        4 => (nic(), any::<bool>()).prop_map(|(nic, on)| Step::Carrier(nic, on)),
        1 => (nic(), any::<bool>()).prop_map(|(nic, on)| Step::Plug(nic, on)),
        1 => (nic(), any::<bool>()).prop_map(|(nic, out)| Step::Exclude(nic, out)),
        1 => (nic(), prop::option::of(42i64..44)).prop_map(|(nic, vlan)| Step::Tag(nic, vlan)),
        3 => (nic(), server, 10u32..5000).prop_map(|(nic, server, lease)| Step::Server(nic, server, lease)),
        4 => (0u32..200_000).prop_map(Step::Pass),
        2 => (0u32..5_000_000).prop_map(Step::Pass),
        1 => nic().prop_map(Step::Claim),
        1 => Just(Step::Renew),
        1 => any::<bool>().prop_map(Step::Immediate),
        1 => Just(Step::Restart),
        1 => Just(Step::Boot),
        1 => Just(Step::FormerLease),
        2 => refusal.prop_map(Step::Refuse),
        2 => Just(Step::Accept),
        1 => Just(Step::RemoveAddresses),
        1 => Just(Step::RemoveRoutes),
        1 => Just(Step::RemovePort),
        1 => Just(Step::RemoveBridge),
        1 => nic().prop_map(Step::SetDown),
    ];
    prop::collection::vec(step, 100)
}

struct World {
    reconciler: Reconciler,
    lan: Lan,
    excluded: BTreeSet<LinkIndex>,
    vlans: BTreeMap<LinkIndex, i64>,
    refusing: bool,
    /// A static address is configured, and expired leases are kept.
    fallback: bool,
    /// What the state volume has.
    former_boot: Option<FormerUplink>,
}

impl World {
    fn new(fallback: bool) -> Self {
        let mut world = Self {
            reconciler: Reconciler::new(settings(&BTreeSet::new(), &BTreeMap::new(), fallback), 1),
            lan: Lan::new(Duration::from_secs(100)),
            excluded: BTreeSet::new(),
            vlans: BTreeMap::new(),
            refusing: false,
            fallback,
            former_boot: None,
        };
        for nic in all_nics() {
            world.lan.servers.insert(nic, (Server::Good, 3600));
            world.lan.kernel.plug(nic, true);
            world.add_nic(nic);
        }
        world.start(None);
        world
    }

    fn now(&self) -> Instant {
        self.lan.now()
    }

    fn add_nic(&mut self, index: LinkIndex) {
        if !self.lan.kernel.observed.links.contains_key(&index) {
            self.lan.kernel.add_link(nic(index, &format!("eth{index}")));
        }
    }

    fn step(&mut self, step: &Step) {
        let now = self.now();
        let observed = &mut self.lan.kernel.observed;
        match *step {
            Step::Carrier(nic, on) => {
                self.lan.kernel.plug(nic, on);
            }
            Step::Plug(nic, true) => self.add_nic(nic),
            Step::Plug(nic, false) => {
                observed.links.remove(&nic);
            }
            Step::Exclude(nic, out) => {
                match out {
                    true => self.excluded.insert(nic),
                    false => self.excluded.remove(&nic),
                };
                let settings = settings(&self.excluded, &self.vlans, self.fallback);
                self.reconciler.configure(now, settings);
            }
            Step::Tag(nic, vlan) => {
                match vlan {
                    Some(vlan) => self.vlans.insert(nic, vlan),
                    None => self.vlans.remove(&nic),
                };
                let settings = settings(&self.excluded, &self.vlans, self.fallback);
                self.reconciler.configure(now, settings);
            }
            Step::Server(nic, server, lease) => {
                self.lan.servers.insert(nic, (server, lease));
            }
            Step::Pass(milliseconds) => {
                // A refusal costs a retry every two seconds.
                let limit = if self.refusing { 60_000 } else { u32::MAX };
                let milliseconds = milliseconds.min(limit);
                return self.pass(Duration::from_millis(milliseconds.into()));
            }
            Step::Claim(nic) => {
                let claim = Packet::announcement(MacAddress([2, 0, 0, 0, 1, 1]), address(nic));
                self.reconciler.arp(now, nic, &claim);
            }
            Step::Renew => self.reconciler.renew(now),
            Step::Immediate(on) => self.lan.immediate = on,
            Step::Restart => return self.restart(),
            Step::Boot => return self.boot(),
            Step::FormerLease => {
                if let Some(former) = self.former_boot.clone() {
                    self.reconciler.ask_for_former_lease(now, former);
                }
            }
            Step::Refuse(refusal) => {
                self.refusing = true;
                self.lan.kernel.refuse(move |op| refusal.applies_to(op));
            }
            Step::Accept => return self.accept(),
            Step::RemoveAddresses => observed.addresses.clear(),
            Step::RemoveRoutes => observed.routes.clear(),
            Step::RemovePort => {
                let links = observed.links.values_mut();
                links.for_each(|link| link.controller = None);
            }
            Step::RemoveBridge => {
                observed.links.retain(|_, link| link.bridge.is_none());
                let links = observed.links.values_mut();
                links.for_each(|link| link.controller = None);
                observed.addresses.clear();
                observed.routes.clear();
            }
            Step::SetDown(nic) => {
                if let Some(link) = observed.links.get_mut(&nic) {
                    link.up = false;
                }
            }
        }
        self.reconciler.kernel_changed(None);
        self.settle();
    }

    /// Accepts all operations. The retries must bring the kernel into the desired state.
    fn accept(&mut self) {
        self.lan.kernel.refuse(|_| false);
        self.pass(RETRY);
        self.refusing = false;
        assert!(self.reconciler.is_settled());
        assert_eq!(self.reconciler.refused(), []);
    }

    /// Restarts netd. `state.json` has a lease once its address is on br0.
    fn restart(&mut self) {
        let former = self.former();
        self.start_anew(former);
    }

    /// Starts netd with a lease that has to be asked for.
    fn boot(&mut self) {
        self.former_boot = self.former().or(self.former_boot.take());
        self.start_anew(None);
        if let Some(former) = self.former_boot.clone() {
            let now = self.now();
            self.reconciler.ask_for_former_lease(now, former);
        }
        self.settle();
    }

    fn former(&self) -> Option<FormerUplink> {
        let br0 = self.lan.kernel.observed.bridge(PUBLIC_BRIDGE);
        let br0 = br0.map(|bridge| bridge.index);
        let election = self.reconciler.election();
        let lease = election.lease().filter(|lease| {
            let mut addresses = self.lan.kernel.observed.addresses.iter();
            addresses.any(|a| Some(a.link) == br0 && a.net.addr() == lease.address)
        });
        election
            .port()
            .zip(lease)
            .map(|(port, lease)| FormerUplink {
                mac: port.candidate.mac,
                identity: Some(port.client.mac()),
                gateway_mac: election.gateway_mac(),
                lease: lease.clone(),
            })
    }

    fn start_anew(&mut self, former: Option<FormerUplink>) {
        let seed = u64::try_from(self.now().as_nanos()).unwrap();
        self.reconciler =
            Reconciler::new(settings(&self.excluded, &self.vlans, self.fallback), seed);
        self.lan.replies.clear();
        self.start(former);
    }

    fn start(&mut self, former: Option<FormerUplink>) {
        let start = self.reconciler.start(&mut self.lan, former);
        fake::run(start).unwrap().unwrap();
        self.settle();
    }

    /// Advances the time, deadline by deadline.
    fn pass(&mut self, duration: Duration) {
        let end = self.now() + duration;
        loop {
            let deadlines = [self.reconciler.deadline(), self.lan.kernel.next_expiry()];
            let next = deadlines.into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.advance(next.max(self.now()));
            self.check();
        }
        self.advance(end);
    }

    fn advance(&mut self, now: Instant) {
        if !self.lan.kernel.advance(now).is_empty() {
            self.reconciler.kernel_changed(None);
        }
        self.reconciler.timeout(now);
        self.settle();
    }

    /// Delivers messages until no message is left.
    fn settle(&mut self) {
        loop {
            let step = self.reconciler.step(&mut self.lan);
            fake::run(step).unwrap().unwrap();
            let Some((nic, message)) = self.lan.replies.pop_front() else {
                return;
            };
            self.reconciler.packet(self.lan.now(), nic, &message);
        }
    }

    fn check(&mut self) {
        let election = self.reconciler.election();
        let states = election.contenders().map(|c| c.client.state());
        assert!(states.filter(|state| *state == State::Requesting).count() <= 1);
        let port = election.port().map(|port| port.candidate.index);
        for contender in election.contenders() {
            let index = contender.candidate.index;
            let has_lease = contender.client.lease().is_some();
            assert!(!has_lease || Some(index) == port, "{index} is not the port");
        }
        if self.reconciler.is_settled() {
            return self.check_kernel();
        }
        assert!(self.refusing, "not settled");
        let retry = self.reconciler.deadline();
        assert!(retry.is_some_and(|at| at <= self.now() + RETRY), "no retry");
    }

    /// Checks the kernel's state while it is the desired one.
    fn check_kernel(&self) {
        let observed = &self.lan.kernel.observed;
        let br0 = observed.bridge(PUBLIC_BRIDGE).unwrap();
        let br1 = observed.bridge(PRIVATE_BRIDGE).unwrap();
        let ports: Vec<_> = observed.ports(PUBLIC_BRIDGE).collect();
        assert!(ports.len() <= 1, "{ports:?}");
        let contender = self.reconciler.election().port();
        let uplink = contender.map(|contender| contender.candidate.index);
        let identity = contender.map(|contender| contender.client.mac());
        if let Some(port) = ports.first() {
            // After a refused Detach, br0 may keep the address of an uplink that is gone.
            if uplink == Some(port.index) {
                assert_eq!(br0.mac, identity);
            } else if self.lan.refused.is_empty() {
                let mut macs = all_nics().map(mac);
                assert!(macs.any(|mac| br0.mac == Some(mac)));
            }
            assert!(!self.excluded.contains(&observed.nic_of(port.index)));
            assert!(
                !self.vlans.contains_key(&port.index),
                "the NIC of a VLAN is in br0"
            );
        }
        let own = observed.links.values().filter_map(Link::own_vlan);
        let own = own.map(|vlan| (vlan.nic, i64::from(vlan.id)));
        let needed = self.vlans.iter().map(|(nic, vlan)| (*nic, *vlan));
        let needed = needed
            .filter(|(nic, _)| observed.links.contains_key(nic) && !self.excluded.contains(nic));
        let own: BTreeSet<_> = own.collect();
        assert_eq!(own, needed.collect::<BTreeSet<_>>());
        let (leased, private): (Vec<_>, Vec<_>) = observed
            .addresses
            .iter()
            .partition(|address| address.link != br1.index);
        for address in leased {
            // A server granted it, and the lease has not ended.
            let granted = self.lan.granted.iter();
            let granted = granted
                .filter(|((owner, _), _)| servers::address(*owner) == address.net.addr())
                .map(|(_, until)| until);
            let is_static = address.net.to_string() == "192.0.2.102/24";
            let granted = granted.max();
            assert!(
                (self.fallback && (is_static || granted.is_some()))
                    || granted.is_some_and(|until| *until >= self.now()),
                "{address:?} at {:?}",
                self.now()
            );
            assert_eq!(address.link, br0.index);
            assert!(self.reconciler.election().lease().is_some());
        }
        assert_eq!(private.len(), 1);
        assert_eq!(private[0].net, "172.23.0.1/16".parse().unwrap());
        let has_lease = observed.addresses.iter().any(|a| a.link == br0.index);
        assert!(has_lease || observed.routes.is_empty(), "{observed:?}");
    }
}

fn settings(
    excluded: &BTreeSet<LinkIndex>,
    vlans: &BTreeMap<LinkIndex, i64>,
    fallback: bool,
) -> Settings {
    let uplinks = vlans.iter().map(|(nic, vlan)| {
        let uplink = Uplink {
            links: vec![format!("eth{nic}").try_into().unwrap()],
            vlan: Some((*vlan).try_into().unwrap()),
        };
        (format!("nic{nic}").parse().unwrap(), uplink)
    });
    let exclude = excluded.iter().map(|nic| Pattern(format!("eth{nic}")));
    Settings {
        bootif: Some(mac(index(1))),
        exclude: exclude.collect(),
        uplinks: uplinks.collect(),
        static_address: fallback.then(|| STATIC.to_owned().try_into().unwrap()),
        keep_expired: fallback,
        ..Settings::default()
    }
}

/// Returns the settings of proptest, with `PROPTEST_CASES` cases; 100 by default.
fn config() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(100),
    }
}

proptest! {
    #![proptest_config(config())]

    /// Runs 100 steps.
    #[test]
    fn invariants_hold_after_every_step(steps in steps(), fallback in any::<bool>()) {
        let mut world = World::new(fallback);
        world.check();
        for step in &steps {
            world.step(step);
            world.check();
        }
    }

    /// Once one NIC works and the kernel accepts operations, the host is online within five
    /// minutes: the grace time, the longest rest after NAKs and conflicts, and an exchange.
    #[test]
    fn host_with_one_working_nic_is_online_within_five_minutes(
        steps in steps(),
        nic in NICS.prop_map(index),
        fallback in any::<bool>(),
    ) {
        let mut world = World::new(fallback);
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Accept);
        world.step(&Step::Plug(nic, true));
        world.step(&Step::Exclude(nic, false));
        world.step(&Step::Server(nic, Server::Good, 3600));
        world.step(&Step::Carrier(nic, true));
        world.pass(Duration::from_secs(300));
        world.check();
        if world.reconciler.election().lease().is_none() {
            // A server has just taken the lease back: the search takes as long as any other.
            world.pass(Duration::from_secs(300));
            world.check();
        }
        let observed = &world.lan.kernel.observed;
        let br0 = observed.bridge(PUBLIC_BRIDGE).unwrap().index;
        prop_assert!(observed.addresses.iter().any(|a| a.link == br0));
        let port = world.reconciler.election().port().unwrap();
        prop_assert!(port.candidate.carrier, "the port has no carrier");
        prop_assert!(port.client.lease().is_some(), "the address is no lease");
    }
}
