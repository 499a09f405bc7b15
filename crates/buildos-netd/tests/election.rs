//! Runs elections among several NICs in stepped time, with servers that answer, refuse or
//! are silent.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "support/nics.rs"]
mod nics;
#[path = "support/servers.rs"]
mod servers;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::address_conflict::Report;
use buildos_dhcp::arp::Packet;
use buildos_dhcp::{ClientName, Event, Identity, Instant, Lease, MessageKind, State};
use buildos_netd::settings::OnlineRequires;
use buildos_netd::uplink::candidate::Candidate;
use buildos_netd::uplink::election::{Effect, Election, Rules};
use buildos_netd::uplink::notice::Notice;
use buildos_types::{LinkIndex, MacAddress};
use nics::{index, mac};
use servers::{LEASE, Server, address, address_elsewhere, answer, link_local_address, reply};

const GRACE: Duration = Duration::from_secs(35);
/// Duration of the check whether a claimant does proxy ARP.
const CHECK: Duration = Duration::from_millis(1200);
const HEAD_START: Duration = Duration::from_secs(1);
const ROUTER: MacAddress = MacAddress([2, 0, 0, 0, 0xfe, 1]);
const ROUTER_ELSEWHERE: MacAddress = MacAddress([2, 0, 0, 0, 0xfe, 2]);
const BOOTIF_WAIT: Duration = Duration::from_secs(30);

/// An election among NICs 1, 2, … with one server each.
struct World {
    election: Election,
    now: Instant,
    servers: BTreeMap<LinkIndex, Server>,
    carrier: BTreeMap<LinkIndex, bool>,
    /// Sent messages and events since the start.
    sent: Vec<(LinkIndex, MessageKind)>,
    events: Vec<(LinkIndex, Event)>,
    arp: Vec<(LinkIndex, Packet)>,
    gone: Vec<LinkIndex>,
    carrier_losses: u32,
    reports: Vec<(LinkIndex, Ipv4Addr, Report)>,
    notices: Vec<(LinkIndex, Notice)>,
    /// Hardware address of the gateway that answers ARP on the network of each NIC.
    gateways: BTreeMap<LinkIndex, MacAddress>,
}

impl World {
    fn new(servers: &[Server], bootif: Option<u32>) -> Self {
        let mut world = Self::before(servers, bootif);
        world.links();
        world
    }

    /// Returns the world before the election has seen a NIC.
    fn before(servers: &[Server], bootif: Option<u32>) -> Self {
        let rules = Rules {
            bootif: bootif.map(index).map(mac),
            head_start: HEAD_START,
            carrier_grace: GRACE,
            ..rules()
        };
        let indices = (1..=u32::try_from(servers.len()).unwrap()).map(index);
        Self {
            election: Election::new(rules, 7),
            now: Duration::from_secs(100),
            servers: indices.clone().zip(servers.iter().copied()).collect(),
            carrier: indices.map(|index| (index, true)).collect(),
            sent: Vec::new(),
            events: Vec::new(),
            arp: Vec::new(),
            gone: Vec::new(),
            carrier_losses: 0,
            reports: Vec::new(),
            notices: Vec::new(),
            gateways: BTreeMap::new(),
        }
    }

    /// Updates the candidates.
    fn links(&mut self) {
        let candidates = self.candidates();
        self.election
            .set_own_macs(self.carrier.keys().map(|index| mac(*index)).collect());
        self.election.set_candidates(self.now, candidates);
        self.exchange();
    }

    fn candidates(&self) -> Vec<Candidate> {
        let candidates = self.carrier.iter().map(|(index, carrier)| Candidate {
            index: *index,
            name: format!("eth{index}").parse().unwrap(),
            mac: mac(*index),
            carrier: *carrier,
            carrier_losses: self.carrier_losses,
            nic: *index,
        });
        candidates.collect()
    }

    /// Resumes the lease of an earlier netd.
    fn resume(&mut self, index: LinkIndex, lease: Lease, gateway: Option<MacAddress>) {
        let nic = self.candidates().into_iter().find(|nic| nic.index == index);
        self.election
            .resume(self.now, nic.unwrap(), lease, gateway, None);
        self.links();
    }

    fn set_carrier(&mut self, index: LinkIndex, carrier: bool) {
        self.carrier.insert(index, carrier);
        self.links();
    }

    /// Delivers messages to the servers and back until no message is left.
    fn exchange(&mut self) {
        while let Some(effect) = self.election.poll() {
            match effect {
                Effect::Transmit(index, transmit) => {
                    self.sent.push((index, transmit.kind));
                    let server = self.servers[&index];
                    let answer = answer(server, &transmit);
                    if let Some(kind) = answer.filter(|_| self.carrier[&index]) {
                        let reply = reply(server, index, &transmit, kind, LEASE);
                        self.election.packet(self.now, index, &reply);
                    }
                }
                Effect::Arp(index, packet) => self.arp.push((index, packet)),
                Effect::AskGateway(index, request) => {
                    let gateway = self.gateways.get(&index).copied();
                    if let Some(sender_mac) = gateway.filter(|_| self.carrier[&index]) {
                        let answer = Packet {
                            sender_mac,
                            sender: request.packet.target,
                            target: request.packet.sender,
                        };
                        self.election.arp(self.now, index, &answer);
                    }
                }
                Effect::Event(index, event) => self.events.push((index, event)),
                Effect::Report(index, address, report) => {
                    self.reports.push((index, address, report));
                }
                Effect::Gone(nic, lease) => {
                    assert_eq!(lease.address, address(nic.index));
                    self.gone.push(nic.index);
                }
                Effect::Notice(index, notice) => self.notices.push((index, notice)),
            }
        }
    }

    /// Advances the time, deadline by deadline.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(deadline) = self.election.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.election.timeout(self.now);
            self.exchange();
        }
        self.now = end;
    }

    fn port(&self) -> Option<LinkIndex> {
        self.election.port().map(|port| port.candidate.index)
    }

    fn leased(&self) -> Option<Ipv4Addr> {
        self.election.lease().map(|lease| lease.address)
    }

    fn requests(&self) -> Vec<LinkIndex> {
        let requests = self
            .sent
            .iter()
            .filter(|(_, kind)| *kind == MessageKind::Request);
        requests.map(|(index, _)| *index).collect()
    }
}

#[test]
fn election_all_nics_discover_and_one_requests() {
    let world = World::new(&[Server::Good, Server::Good, Server::Good], None);
    let discovers = world
        .sent
        .iter()
        .filter(|(_, kind)| *kind == MessageKind::Discover)
        .count();
    assert_eq!(discovers, 3);
    assert_eq!(world.requests().len(), 1, "{:?}", world.sent);
    assert_eq!(world.leased(), world.port().map(address));
    for contender in world.election.contenders() {
        let expected = if Some(contender.candidate.index) == world.port() {
            State::Bound
        } else {
            State::Init
        };
        assert_eq!(contender.client.state(), expected);
    }
}

#[test]
fn election_nics_without_server_cause_no_delay() {
    let world = World::new(
        &[Server::Silent, Server::Silent, Server::Silent, Server::Good],
        None,
    );
    assert_eq!(world.port(), Some(index(4)));
    assert_eq!(world.now, Duration::from_secs(100), "no time has passed");
}

#[test]
fn election_bootif_wins_within_head_start() {
    let mut world = World::new(&[Server::Good, Server::Silent], Some(2));
    assert_eq!(world.port(), None, "the offer on eth1 waits");
    world.pass(HEAD_START / 20);
    assert_eq!(world.requests(), []);
    // Its server answers the next DISCOVER.
    world.servers.insert(index(2), Server::Good);
    world.pass(HEAD_START / 2);
    assert_eq!(world.requests(), [index(2)]);
    assert_eq!(world.port(), Some(index(2)));
}

#[test]
fn election_any_offer_is_requested_after_head_start() {
    let mut world = World::new(&[Server::Good, Server::Silent], Some(2));
    world.pass(HEAD_START);
    assert_eq!(world.port(), Some(index(1)));
}

#[test]
fn election_bootif_without_carrier_has_no_head_start() {
    let mut world = World::new(&[Server::Silent, Server::Silent], Some(2));
    world.set_carrier(index(2), false);
    world.servers.insert(index(1), Server::Good);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.port(), Some(index(1)));
}

#[test]
fn election_server_that_grants_nothing_costs_at_most_five_seconds() {
    let mut world = World::new(&[Server::OffersOnly, Server::Silent], None);
    world.servers.insert(index(2), Server::Good);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.port(), Some(index(2)));
    assert!(
        world
            .events
            .iter()
            .any(|(nic, e)| *nic == index(1) && matches!(e, Event::RequestFailed { .. }))
    );
    assert_eq!(
        world
            .requests()
            .iter()
            .filter(|nic| **nic == index(2))
            .count(),
        1
    );
}

#[test]
fn election_late_carrier_wins() {
    let mut world = World::new(&[Server::Silent, Server::Good], None);
    world.set_carrier(index(2), false);
    let mut world = World {
        election: Election::new(rules(), 3),
        ..world
    };
    world.links();
    world.pass(Duration::from_secs(600));
    assert_eq!(world.port(), None);
    world.set_carrier(index(2), true);
    assert_eq!(world.port(), Some(index(2)));
}

#[test]
fn lease_link_local_is_replaced_by_offer_of_bootif_with_later_carrier() {
    let mut world = World::before(&[Server::LinkLocal, Server::Good], Some(2));
    world.carrier.insert(index(2), false);
    world.links();
    assert_eq!(world.leased(), Some(link_local_address(index(1))));
    world.pass(Duration::from_secs(4));
    world.set_carrier(index(2), true);
    assert_eq!(world.leased(), Some(address(index(2))));
    assert_eq!(world.port(), Some(index(2)));
}

#[test]
fn lease_link_local_is_replaced_by_better_offer_after_any_time() {
    let mut world = World::before(&[Server::LinkLocal, Server::Good], None);
    world.carrier.insert(index(2), false);
    world.links();
    assert_eq!(world.leased(), Some(link_local_address(index(1))));
    world.pass(Duration::from_secs(3000));
    world.set_carrier(index(2), true);
    assert_eq!(world.port(), Some(index(2)));
}

#[test]
fn lease_is_replaced_by_offer_of_bootif_within_wait_only() {
    for (seconds, port) in [(29, 2), (31, 1)] {
        let mut world = World::before(&[Server::Good, Server::Good], Some(2));
        world.carrier.insert(index(2), false);
        world.links();
        assert_eq!(world.port(), Some(index(1)), "no wait without carrier");
        assert!(world.election.is_provisional());
        world.pass(Duration::from_secs(seconds));
        world.set_carrier(index(2), true);
        assert_eq!(world.port(), Some(index(port)), "after {seconds} s");
        assert!(!world.election.is_provisional());
    }
}

#[test]
fn lease_replaced_is_ended_with_notice_and_without_message() {
    let mut world = World::before(&[Server::NoRoute, Server::Good], None);
    world.carrier.insert(index(2), false);
    world.links();
    world.set_carrier(index(2), true);
    assert_eq!(world.port(), Some(index(2)));
    let notices: Vec<_> = world.notices.iter().map(|(nic, _)| *nic).collect();
    assert_eq!(notices, [index(1)]);
    let former = world.election.contender(index(1)).unwrap();
    assert_eq!(former.client.state(), State::Init);
    assert!(
        !world
            .events
            .iter()
            .any(|(_, e)| matches!(e, Event::Lost { .. }))
    );
}

#[test]
fn lease_is_kept_while_other_offers_are_not_better() {
    let mut world = World::new(&[Server::NoRoute, Server::NoRoute], None);
    world.pass(HEAD_START);
    let port = world.port();
    assert!(port.is_some());
    let rank = world.election.rank().unwrap();
    assert_eq!(rank.to_string(), "no default route");
    world
        .servers
        .insert(other(port.unwrap()), Server::LinkLocal);
    world.pass(Duration::from_secs(3000));
    assert_eq!(world.port(), port);
    assert_eq!(world.notices, []);
}

#[test]
fn offer_below_best_waits_for_better_one_during_head_start() {
    let mut world = World::new(&[Server::LinkLocal, Server::Silent], None);
    assert_eq!(world.requests(), []);
    world.servers.insert(index(2), Server::Good);
    world.pass(HEAD_START / 2);
    assert_eq!(world.requests(), [index(2)]);
}

#[test]
fn offer_below_best_on_only_nic_is_requested_at_once() {
    let world = World::new(&[Server::LinkLocal], None);
    assert_eq!(world.leased(), Some(link_local_address(index(1))));
    assert!(!world.election.is_provisional());
}

#[test]
fn offer_of_best_rank_is_requested_at_once_and_ends_search() {
    let mut world = World::new(&[Server::Good, Server::Silent], None);
    assert_eq!(world.port(), Some(index(1)));
    assert!(!world.election.is_provisional());
    let sent = world.sent.len();
    world.pass(Duration::from_secs(1000));
    assert_eq!(world.sent.len(), sent, "{:?}", world.sent);
}

#[test]
fn bootif_without_default_route_loses_to_nic_with_one_unless_lease_is_enough() {
    for (required, port) in [
        (OnlineRequires::DefaultRoute, 2),
        (OnlineRequires::Lease, 1),
    ] {
        let mut world = World::before(&[Server::NoRoute, Server::Good], Some(1));
        world.election = Election::new(
            Rules {
                bootif: Some(mac(index(1))),
                online_requires: required,
                ..rules()
            },
            7,
        );
        world.links();
        world.pass(Duration::from_secs(60));
        assert_eq!(world.port(), Some(index(port)), "{required:?}");
    }
}

/// Returns a host on eth1 whose cable has been moved to a port of another network.
fn moved(server: Server) -> World {
    let mut world = World::new(&[Server::Good], None);
    world.pass(Duration::from_secs(10));
    world.set_carrier(index(1), false);
    world.servers.insert(index(1), server);
    world.pass(Duration::from_secs(2));
    world.set_carrier(index(1), true);
    world
}

#[test]
fn lease_ends_with_offer_of_other_network_whose_server_ignores_the_former_address() {
    let mut world = moved(Server::Elsewhere);
    world.pass(Duration::from_secs(20));
    assert_eq!(world.leased(), Some(address_elsewhere(index(1))));
}

#[test]
fn lease_ends_with_offer_behind_port_that_forwards_after_thirty_seconds() {
    let mut world = moved(Server::Silent);
    world.pass(Duration::from_secs(30));
    assert_eq!(world.leased(), Some(address(index(1))), "kept meanwhile");
    world.servers.insert(index(1), Server::Elsewhere);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.leased(), Some(address_elsewhere(index(1))));
}

#[test]
fn lease_resumed_ends_with_offer_of_other_network() {
    let before = World::new(&[Server::Good], None);
    let lease = before.election.lease().unwrap().clone();
    let mut world = World::before(&[Server::Elsewhere], None);
    world.resume(index(1), lease, None);
    world.pass(Duration::from_secs(20));
    assert_eq!(world.leased(), Some(address_elsewhere(index(1))));
}

#[test]
fn lease_is_confirmed_by_gateway_of_known_hardware_address() {
    let before = World::new(&[Server::Good], None);
    let lease = before.election.lease().unwrap().clone();
    for (known, kept) in [(Some(ROUTER), true), (Some(ROUTER_ELSEWHERE), false)] {
        let mut world = World::before(&[Server::Elsewhere], None);
        world.gateways.insert(index(1), ROUTER);
        world.resume(index(1), lease.clone(), known);
        world.pass(Duration::from_secs(120));
        let address = match kept {
            true => address(index(1)),
            false => address_elsewhere(index(1)),
        };
        assert_eq!(world.leased(), Some(address), "{known:?}");
    }
}

#[test]
fn lease_is_kept_after_offer_of_its_own_network() {
    // The server has forgotten its leases, and does not answer REQUESTs for them.
    let mut world = moved(Server::Forgetful);
    world.pass(Duration::from_secs(600));
    assert_eq!(world.leased(), Some(address(index(1))));
    assert!(!world.election.port().unwrap().has_scout());
    let discovers = world
        .sent
        .iter()
        .filter(|(_, kind)| *kind == MessageKind::Discover);
    assert_eq!(
        discovers.count(),
        2,
        "one at the start, one beside the lease"
    );
}

#[test]
fn gateway_that_falls_silent_is_reported_and_lease_confirmed_by_its_server() {
    let mut world = World::new(&[Server::Good], None);
    world.gateways.insert(index(1), ROUTER);
    world.pass(Duration::from_secs(100));
    assert_eq!(world.election.gateway_mac(), Some(ROUTER));
    world.gateways.clear();
    world.pass(Duration::from_secs(40));
    let silent = Notice::GatewaySilent(Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!(world.notices, [(index(1), silent)]);
    assert!(
        world
            .events
            .iter()
            .any(|(_, e)| matches!(e, Event::Renewed(_)))
    );
    assert_eq!(world.leased(), Some(address(index(1))));
    world.gateways.insert(index(1), ROUTER);
    world.pass(Duration::from_secs(40));
    assert!(matches!(world.notices[1], (_, Notice::GatewayAnswers(_))));
    assert_eq!(world.notices.len(), 2);
}

#[test]
fn gateway_silent_from_the_start_changes_nothing() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let (port, sent) = (world.port(), world.sent.len());
    world.pass(Duration::from_secs(1500));
    assert_eq!((world.port(), world.sent.len()), (port, sent));
    assert_eq!(world.notices, []);
}

#[test]
fn nic_whose_gateway_answers_replaces_port_with_silent_gateway() {
    for answers in [true, false] {
        let mut world = World::new(&[Server::Good, Server::Good], None);
        let port = world.port().unwrap();
        world.gateways.insert(port, ROUTER);
        world.pass(Duration::from_secs(100));
        world.gateways.clear();
        if answers {
            world.gateways.insert(other(port), ROUTER_ELSEWHERE);
        }
        world.pass(Duration::from_secs(60));
        let expected = if answers { other(port) } else { port };
        assert_eq!(world.port(), Some(expected));
        assert_eq!(world.leased(), Some(address(expected)));
        // The former port does not win again when its gateway answers.
        world.gateways.insert(port, ROUTER);
        world.pass(Duration::from_secs(600));
        assert_eq!(world.port(), Some(expected));
    }
}

#[test]
fn lease_lost_with_its_nic_is_reported() {
    let mut world = World::new(&[Server::Good], None);
    world.carrier.remove(&index(1));
    world.links();
    assert_eq!(world.gone, [index(1)]);
    assert_eq!(world.port(), None);
}

#[test]
fn lease_is_confirmed_after_loss_of_carrier_between_two_observations() {
    let mut world = World::new(&[Server::Good], None);
    world.carrier_losses = 1;
    world.links();
    let renewed = |(_, event): &&(LinkIndex, Event)| matches!(event, Event::Renewed(_));
    assert_eq!(world.events.iter().filter(renewed).count(), 1);
    world.links();
    assert_eq!(world.events.iter().filter(renewed).count(), 1);
}

#[test]
fn lease_after_short_loss_of_carrier_is_kept_and_confirmed() {
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
    assert_eq!(world.election.port().unwrap().client.state(), State::Bound);
}

#[test]
fn port_without_carrier_is_replaced_after_grace_time() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let port = world.port().unwrap();
    let other = other(port);
    world.set_carrier(port, false);
    world.pass(GRACE - Duration::from_secs(1));
    assert_eq!(world.port(), Some(port));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.port(), Some(other));
    assert_eq!(world.leased(), Some(address(other)));
}

#[test]
fn lease_without_other_nic_is_kept_until_its_end() {
    let mut world = World::new(&[Server::Good], None);
    world.set_carrier(index(1), false);
    world.pass(Duration::from_secs(u64::from(LEASE) - 2));
    assert_eq!(world.leased(), Some(address(index(1))));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leased(), None);
    assert_eq!(
        world.port(),
        Some(index(1)),
        "the port stays until another NIC wins"
    );
}

#[test]
fn lease_expired_reopens_election() {
    let mut world = World::new(&[Server::Good, Server::Silent], None);
    world.servers.insert(index(1), Server::Silent);
    world.pass(Duration::from_secs(u64::from(LEASE)));
    assert_eq!(world.leased(), None);
    world.servers.insert(index(2), Server::Good);
    world.pass(Duration::from_secs(70));
    assert_eq!(world.port(), Some(index(2)));
}

#[test]
fn port_removed_is_replaced() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let port = world.port().unwrap();
    world.carrier.remove(&port);
    world.links();
    assert_eq!(world.port(), Some(other(port)));
}

#[test]
fn lease_resumed_is_confirmed_and_kept_meanwhile() {
    let old = World::new(&[Server::Good, Server::Good], None);
    let port = old.port().unwrap();
    let lease = old.election.lease().unwrap().clone();
    let mut world = World {
        election: Election::new(rules(), 9),
        sent: Vec::new(),
        ..old
    };
    let uplink = Candidate {
        carrier_losses: 0,
        index: port,
        nic: port,
        name: "uplink".parse().unwrap(),
        mac: mac(port),
        carrier: true,
    };
    world.election.resume(world.now, uplink, lease, None, None);
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
    assert_eq!(world.election.port().unwrap().client.state(), State::Bound);
}

/// Returns the lease that the server of NIC 1 grants.
fn lease_of_first_nic() -> Lease {
    let world = World::new(&[Server::Good], None);
    world.election.lease().unwrap().clone()
}

/// Boots with the lease that NIC 1 had in the boot before.
fn booted(servers: &[Server]) -> World {
    let mut world = World::before(servers, None);
    let lease = Lease {
        // The boot before lasted longer.
        acquired: Duration::from_secs(1_000_000),
        ..lease_of_first_nic()
    };
    let (now, nic) = (world.now, mac(index(1)));
    world.election.ask_for_former_lease(now, nic, lease);
    world.links();
    world
}

#[test]
fn former_lease_is_granted_without_an_offer() {
    let world = booted(&[Server::AcksOnly, Server::Silent]);
    assert_eq!(world.leased(), Some(address(index(1))));
    assert_eq!(world.now, Duration::from_secs(100), "no time has passed");
    let (first, kind) = world.sent[0];
    assert_eq!((first, kind), (index(1), MessageKind::Discover));
    let bound = world.events.iter();
    let bound = bound.filter(|(_, event)| matches!(event, Event::Bound(_)));
    assert_eq!(bound.count(), 1, "{:?}", world.events);
    assert_eq!(world.election.port().unwrap().client.state(), State::Bound);
}

#[test]
fn former_lease_ends_the_search_on_other_nics() {
    let mut world = booted(&[Server::Good, Server::Good]);
    world.pass(Duration::from_secs(60));
    let bound = world.events.iter();
    let bound = bound.filter(|(_, event)| matches!(event, Event::Bound(_)));
    assert_eq!(bound.count(), 1, "{:?}", world.events);
    assert_eq!(world.leased(), Some(address(index(1))));
    assert!(!world.requests().contains(&index(2)), "{:?}", world.sent);
}

#[test]
fn former_lease_without_a_default_route_is_granted_on_the_only_nic() {
    let mut world = World::before(&[Server::AcksOnly], None);
    let lease = World::new(&[Server::NoRoute], None)
        .election
        .lease()
        .unwrap()
        .clone();
    let (now, nic) = (world.now, mac(index(1)));
    world.servers.insert(index(1), Server::NoRoute);
    world.election.ask_for_former_lease(now, nic, lease);
    world.links();
    assert_eq!(world.leased(), Some(address(index(1))));
    assert_eq!(world.now, Duration::from_secs(100), "no time has passed");
}

/// The NIC of the boot before is not the one that the machine booted from now.
#[test]
fn former_lease_does_not_take_the_head_start_of_the_boot_nic() {
    let mut world = World::before(&[Server::AcksOnly, Server::Good], Some(2));
    let (now, nic) = (world.now, mac(index(1)));
    world
        .election
        .ask_for_former_lease(now, nic, lease_of_first_nic());
    world.links();
    world.pass(Duration::from_secs(60));
    assert_eq!(world.leased(), Some(address(index(2))));
    let bound = world.events.iter();
    let bound = bound.filter(|(_, event)| matches!(event, Event::Bound(_)));
    assert_eq!(bound.count(), 1, "{:?}", world.events);
}

#[test]
fn former_lease_that_is_denied_or_ignored_does_not_delay_the_search() {
    for server in [
        Server::Good,
        Server::Forgetful,
        Server::Elsewhere,
        Server::Refuses,
        Server::OffersOnly,
        Server::Silent,
    ] {
        let with = booted(&[server]);
        let without = World::new(&[server], None);
        assert_eq!(with.leased(), without.leased(), "{server:?}");
        assert_eq!(with.now, without.now, "{server:?}");
        let discovers = |mut world: World| {
            world.pass(Duration::from_secs(60));
            let sent = world.sent.iter();
            sent.filter(|(_, kind)| *kind == MessageKind::Discover)
                .count()
        };
        let requests = with.requests().len();
        assert!(requests <= without.requests().len() + 1, "{server:?}");
        let (with, without) = (discovers(with), discovers(without));
        // The jitter of retransmissions differs.
        assert!(with + 1 >= without, "{server:?}: {with} of {without}");
    }
}

#[test]
fn former_lease_is_given_up_after_four_requests() {
    let mut world = booted(&[Server::Silent]);
    world.pass(Duration::from_secs(300));
    assert_eq!(world.requests(), [index(1); 4]);
}

#[test]
fn former_lease_is_asked_for_once_its_nic_has_carrier() {
    let mut world = World::before(&[Server::AcksOnly, Server::Silent], None);
    world.carrier.insert(index(1), false);
    let (now, nic) = (world.now, mac(index(1)));
    world.links();
    world
        .election
        .ask_for_former_lease(now, nic, lease_of_first_nic());
    world.pass(Duration::from_secs(20));
    assert_eq!(world.requests(), []);
    world.set_carrier(index(1), true);
    assert_eq!(world.leased(), Some(address(index(1))));
}

#[test]
fn former_lease_is_not_asked_for_beside_a_lease() {
    let mut world = World::new(&[Server::Silent, Server::Good], None);
    assert_eq!(world.port(), Some(index(2)));
    let requests = world.requests().len();
    let (now, nic) = (world.now, mac(index(1)));
    world
        .election
        .ask_for_former_lease(now, nic, lease_of_first_nic());
    world.exchange();
    world.pass(Duration::from_secs(60));
    assert_eq!(world.requests().len(), requests);
    assert_eq!(world.port(), Some(index(2)));
}

/// The server has moved the host to a different address, and confirms the former one late.
#[test]
fn former_lease_is_not_used_once_a_different_address_is_requested() {
    let mut world = World::before(&[Server::Elsewhere], None);
    let (now, nic) = (world.now, mac(index(1)));
    world
        .election
        .ask_for_former_lease(now, nic, lease_of_first_nic());
    let candidates = world.candidates();
    world.election.set_candidates(now, candidates);
    let mut sent = Vec::new();
    while let Some(effect) = world.election.poll() {
        if let Effect::Transmit(_, transmit) = effect {
            sent.push(transmit);
        }
    }
    let [discover, request] = &sent[..] else {
        panic!("{} messages", sent.len());
    };
    let offer = reply(Server::Elsewhere, index(1), discover, 2, LEASE);
    world.election.packet(now, index(1), &offer);
    let ack = reply(Server::Good, index(1), request, 5, LEASE);
    world.election.packet(now, index(1), &ack);
    world.exchange();
    assert_eq!(world.leased(), Some(address_elsewhere(index(1))));
}

/// Returns the other one of NICs 1 and 2.
fn other(nic: LinkIndex) -> LinkIndex {
    index(3 - nic.get())
}

fn rules() -> Rules {
    Rules {
        bootif: None,
        head_start: HEAD_START,
        bootif_wait: BOOTIF_WAIT,
        online_requires: OnlineRequires::DefaultRoute,
        carrier_grace: GRACE,
        detect_conflicts: true,
        allowed_servers: Vec::new(),
        denied_networks: Vec::new(),
        static_address: None,
        static_dns: Vec::new(),
        static_wait: Duration::from_secs(40),
        keep_expired: false,
        identity: Identity::default(),
        keep_identity: false,
    }
}

#[test]
fn lease_lost_repeatedly_is_regained() {
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

/// Returns a claim by another host on the network of a NIC.
fn claim(index: LinkIndex) -> Packet {
    Packet::announcement(MacAddress([2, 0, 0, 0, 1, 1]), address(index))
}

#[test]
fn address_requested_is_probed_on_its_nic() {
    let mut world = World::new(&[Server::Good, Server::Silent], None);
    world.pass(Duration::from_secs(5));
    let probe = Packet::probe(mac(index(1)), address(index(1)));
    let announcement = Packet::announcement(mac(index(1)), address(index(1)));
    assert_eq!(
        world.arp,
        [
            (index(1), probe),
            (index(1), probe),
            (index(1), probe),
            (index(1), announcement),
            (index(1), announcement)
        ]
    );
}

#[test]
fn address_in_use_is_declined_and_other_nic_wins() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let port = world.port().unwrap();
    world.election.arp(world.now, port, &claim(port));
    world.pass(CHECK);
    assert!(world.sent.contains(&(port, MessageKind::Decline)));
    let lost = |event: &(LinkIndex, Event)| matches!(event, (_, Event::Lost { .. }));
    assert!(world.events.iter().any(lost));
    assert_eq!(world.leased(), Some(address(other(port))));
}

#[test]
fn claim_by_own_nic_is_not_conflict() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let port = world.port().unwrap();
    let own = Packet::announcement(mac(other(port)), address(port));
    world.election.arp(world.now, port, &own);
    world.exchange();
    assert_eq!(world.leased(), Some(address(port)));
}

#[test]
fn address_kept_without_carrier_is_probed_again() {
    let mut world = World::new(&[Server::Good], None);
    world.pass(Duration::from_secs(5));
    world.arp.clear();
    world.set_carrier(index(1), false);
    world.election.arp(world.now, index(1), &claim(index(1)));
    assert_eq!(
        world.leased(),
        Some(address(index(1))),
        "no packet arrives without carrier"
    );
    world.pass(Duration::from_secs(5));
    assert_eq!(world.arp, []);
    world.set_carrier(index(1), true);
    assert_eq!(
        world.arp,
        [(index(1), Packet::probe(mac(index(1)), address(index(1))))]
    );
}

#[test]
fn claim_without_conflict_detection_is_ignored() {
    let mut world = World::new(&[Server::Good], None);
    let rules = Rules {
        detect_conflicts: false,
        ..rules()
    };
    world.election.set_rules(world.now, rules);
    world.election.arp(world.now, index(1), &claim(index(1)));
    world.exchange();
    assert_eq!(world.leased(), Some(address(index(1))));
}

#[test]
fn hostname_unchanged_for_five_seconds_is_sent_to_server() {
    let mut world = World::new(&[Server::Good], None);
    world.sent.clear();
    for name in ["rack-6", "rack-7", "rack-7"] {
        let name = ClientName::Host(name.into());
        world.election.set_hostname(world.now, Some(name));
        world.pass(Duration::from_secs(2));
    }
    assert!(
        world.requests().is_empty(),
        "the first name was replaced too soon"
    );
    world.pass(Duration::from_secs(1));
    assert_eq!(world.requests(), [index(1)]);
    world.election.set_hostname(world.now, None);
    world.pass(Duration::from_secs(10));
    assert_eq!(
        world.requests(),
        [index(1)],
        "without a name no renewal is sent"
    );
}

#[test]
fn hostname_changed_during_request_is_sent_to_server() {
    let mut world = World::new(&[Server::OffersOnly], None);
    assert_eq!(world.requests(), [index(1)]);
    let name = ClientName::Host("rack-7".into());
    world.election.set_hostname(world.now, Some(name));
    world.servers.insert(index(1), Server::Good);
    for _ in 0..100 {
        if world.leased().is_some() {
            break;
        }
        world.pass(Duration::from_millis(100));
    }
    assert!(world.leased().is_some());
    world.sent.clear();
    world.pass(Duration::from_secs(5));
    assert_eq!(world.requests(), [index(1)]);
}

#[test]
fn port_former_gives_up_lease_and_may_win_again() {
    let mut world = World::new(&[Server::Good, Server::Good], None);
    let first = world.port().unwrap();
    let second = other(first);
    world.set_carrier(first, false);
    world.pass(GRACE);
    assert_eq!(world.port(), Some(second));
    let lease = |world: &World, index| {
        let mut contenders = world.election.contenders();
        let contender = contenders.find(|r| r.candidate.index == index).unwrap();
        contender.client.lease().is_some()
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
fn address_resumed_is_defended_not_probed() {
    let old = World::new(&[Server::Good], None);
    let lease = old.election.lease().unwrap().clone();
    let mut world = World {
        election: Election::new(rules(), 9),
        arp: Vec::new(),
        ..old
    };
    let uplink = Candidate {
        carrier_losses: 0,
        index: index(1),
        nic: index(1),
        name: "uplink".parse().unwrap(),
        mac: mac(index(1)),
        carrier: true,
    };
    world.election.resume(world.now, uplink, lease, None, None);
    world.exchange();
    assert_eq!(world.arp, []);
    world.election.arp(world.now, index(1), &claim(index(1)));
    world.exchange();
    let announcement = Packet::announcement(mac(index(1)), address(index(1)));
    assert_eq!(world.arp[0], (index(1), announcement));
    assert_eq!(world.leased(), Some(address(index(1))));
}

#[test]
fn address_in_use_claimed_every_half_second_is_kept_and_defended() {
    let mut world = World::new(&[Server::Good], None);
    world.pass(Duration::from_secs(20));
    world.arp.clear();
    for _ in 0..120 {
        world.election.arp(world.now, index(1), &claim(index(1)));
        world.exchange();
        assert_eq!(world.leased(), Some(address(index(1))));
        world.pass(Duration::from_millis(500));
    }
    let defence = (
        index(1),
        Packet::announcement(mac(index(1)), address(index(1))),
    );
    let defences = world.arp.iter().filter(|sent| **sent == defence);
    assert_eq!(defences.count(), 6, "one in ten seconds");
    let report = Report::Contested(MacAddress([2, 0, 0, 0, 1, 1]));
    assert_eq!(world.reports, [(index(1), address(index(1)), report)]);
    assert!(!world.sent.contains(&(index(1), MessageKind::Decline)));
}

#[test]
fn router_with_proxy_arp_costs_no_decline() {
    let mut world = World::new(&[Server::Good], None);
    let router = MacAddress([2, 0, 0, 0, 1, 1]);
    for _ in 0..200 {
        for (nic, packet) in std::mem::take(&mut world.arp) {
            let sender = packet.target;
            let answer = Packet::announcement(router, sender);
            world.election.arp(world.now, nic, &answer);
        }
        world.exchange();
        world.pass(Duration::from_millis(50));
        assert_eq!(world.leased(), Some(address(index(1))));
    }
    assert!(!world.sent.contains(&(index(1), MessageKind::Decline)));
    let report = Report::ProxyArp(router);
    assert_eq!(world.reports, [(index(1), address(index(1)), report)]);
}

#[test]
fn claims_of_every_address_cost_two_declines_and_less_than_a_minute() {
    let mut world = World::new(&[Server::Good], None);
    for _ in 0..120 {
        world.election.arp(world.now, index(1), &claim(index(1)));
        world.exchange();
        world.pass(Duration::from_millis(500));
    }
    let declined = (index(1), MessageKind::Decline);
    assert_eq!(
        world.sent.iter().filter(|sent| **sent == declined).count(),
        2
    );
    assert_eq!(world.leased(), Some(address(index(1))));
    assert_eq!(world.reports.len(), 1);
}
