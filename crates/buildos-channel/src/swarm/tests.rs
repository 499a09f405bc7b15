use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::name::HostId;
use crate::pieces::{PIECE, PieceList};
use crate::plan;

fn digest(number: u8) -> Digest {
    Digest::of(&[number])
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

#[test]
fn peers_come_before_the_origin_and_claims_are_respected() {
    let (a, b) = (digest(1), digest(2));
    let mut swarm = Swarm::new(Cookie(1));
    assert_eq!(swarm.next(&[]), Next::Done);
    assert_eq!(swarm.next(&[a, b]), Next::Origin(a));
    swarm.asks(&[a, b]);
    swarm.take(address(1), Cookie(2), &[(State::Part, a)]);
    assert_eq!(swarm.next(&[a, b]), Next::Origin(b));
    assert_eq!(swarm.next(&[a]), Next::Wait);
    swarm.take(address(1), Cookie(2), &[(State::Have, b)]);
    assert_eq!(swarm.next(&[a, b]), Next::Peer(b, address(1)));
    assert!(swarm.covers(&[b]) && !swarm.covers(&[a, b]));
    swarm.failed(address(1), &b, Fault::Denied);
    assert_eq!(swarm.next(&[b]), Next::Origin(b));
}

#[test]
fn excluded_peer_is_not_used_again() {
    let mut swarm = Swarm::new(Cookie(1));
    swarm.asks(&[digest(1)]);
    swarm.take(address(1), Cookie(2), &[(State::Have, digest(1))]);
    swarm.exclude(address(1));
    assert_eq!(swarm.active().count(), 0);
    swarm.take(address(1), Cookie(2), &[(State::Have, digest(1))]);
    // By its other address.
    swarm.take(
        "fe80::1".parse().unwrap(),
        Cookie(2),
        &[(State::Have, digest(1))],
    );
    assert_eq!(swarm.next(&[digest(1)]), Next::Origin(digest(1)));
    // A stranger that copies a cookie takes no other host away.
    swarm.take(address(2), Cookie(2), &[(State::Have, digest(1))]);
    assert_eq!(swarm.next(&[digest(1)]), Next::Peer(digest(1), address(2)));
}

#[test]
fn two_hosts_that_claim_a_piece_leave_it_to_the_lower_rank() {
    let a = digest(1);
    let (mut one, mut two) = (Swarm::new(Cookie(1)), Swarm::new(Cookie(2)));
    one.asks(&[a]);
    two.asks(&[a]);
    one.take(address(2), Cookie(2), &[(State::Part, a)]);
    two.take(address(1), Cookie(1), &[(State::Part, a)]);
    assert_ne!(one.yields(&a), two.yields(&a));
}

#[test]
fn peers_are_bounded_and_counted_once() {
    let mut swarm = Swarm::new(Cookie(0));
    swarm.take(address(1), Cookie(0), &[(State::Have, digest(1))]);
    assert_eq!(swarm.active().count(), 0, "own answer");
    swarm.take(address(1), Cookie(1), &[]);
    swarm.take("fe80::1".parse().unwrap(), Cookie(1), &[]);
    assert_eq!(swarm.active().count(), 1, "two addresses of a host");
    for number in 1..=200 {
        swarm.take(address(number), Cookie(number.into()), &[]);
    }
    assert_eq!(swarm.active().count(), PEERS);
    for number in 1..=200 {
        swarm.take(address(number), Cookie(number.into()), &[]);
        swarm.exclude(address(number));
    }
    assert!(swarm.peers.len() <= REMEMBERED);
}

#[test]
fn denied_piece_is_not_fetched_from_the_peer_again() {
    let (a, b) = (digest(1), digest(2));
    let mut swarm = Swarm::new(Cookie(1));
    let says = [(State::Have, a), (State::Have, b)];
    swarm.asks(&[a, b]);
    swarm.take(address(1), Cookie(2), &says);
    swarm.failed(address(1), &a, Fault::Denied);
    assert_eq!(swarm.next(&[b]), Next::Origin(b), "an old answer");
    swarm.take(address(1), Cookie(2), &says);
    assert_eq!(swarm.next(&[a]), Next::Origin(a));
    assert_eq!(swarm.next(&[b]), Next::Peer(b, address(1)));
    for number in 2..=3 {
        assert_eq!(swarm.active().count(), 1);
        swarm.failed(address(1), &digest(number), Fault::Denied);
    }
    assert_eq!(swarm.active().count(), 0);
}

#[test]
fn timeouts_in_a_row_exclude_a_peer() {
    let mut swarm = Swarm::new(Cookie(1));
    swarm.take(address(1), Cookie(2), &[]);
    swarm.failed(address(1), &digest(1), Fault::Timeout);
    swarm.came(&digest(2), Some(address(1)));
    swarm.failed(address(1), &digest(1), Fault::Timeout);
    swarm.came(&digest(3), None);
    assert_eq!(swarm.active().count(), 1);
    swarm.failed(address(1), &digest(1), Fault::Timeout);
    assert_eq!(swarm.active().count(), 0);
}

#[test]
fn peer_that_refuses_connections_rests_and_is_used_again() {
    let a = digest(1);
    let mut swarm = Swarm::new(Cookie(1));
    // Questions until the peer is used again.
    let rest = |swarm: &mut Swarm| {
        for questions in 1.. {
            swarm.asks(&[a]);
            swarm.take(address(1), Cookie(2), &[(State::Have, a)]);
            if swarm.covers(&[a]) {
                return questions;
            }
        }
        0
    };
    let mut rests = Vec::new();
    for _ in 0..4 {
        rests.push(rest(&mut swarm));
        swarm.failed(address(1), &a, Fault::Refused);
    }
    assert_eq!(rests, [1, 2, 4, 8]);
    swarm.came(&digest(2), Some(address(1)));
    assert_eq!(rest(&mut swarm), 16);
    swarm.failed(address(1), &a, Fault::Refused);
    assert_eq!(rest(&mut swarm), 2);
}

#[test]
fn answers_without_a_question_are_ignored() {
    let (a, b) = (digest(1), digest(2));
    let mut swarm = Swarm::new(Cookie(1));
    let both = [State::Have, State::Part].map(|state| [(state, a), (state, b)].to_vec());
    for pieces in &both {
        swarm.take(address(1), Cookie(2), pieces);
        assert_eq!(swarm.next(&[a, b]), Next::Origin(a));
    }
    swarm.asks(&[b]);
    swarm.take(address(1), Cookie(2), &both[1]);
    assert_eq!(swarm.next(&[a, b]), Next::Origin(a));
    assert_eq!(swarm.next(&[b]), Next::Wait);
    // A late answer.
    swarm.asks(&[a]);
    swarm.take(address(1), Cookie(2), &both[0]);
    assert!(swarm.covers(&[a, b]));
}

#[test]
fn pieces_of_a_peer_are_bounded() {
    let mut swarm = Swarm::new(Cookie(1));
    for number in 0..=255 {
        let sha256 = digest(number);
        swarm.asks(&[sha256]);
        swarm.take(address(1), Cookie(2), &[(State::Have, sha256)]);
    }
    assert_eq!(swarm.peers[&address(1)].has.len(), PIECES_OF_PEER);
    for number in 0..=255 {
        swarm.came(&digest(number), None);
    }
    assert!(swarm.peers[&address(1)].has.is_empty());
}

#[test]
fn claims_without_pieces_cost_a_limited_time() {
    let (a, b) = (digest(1), digest(2));
    let mut swarm = Swarm::new(Cookie(1));
    let take = |swarm: &mut Swarm, state| {
        swarm.asks(&[a, b]);
        swarm.take(address(1), Cookie(2), &[(state, a)]);
    };
    // A true claim.
    take(&mut swarm, State::Part);
    swarm.waited(&[a], CLAIM_LIMIT / 2);
    take(&mut swarm, State::Have);
    swarm.came(&a, Some(address(1)));
    for _ in 0..2 {
        take(&mut swarm, State::Part);
        assert_eq!(swarm.next(&[a]), Next::Wait);
        swarm.waited(&[b], CLAIM_LIMIT);
        swarm.waited(&[a], CLAIM_LIMIT / 2);
        // Pieces of the origin do not extend the time.
        swarm.came(&b, None);
    }
    assert_eq!(swarm.next(&[a]), Next::Origin(a));
    take(&mut swarm, State::Part);
    assert_eq!(swarm.next(&[a]), Next::Origin(a));
    take(&mut swarm, State::Have);
    assert_eq!(swarm.next(&[a]), Next::Peer(a, address(1)));
}

/// A host of the simulation that sends nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Liar {
    /// Says that it has all pieces, and sends wrong content.
    Poisons,
    /// Says that it has all pieces, and denies each.
    Denies,
    /// Says that it has all pieces, and refuses connections.
    Refuses,
    /// Says that it has all pieces, and does not answer in time.
    Hangs,
    /// Says that it fetches all pieces.
    Claims,
}

const LIARS: [Liar; 5] = [
    Liar::Poisons,
    Liar::Denies,
    Liar::Refuses,
    Liar::Hangs,
    Liar::Claims,
];

/// A host of the simulation.
struct Node {
    swarm: Swarm,
    missing: Vec<Digest>,
    has: BTreeSet<Digest>,
    claim: Option<Digest>,
    doing: Doing,
    /// Time of its next step in milliseconds.
    at: u64,
}

enum Doing {
    Choose,
    /// Asks a second time, as it claims a piece of the origin.
    Claimed(Digest),
    /// Has fetched a piece at the end of the step, from a peer or the origin.
    Fetched(Digest, Option<IpAddr>),
}

/// Simulates hosts that fetch the same stream. Returns the pieces that the origin sends.
///
/// `starts` and `speeds` (milliseconds of a piece from the origin, from a peer) are of each
/// host.
fn simulate(pieces: u64, starts: &[u64], speeds: &[(u64, u64)], liar: Option<Liar>) -> u64 {
    let digests = (0..pieces).map(|number| Digest::of(&number.to_be_bytes()));
    let lines: Vec<String> = digests.map(|sha256| format!("{sha256}\n")).collect();
    let list = PieceList::parse(lines.concat().as_bytes(), pieces * PIECE).unwrap();
    let mut nodes: Vec<Node> = (0..starts.len())
        .map(|index| {
            let host: HostId = format!("host{index}").parse().unwrap();
            let plan = plan::plan(&list, &host, |_| false);
            Node {
                swarm: Swarm::new(Cookie::of(&host)),
                missing: plan.fetch.iter().map(|piece| piece.sha256).collect(),
                has: BTreeSet::new(),
                claim: None,
                doing: Doing::Choose,
                at: starts[index],
            }
        })
        .collect();
    let mut origin = 0;
    loop {
        let due = nodes.iter().enumerate();
        let due = due.filter(|(_, node)| !node.missing.is_empty());
        let Some((index, _)) = due.min_by_key(|(_, node)| node.at) else {
            return origin;
        };
        let now = nodes[index].at;
        assert!(now < 1_000_000, "the hosts do not end");
        // The answers of the others.
        let wanted: Vec<Digest> = nodes[index].missing.iter().copied().take(PIECES).collect();
        let others = nodes.iter().enumerate().filter(|(i, _)| *i != index);
        let answers: Vec<_> = others
            .filter(|(_, node)| node.at > 0 || !node.has.is_empty() || node.claim.is_some())
            .map(|(i, node)| {
                let state = |sha256: &Digest| match node.has.contains(sha256) {
                    true => Some((State::Have, *sha256)),
                    false => (node.claim == Some(*sha256)).then_some((State::Part, *sha256)),
                };
                let pieces: Vec<_> = wanted.iter().filter_map(state).collect();
                (address(i as u8 + 1), node.swarm.own, pieces)
            })
            .collect();
        let node = &mut nodes[index];
        node.swarm.asks(&wanted);
        for (from, cookie, pieces) in answers {
            node.swarm.take(from, cookie, &pieces);
        }
        if let Some(liar) = liar {
            let state = match liar {
                Liar::Claims => State::Part,
                Liar::Poisons | Liar::Denies | Liar::Refuses | Liar::Hangs => State::Have,
            };
            let all: Vec<_> = wanted.iter().map(|sha256| (state, *sha256)).collect();
            node.swarm.take(address(200), Cookie(77), &all);
        }
        let (from_origin, from_peer) = speeds[index];
        match std::mem::replace(&mut node.doing, Doing::Choose) {
            Doing::Choose => match node.swarm.next(&wanted) {
                Next::Done => {}
                Next::Wait => {
                    node.swarm.waited(&wanted, Duration::from_millis(300));
                    node.at += 300;
                }
                Next::Peer(sha256, from) if from == address(200) => {
                    let (fault, time) = match liar {
                        None | Some(Liar::Poisons | Liar::Claims) => (None, 1000),
                        Some(Liar::Denies) => (Some(Fault::Denied), 10),
                        Some(Liar::Refuses) => (Some(Fault::Refused), 10),
                        Some(Liar::Hangs) => (Some(Fault::Timeout), 4000),
                    };
                    match fault {
                        Some(fault) => node.swarm.failed(from, &sha256, fault),
                        None => node.swarm.exclude(from),
                    }
                    node.at += time;
                }
                Next::Peer(sha256, from) => {
                    node.doing = Doing::Fetched(sha256, Some(from));
                    node.at += from_peer;
                }
                Next::Origin(sha256) => {
                    node.claim = Some(sha256);
                    node.doing = Doing::Claimed(sha256);
                    node.at += 100;
                }
            },
            Doing::Claimed(sha256)
                if node.swarm.covers(&[sha256]) || node.swarm.yields(&sha256) =>
            {
                node.swarm.waited(&[sha256], Duration::from_millis(100));
                node.claim = None;
            }
            Doing::Claimed(sha256) => {
                origin += 1;
                node.doing = Doing::Fetched(sha256, None);
                node.at += from_origin;
            }
            Doing::Fetched(sha256, from) => {
                node.swarm.came(&sha256, from);
                node.claim = None;
                node.has.insert(sha256);
                node.missing.retain(|missing| *missing != sha256);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn eight_hosts_take_little_more_than_one_copy_from_the_origin(
        starts in proptest::collection::vec(0_u64..3000, 8),
        speeds in proptest::collection::vec((300_u64..20_000, 50_u64..3000), 8),
        liar in proptest::option::of(proptest::sample::select(&LIARS)),
    ) {
        let sent = simulate(19, &starts, &speeds, liar);
        prop_assert!(sent * 10 <= 19 * 13, "{sent} of 19 pieces");
    }
}

#[test]
fn hosts_that_start_at_once_take_little_more_than_one_copy() {
    let sent = simulate(19, &[0; 8], &[(2000, 200); 8], None);
    assert!(sent <= 21, "{sent} of 19 pieces");
    assert_eq!(simulate(3, &[0], &[(100, 100)], None), 3);
}

#[test]
fn host_among_liars_ends_with_everything_from_the_origin() {
    for liar in LIARS {
        let sent = simulate(50, &[0], &[(100, 100)], Some(liar));
        assert_eq!(sent, 50, "{liar:?}");
    }
}
