//! The race over several NICs, with servers that answer, refuse or are silent,
//! in stepped time.

#![allow(clippy::unwrap_used)] // A test says what it expects by panicking.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::arp::Packet;
use buildos_dhcp::{Event, Instant, MessageKind, State, Transmit};
use buildos_netd::mac::MacAddress;
use buildos_netd::race::{Candidate, Effect, Race, Rules};

const GRACE: Duration = Duration::from_secs(35);
const HEAD_START: Duration = Duration::from_secs(1);
const LEASE: u32 = 3600;

/// What a server does with one kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Good,
    /// Offers and does not answer the REQUEST.
    OffersOnly,
    Silent,
}

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
                            .packet(self.now, index, &reply(index, &transmit, kind));
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

fn mac(index: u32) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])
}

fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(index).unwrap() + 100)
}

fn answer(server: Server, kind: MessageKind) -> Option<u8> {
    const OFFER: u8 = 2;
    const ACK: u8 = 5;
    match (server, kind) {
        (Server::Good | Server::OffersOnly, MessageKind::Discover) => Some(OFFER),
        (Server::Good, MessageKind::Request) => Some(ACK),
        _ => None,
    }
}

/// A reply of the server on the network of that NIC (RFC 2131, table 3).
fn reply(index: u32, to: &Transmit, kind: u8) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[2, 1, 6]);
    message[4..8].copy_from_slice(&to.payload[4..8]);
    message[16..20].copy_from_slice(&address(index).octets());
    message[28..34].copy_from_slice(&mac(index).0);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([
        53, 1, kind, 54, 4, 192, 0, 2, 1, 1, 4, 255, 255, 255, 0, 51, 4,
    ]);
    message.extend(LEASE.to_be_bytes());
    message.push(255);
    message
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
    world.servers.insert(2, Server::Good);
    // Its next DISCOVER may come too late; a server that answers late does not.
    world.pass(HEAD_START / 2);
    assert_eq!(world.requests(), [0; 0]);
    world.pass(HEAD_START);
    assert!(world.port().is_some());
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
