//! The race over several NICs, with servers that answer, refuse or are silent,
//! in stepped time.

#![allow(clippy::unwrap_used)] // A test says what it expects by panicking.

#[path = "support/servers.rs"]
mod servers;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::arp::Packet;
use buildos_dhcp::{Event, Instant, MessageKind, Name, State};
use buildos_netd::uplink::election::{Candidate, Effect, Race, Rules};
use servers::{LEASE, Server, address, answer, mac, reply};

const GRACE: Duration = Duration::from_secs(35);
const HEAD_START: Duration = Duration::from_secs(1);

/// NICs 1, 2, … with one server each.
struct World {
    race: Race,
    now: Instant,
    servers: BTreeMap<u32, Server>,
    carrier: BTreeMap<u32, bool>,
    /// What was sent, and what happened, since the beginning.
    sent: Vec<(u32, MessageKind)>,
    events: Vec<(u32, Event)>,
    arp: Vec<(u32, Packet)>,
}

impl World {
    fn new(servers: &[Server], bootif: Option<u32>) -> Self {
        let rules = Rules {
            bootif: bootif.map(mac),
            head_start: HEAD_START,
            carrier_grace: GRACE,
            ..rules()
        };
        let indices = 1..=u32::try_from(servers.len()).unwrap();
        let mut world = Self {
            race: Race::new(rules, 7),
            now: Duration::from_secs(100),
            servers: indices.clone().zip(servers.iter().copied()).collect(),
            carrier: indices.map(|index| (index, true)).collect(),
            sent: Vec::new(),
            events: Vec::new(),
            arp: Vec::new(),
        };
        world.links();
        world
    }

    /// Tells the race of the links as they are now.
    fn links(&mut self) {
        let candidates = self.carrier.iter().map(|(index, carrier)| Candidate {
            index: *index,
            name: format!("eth{index}"),
            mac: mac(*index),
            carrier: *carrier,
        });
        self.race
            .set_own(self.carrier.keys().map(|index| mac(*index)).collect());
        self.race.set_candidates(self.now, candidates.collect());
        self.exchange();
    }

    fn set_carrier(&mut self, index: u32, carrier: bool) {
        self.carrier.insert(index, carrier);
        self.links();
    }

    /// Carries messages to the servers and back until nobody has anything to say.
    fn exchange(&mut self) {
        while let Some(effect) = self.race.poll() {
            match effect {
                Effect::Transmit(index, transmit) => {
                    self.sent.push((index, transmit.kind));
                    let answer = answer(self.servers[&index], transmit.kind);
                    if let Some(kind) = answer.filter(|_| self.carrier[&index]) {
                        self.race
                            .packet(self.now, index, &reply(index, &transmit, kind, LEASE));
                    }
                }
                Effect::Arp(index, packet) => self.arp.push((index, packet)),
                Effect::Event(index, event) => self.events.push((index, event)),
            }
        }
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(deadline) = self.race.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.race.timeout(self.now);
            self.exchange();
        }
        self.now = end;
    }

    fn port(&self) -> Option<u32> {
        self.race.port().map(|port| port.candidate.index)
    }

    fn leased(&self) -> Option<Ipv4Addr> {
        self.race.lease().map(|lease| lease.address)
    }

    fn requests(&self) -> Vec<u32> {
        let requests = self
            .sent
            .iter()
            .filter(|(_, kind)| *kind == MessageKind::Request);
        requests.map(|(index, _)| *index).collect()
    }
}

#[test]
fn all_nics_ask_and_one_requests() {
    let world = World::new(&[Server::Good, Server::Good, Server::Good], None);
    let discovers = world
        .sent
        .iter()
        .filter(|(_, kind)| *kind == MessageKind::Discover)
        .count();
    assert_eq!(discovers, 3);
    assert_eq!(world.requests().len(), 1, "{:?}", world.sent);
    assert_eq!(world.leased(), world.port().map(address));
    for runner in world.race.runners() {
        let expected = if Some(runner.candidate.index) == world.port() {
            State::Bound
        } else {
            State::Init
        };
        assert_eq!(runner.client.state(), expected);
    }
}

#[test]
fn dead_nics_cost_nothing() {
    let world = World::new(
        &[Server::Silent, Server::Silent, Server::Silent, Server::Good],
        None,
    );
    assert_eq!(world.port(), Some(4));
    assert_eq!(world.now, Duration::from_secs(100), "no time has passed");
}

#[test]
fn the_nic_booted_from_wins_within_its_head_start() {
    let mut world = World::new(&[Server::Good, Server::Silent], Some(2));
    assert_eq!(world.port(), None, "the offer on eth1 waits");
    world.pass(HEAD_START / 20);
    assert_eq!(world.requests(), [0; 0]);
    // Its server answers the next DISCOVER.
    world.servers.insert(2, Server::Good);
    world.pass(HEAD_START / 2);
    assert_eq!(world.requests(), [2]);
    assert_eq!(world.port(), Some(2));
}

#[test]
fn after_the_head_start_any_offer_is_taken() {
    let mut world = World::new(&[Server::Good, Server::Silent], Some(2));
    world.pass(HEAD_START);
    assert_eq!(world.port(), Some(1));
}

#[test]
fn a_head_start_without_carrier_is_none() {
    let mut world = World::new(&[Server::Silent, Server::Silent], Some(2));
    world.set_carrier(2, false);
    world.servers.insert(1, Server::Good);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.port(), Some(1));
}

#[test]
fn a_server_that_does_not_keep_its_offer_costs_five_seconds_at_most() {
    let mut world = World::new(&[Server::OffersOnly, Server::Silent], None);
    world.servers.insert(2, Server::Good);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.port(), Some(2));
    assert!(
        world
            .events
            .iter()
            .any(|e| matches!(e, (1, Event::RequestFailed { .. })))
    );
    assert_eq!(
        world.requests().iter().filter(|index| **index == 2).count(),
        1
    );
}

#[test]
fn carrier_that_comes_late_is_welcome() {
    let mut world = World::new(&[Server::Silent, Server::Good], None);
    world.set_carrier(2, false);
    let mut world = World {
        race: Race::new(rules(), 3),
        ..world
    };
    world.links();
    world.pass(Duration::from_secs(600));
    assert_eq!(world.port(), None);
    world.set_carrier(2, true);
    assert_eq!(world.port(), Some(2));
}

#[test]
fn a_short_loss_of_carrier_keeps_the_lease_and_confirms_it() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let port = world.port().unwrap();
    world.set_carrier(port, false);
    assert_eq!(world.leased(), Some(address(port)), "kept");
    world.pass(Duration::from_secs(3));
    world.set_carrier(port, true);
    assert_eq!(world.port(), Some(port));
    assert!(
        world
            .events
            .iter()
            .any(|e| matches!(e, (_, Event::Renewed(_)))),
        "confirmed"
    );
    assert_eq!(world.race.port().unwrap().client.state(), State::Bound);
}

#[test]
fn another_nic_takes_over_after_the_grace_time() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let port = world.port().unwrap();
    let other = 3 - port;
    world.set_carrier(port, false);
    world.pass(GRACE - Duration::from_secs(1));
    assert_eq!(world.port(), Some(port));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.port(), Some(other));
    assert_eq!(world.leased(), Some(address(other)));
}

#[test]
fn with_no_other_nic_the_lease_is_kept_until_it_ends() {
    let mut world = World::new(&[Server::Good], None);
    world.set_carrier(1, false);
    world.pass(Duration::from_secs(u64::from(LEASE) - 2));
    assert_eq!(world.leased(), Some(address(1)));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leased(), None);
    assert_eq!(
        world.port(),
        Some(1),
        "the port stays until another NIC wins"
    );
}

#[test]
fn an_expired_lease_starts_the_race_again() {
    let mut world = World::new(&[Server::Good, Server::Silent], None);
    world.servers.insert(1, Server::Silent);
    world.pass(Duration::from_secs(u64::from(LEASE)));
    assert_eq!(world.leased(), None);
    world.servers.insert(2, Server::Good);
    world.pass(Duration::from_secs(70));
    assert_eq!(world.port(), Some(2));
}

#[test]
fn a_nic_that_is_pulled_out_loses_its_place() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let port = world.port().unwrap();
    world.carrier.remove(&port);
    world.links();
    assert_eq!(world.port(), Some(3 - port));
}

#[test]
fn a_resumed_lease_is_confirmed_and_never_given_up_meanwhile() {
    let old = World::new(&[Server::Good, Server::Good], None);
    let port = old.port().unwrap();
    let lease = old.race.lease().unwrap().clone();
    let mut world = World {
        race: Race::new(rules(), 9),
        sent: Vec::new(),
        ..old
    };
    let uplink = Candidate {
        index: port,
        name: "uplink".into(),
        mac: mac(port),
        carrier: true,
    };
    world.race.resume(world.now, uplink, lease);
    assert_eq!(world.leased(), Some(address(port)));
    world.links();
    assert_eq!(world.leased(), Some(address(port)));
    assert_eq!(world.requests(), [port]);
    assert!(
        world
            .sent
            .iter()
            .all(|(_, kind)| *kind != MessageKind::Discover),
        "{:?}",
        world.sent
    );
    assert_eq!(world.race.port().unwrap().client.state(), State::Bound);
}

fn rules() -> Rules {
    Rules {
        bootif: None,
        head_start: HEAD_START,
        carrier_grace: GRACE,
        detect_conflicts: true,
        allowed_servers: Vec::new(),
        denied_networks: Vec::new(),
    }
}

#[test]
fn a_lease_lost_and_won_again_and_again() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    for _ in 0..5 {
        world
            .servers
            .values_mut()
            .for_each(|server| *server = Server::Silent);
        world.pass(Duration::from_secs(u64::from(LEASE)));
        assert_eq!(world.leased(), None);
        world
            .servers
            .values_mut()
            .for_each(|server| *server = Server::Good);
        world.pass(Duration::from_secs(70));
        assert!(world.leased().is_some());
    }
}

/// The claims of a host elsewhere on the network of a NIC.
fn claim(index: u32) -> Packet {
    Packet::announcement(MacAddress([2, 0, 0, 0, 1, 1]), address(index))
}

#[test]
fn the_address_requested_is_probed_for_on_its_nic() {
    let mut world = World::new(&[Server::Good, Server::Silent], None);
    world.pass(Duration::from_secs(5));
    let probe = Packet::probe(mac(1), address(1));
    let announcement = Packet::announcement(mac(1), address(1));
    assert_eq!(
        world.arp,
        [
            (1, probe),
            (1, probe),
            (1, probe),
            (1, announcement),
            (1, announcement)
        ]
    );
}

#[test]
fn an_address_in_use_is_declined_and_the_other_nic_gets_its_chance() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let port = world.port().unwrap();
    world.race.arp(world.now, port, &claim(port));
    world.exchange();
    assert!(world.sent.contains(&(port, MessageKind::Decline)));
    let lost = |event: &(u32, Event)| matches!(event, (_, Event::Lost { .. }));
    assert!(world.events.iter().any(lost));
    assert_eq!(world.leased(), Some(address(3 - port)));
}

#[test]
fn another_nic_on_the_same_network_is_no_other_host() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let port = world.port().unwrap();
    let own = Packet::announcement(mac(3 - port), address(port));
    world.race.arp(world.now, port, &own);
    world.exchange();
    assert_eq!(world.leased(), Some(address(port)));
}

#[test]
fn an_address_kept_over_a_loss_of_carrier_is_probed_for_again() {
    let mut world = World::new(&[Server::Good], None);
    world.pass(Duration::from_secs(5));
    world.arp.clear();
    world.set_carrier(1, false);
    world.race.arp(world.now, 1, &claim(1));
    assert_eq!(world.leased(), Some(address(1)), "nothing can come in");
    world.pass(Duration::from_secs(5));
    assert_eq!(world.arp, []);
    world.set_carrier(1, true);
    assert_eq!(world.arp, [(1, Packet::probe(mac(1), address(1)))]);
}

#[test]
fn detection_can_be_switched_off() {
    let mut world = World::new(&[Server::Good], None);
    let rules = Rules {
        detect_conflicts: false,
        ..rules()
    };
    world.race.set_rules(world.now, rules);
    world.race.arp(world.now, 1, &claim(1));
    world.exchange();
    assert_eq!(world.leased(), Some(address(1)));
}

#[test]
fn a_name_that_stands_is_told_to_the_server_of_the_lease() {
    let mut world = World::new(&[Server::Good], None);
    world.sent.clear();
    for name in ["rack-6", "rack-7", "rack-7"] {
        let name = ClientName::Host(name.into());
        world.race.set_name(world.now, Some(name));
        world.pass(Duration::from_secs(2));
    }
    assert!(world.requests().is_empty(), "the first did not stand");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.requests(), [1]);
    world.race.set_name(world.now, None);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.requests(), [1], "no name is nothing to tell");
}

#[test]
fn a_name_that_comes_while_a_lease_is_requested_is_told() {
    let mut world = World::new(&[Server::OffersOnly], None);
    assert_eq!(world.requests(), [1]);
    let name = ClientName::Host("rack-7".into());
    world.race.set_name(world.now, Some(name));
    world.servers.insert(1, Server::Good);
    for _ in 0..100 {
        if world.leased().is_some() {
            break;
        }
        world.pass(Duration::from_millis(100));
    }
    assert!(world.leased().is_some());
    world.sent.clear();
    world.pass(Duration::from_secs(5));
    assert_eq!(world.requests(), [1]);
}

#[test]
fn a_former_port_gives_its_lease_up_and_may_win_again() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let first = world.port().unwrap();
    let second = 3 - first;
    world.set_carrier(first, false);
    world.pass(GRACE);
    assert_eq!(world.port(), Some(second));
    let lease = |world: &World, index| {
        let mut runners = world.race.runners();
        let runner = runners.find(|r| r.candidate.index == index).unwrap();
        runner.client.lease().is_some()
    };
    assert!(!lease(&world, first));
    world.set_carrier(first, true);
    world.set_carrier(second, false);
    world.pass(GRACE);
    assert_eq!(world.port(), Some(first));
    assert_eq!(world.leased(), Some(address(first)));
    assert!(!lease(&world, second));
}

#[test]
fn a_resumed_address_is_defended_instead_of_doubted() {
    let old = World::new(&[Server::Good], None);
    let lease = old.race.lease().unwrap().clone();
    let mut world = World {
        race: Race::new(rules(), 9),
        arp: Vec::new(),
        ..old
    };
    let uplink = Candidate {
        index: 1,
        name: "uplink".into(),
        mac: mac(1),
        carrier: true,
    };
    world.race.resume(world.now, uplink, lease);
    world.exchange();
    assert_eq!(world.arp, []);
    world.race.arp(world.now, 1, &claim(1));
    world.exchange();
    let announcement = Packet::announcement(mac(1), address(1));
    assert_eq!(world.arp, [(1, announcement)]);
    assert_eq!(world.leased(), Some(address(1)));
}
