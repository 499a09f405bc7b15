//! Whatever happens, in any order: race, wish and plan over a kernel with a clock,
//! servers that behave and misbehave, and people who pull cables and undo things.
//!
//! What must hold after every step is in [`World::check`].

#![allow(clippy::unwrap_used)] // A test says what it expects by panicking.

#[path = "support/fake_kernel.rs"]
mod kernel;
#[path = "support/servers.rs"]
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use buildos_dhcp::arp::Packet;
use buildos_dhcp::{Instant, Lease, MessageKind, State};
use buildos_netd::desired::Wish;
use buildos_netd::plan::{Observed, Op, PRIVATE_BRIDGE, PUBLIC_BRIDGE, plan};
use buildos_netd::private::PrivateNetwork;
use buildos_netd::uplink::election::{Candidate, Effect, Race, Rules};
use kernel::{BR0, apply, link};
use proptest::prelude::*;
use servers::{Server, address, answer, mac, reply};

const NICS: std::ops::RangeInclusive<u32> = 1..=3;

/// What may happen.
#[derive(Debug, Clone)]
enum Step {
    Carrier(u32, bool),
    Plug(u32, bool),
    /// The configuration takes a NIC out, or in again.
    Exclude(u32, bool),
    Server(u32, Server, u32),
    Pass(u32),
    Claim(u32),
    Renew,
    /// netd is killed and starts again with what it saved.
    Restart,
    /// Somebody undoes what netd did.
    RemoveAddresses,
    RemoveRoutes,
    RemovePort,
    RemoveBridge,
    SetDown(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let nic = || NICS;
    let server = prop_oneof![
        4 => Just(Server::Good),
        1 => Just(Server::OffersOnly),
        1 => Just(Server::Silent),
        1 => Just(Server::Refuses),
    ];
    let step = prop_oneof![
        4 => (nic(), any::<bool>()).prop_map(|(nic, on)| Step::Carrier(nic, on)),
        1 => (nic(), any::<bool>()).prop_map(|(nic, on)| Step::Plug(nic, on)),
        1 => (nic(), any::<bool>()).prop_map(|(nic, out)| Step::Exclude(nic, out)),
        3 => (nic(), server, 1u32..5000).prop_map(|(nic, server, lease)| Step::Server(nic, server, lease)),
        4 => (0u32..200_000).prop_map(Step::Pass),
        2 => (0u32..5_000_000).prop_map(Step::Pass),
        1 => nic().prop_map(Step::Claim),
        1 => Just(Step::Renew),
        1 => Just(Step::Restart),
        1 => Just(Step::RemoveAddresses),
        1 => Just(Step::RemoveRoutes),
        1 => Just(Step::RemovePort),
        1 => Just(Step::RemoveBridge),
        1 => nic().prop_map(Step::SetDown),
    ];
    prop::collection::vec(step, 100)
}

struct World {
    now: Instant,
    race: Race,
    observed: Observed,
    /// Until when an address is in the kernel; it removes it then by itself.
    ends: Option<Instant>,
    private: PrivateNetwork,
    carrier: BTreeMap<u32, bool>,
    excluded: BTreeSet<u32>,
    servers: BTreeMap<u32, (Server, u32)>,
    /// Until when the server of a NIC has granted its address.
    granted: BTreeMap<u32, Instant>,
}

fn race(seed: u64) -> Race {
    let rules = Rules {
        bootif: Some(mac(1)),
        head_start: Duration::from_secs(1),
        carrier_grace: Duration::from_secs(35),
        detect_conflicts: true,
        allowed_servers: Vec::new(),
        denied_networks: Vec::new(),
    };
    Race::new(rules, seed)
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: Duration::from_secs(100),
            race: race(1),
            observed: Observed::default(),
            ends: None,
            private: "172.23.0.1/16".parse().unwrap(),
            carrier: NICS.map(|nic| (nic, true)).collect(),
            excluded: BTreeSet::new(),
            servers: NICS.map(|nic| (nic, (Server::Good, 3600))).collect(),
            granted: BTreeMap::new(),
        };
        NICS.for_each(|nic| world.plug(nic));
        world.reconcile();
        world
    }

    fn plug(&mut self, nic: u32) {
        let link = buildos_netd::observed::Link {
            mac: Some(mac(nic)),
            ..link(nic, &format!("eth{nic}"))
        };
        self.observed.links.entry(nic).or_insert(link);
    }

    fn unplug(&mut self, nic: u32) {
        self.observed.links.remove(&nic);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Carrier(nic, on) => {
                self.carrier.insert(nic, on);
            }
            Step::Plug(nic, true) => self.plug(nic),
            Step::Plug(nic, false) => self.unplug(nic),
            Step::Exclude(nic, true) => {
                self.excluded.insert(nic);
            }
            Step::Exclude(nic, false) => {
                self.excluded.remove(&nic);
            }
            Step::Server(nic, server, lease) => {
                self.servers.insert(nic, (server, lease));
            }
            Step::Pass(milliseconds) => {
                return self.pass(Duration::from_millis(milliseconds.into()));
            }
            Step::Claim(nic) => {
                let claim = Packet::announcement(MacAddress([2, 0, 0, 0, 1, 1]), address(nic));
                self.race.arp(self.now, nic, &claim);
            }
            Step::Renew => self.race.renew(self.now),
            Step::Restart => self.restart(),
            Step::RemoveAddresses => {
                self.observed.addresses.clear();
                self.ends = None;
            }
            Step::RemoveRoutes => self.observed.routes.clear(),
            Step::RemovePort => {
                let links = self.observed.links.values_mut();
                links.for_each(|link| link.controller = None);
            }
            Step::RemoveBridge => {
                let bridge = |link: &buildos_netd::observed::Link| link.bridge.is_some();
                self.observed.links.retain(|_, link| !bridge(link));
                let links = self.observed.links.values_mut();
                links.for_each(|link| link.controller = None);
                self.observed.addresses.clear();
                self.observed.routes.clear();
                self.ends = None;
            }
            Step::SetDown(nic) => {
                if let Some(link) = self.observed.links.get_mut(&nic) {
                    link.up = false;
                }
            }
        }
        self.reconcile();
    }

    fn restart(&mut self) {
        let port = self.race.port().map(|port| port.candidate.index);
        // As state.json: a lease is saved once its address is on br0.
        let saved: Option<Lease> = self.race.lease().cloned();
        let saved = saved.filter(|lease| {
            let mut addresses = self.observed.addresses.iter();
            addresses.any(|a| a.link == BR0 && a.net.addr() == lease.address)
        });
        self.race = race(u64::try_from(self.now.as_nanos()).unwrap());
        let candidate = self
            .candidates()
            .into_iter()
            .find(|c| Some(c.index) == port);
        if let Some((candidate, lease)) = candidate.zip(saved) {
            self.race.resume(self.now, candidate, lease);
        }
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let deadlines = self.race.deadline().into_iter().chain(self.ends);
            let Some(next) = deadlines.min().filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.expire();
            self.race.timeout(self.now);
            self.reconcile();
            self.check();
        }
        self.now = end;
        self.expire();
        self.reconcile();
    }

    /// The kernel's part: an address ends with its lifetime, its routes with it.
    fn expire(&mut self) {
        if self.ends.is_some_and(|ends| ends <= self.now) {
            self.observed.addresses.retain(|a| a.link != BR0);
            self.observed.routes.clear();
            self.ends = None;
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let links = self.observed.links.values();
        let nics = links.filter(|l| l.bridge.is_none() && !self.excluded.contains(&l.index));
        nics.map(|link| Candidate {
            index: link.index,
            name: link.name.clone(),
            mac: link.mac.unwrap(),
            carrier: link.up && self.carrier[&link.index],
        })
        .collect()
    }

    /// As `Netd::reconcile`, with a kernel that does what it is told.
    fn reconcile(&mut self) {
        for _ in 0..6 {
            self.exchange();
            let candidates = self.candidates();
            self.race.set_candidates(self.now, candidates);
            self.exchange();
            let links = self.observed.links.values().filter(|l| l.bridge.is_none());
            let nics = links.map(|link| link.index).collect();
            let wish = Wish::new(&self.race, nics, Some(self.private), self.now);
            let ops = plan(&wish, &self.observed);
            if ops.is_empty() {
                return;
            }
            for op in &ops {
                apply(&mut self.observed, op);
                if let Op::SetAddress(a) = op {
                    if a.link == BR0 {
                        // In whole seconds, which the kernel counts by itself.
                        let left = a.expires.unwrap().saturating_sub(self.now).as_secs();
                        self.ends = Some(self.now + Duration::from_secs(left));
                    }
                }
                // At no time are two NICs of ours in br0.
                let ports = self.observed.links.values();
                assert!(ports.filter(|l| l.controller == Some(BR0)).count() <= 1);
            }
        }
        panic!("still something to do");
    }

    fn exchange(&mut self) {
        while let Some(effect) = self.race.poll() {
            let Effect::Transmit(nic, transmit) = effect else {
                continue;
            };
            let (server, lease) = self.servers[&nic];
            let reached = self.carrier[&nic] && self.observed.links.contains_key(&nic);
            let Some(kind) = answer(server, transmit.kind).filter(|_| reached) else {
                continue;
            };
            if transmit.kind == MessageKind::Request && server == Server::Good {
                let until = self.now + Duration::from_secs(lease.into());
                self.granted.insert(nic, until);
            }
            let message = reply(nic, &transmit, kind, lease);
            self.race.packet(self.now, nic, &message);
        }
    }

    fn check(&mut self) {
        let br0 = self.observed.bridge(PUBLIC_BRIDGE).unwrap();
        let br1 = self.observed.bridge(PRIVATE_BRIDGE).unwrap();
        let links = self.observed.links.values();
        let ports: Vec<_> = links.filter(|l| l.controller == Some(br0.index)).collect();
        assert!(ports.len() <= 1, "{ports:?}");
        let requesting = self
            .race
            .runners()
            .filter(|runner| runner.client.state() == State::Requesting);
        assert!(requesting.count() <= 1);
        // br0 has its port's hardware address.
        if let Some(port) = ports.first() {
            assert_eq!(br0.mac, port.mac);
            assert!(!self.excluded.contains(&port.index));
        }
        // Nobody but the port has a lease.
        let port = self.race.port().map(|port| port.candidate.index);
        for runner in self.race.runners() {
            let index = runner.candidate.index;
            assert!(
                runner.client.lease().is_none() || Some(index) == port,
                "{index}"
            );
        }
        for address in &self.observed.addresses {
            if address.link == br1.index {
                assert_eq!(address.net, self.private.interface());
                continue;
            }
            // On br0: what a server granted, and not for longer.
            let granted = NICS
                .filter(|nic| servers::address(*nic) == address.net.addr())
                .filter_map(|nic| self.granted.get(&nic));
            assert!(
                granted.max().is_some_and(|until| *until >= self.now),
                "{address:?} at {:?}",
                self.now
            );
            assert!(self.race.lease().is_some());
        }
        let private = self.observed.addresses.iter();
        assert_eq!(private.filter(|a| a.link == br1.index).count(), 1);
        let routes = self.observed.routes.len();
        assert!(self.ends.is_some() || routes == 0, "{routes} routes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// A hundred times a hundred steps.
    #[test]
    fn what_must_hold_holds_after_every_step(steps in steps()) {
        let mut world = World::new();
        world.check();
        for step in &steps {
            world.step(step);
            world.check();
        }
    }

    /// Once one NIC is well again, the host is online within five minutes: the grace
    /// time, the longest rest after NAKs and conflicts, and an exchange.
    #[test]
    fn whatever_happened_one_good_nic_is_enough(steps in steps(), nic in NICS) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Plug(nic, true));
        world.step(&Step::Exclude(nic, false));
        world.step(&Step::Server(nic, Server::Good, 3600));
        world.step(&Step::Carrier(nic, true));
        world.pass(Duration::from_secs(300));
        world.check();
        prop_assert!(world.observed.addresses.iter().any(|a| a.link == BR0));
        let port = world.race.port().unwrap();
        prop_assert!(port.candidate.carrier, "a dead port");
    }
}
