//! Decides from which host of a LAN a piece comes, and which piece comes from the origin.
//!
//! A host that fetches knows what the others have and what they fetch from the origin, from
//! their answers ([`crate::query`]). For each piece:
//!
//! | state of the missing pieces | next |
//! |---|---|
//! | a peer has one | fetch it from that peer |
//! | no peer fetches one | fetch it from the origin |
//! | peers fetch all of them from the origin | wait, and ask again |
//!
//! Two hosts that begin to fetch one piece from the origin at the same time learn it from each
//! other's answers. The lower rank goes on, and the other host takes a different piece.
//!
//! # Limits
//!
//! Each piece is verified, so a peer that lies costs only time. The time is limited, too:
//!
//! | fault of a peer | consequence for the rest of the run |
//! |---|---|
//! | sends wrong content, or sends too slowly | excluded at once |
//! | says that it has a piece, and denies it | not used for the piece; excluded after [`DENIALS`] |
//! | does not answer in time | excluded after [`TIMEOUTS`] in a row |
//! | claims pieces for [`CLAIM_LIMIT`] of waiting, and has none of them | claims are ignored |
//! | refuses connections | rests for 2, 4, 8, … questions |

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::digest::{Digest, Hasher};
use crate::query::{Cookie, PIECES, State};

/// Peers that a host uses at most at a time.
pub const PEERS: usize = 16;
/// Peers that a host remembers at most, with those that are excluded.
const REMEMBERED: usize = 64;
/// Time that a host waits for pieces that a peer claims. It begins anew with each piece that the
/// peer has and that comes from a peer.
pub const CLAIM_LIMIT: Duration = Duration::from_secs(60);
/// Missing pieces that a host remembers of a peer at most: those of a few questions.
const PIECES_OF_PEER: usize = 4 * PIECES;
/// Pieces that a peer denies after it said that it has them, until it is excluded. A peer that
/// removes its spool during the run denies one or two.
pub const DENIALS: usize = 3;
/// Transfers in a row that a peer does not begin in time, until it is excluded.
pub const TIMEOUTS: u32 = 2;

/// Peers of a host in a run, with the pieces that they have or fetch.
#[derive(Debug, Clone)]
pub struct Swarm {
    own: Cookie,
    peers: BTreeMap<IpAddr, Peer>,
    questions: u32,
    /// Pieces of the last question and of the one before, whose answers can be late.
    asked: [Vec<Digest>; 2],
}

#[derive(Debug, Clone)]
struct Peer {
    cookie: Cookie,
    has: BTreeSet<Digest>,
    fetches: BTreeSet<Digest>,
    /// Pieces that it did not send although it said that it has them.
    denied: BTreeSet<Digest>,
    /// Timeouts since the last piece that it sent.
    timeouts: u32,
    /// Refused connections since the last piece that it sent.
    refusals: u32,
    /// It is not used until this question.
    rests_until: u32,
    /// Time that this host waited for its claims.
    waited: Duration,
    excluded: bool,
}

/// Fault of a peer that sent nothing of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not have the piece.
    Denied,
    /// It did not answer in time.
    Timeout,
    /// It refused the connection: it can be busy.
    Refused,
}

/// Next step of a host that fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Fetch a piece from a peer.
    Peer(Digest, IpAddr),
    /// Fetch a piece from the origin.
    Origin(Digest),
    /// Ask again later.
    Wait,
    /// No piece is missing.
    Done,
}

impl Swarm {
    /// Returns the swarm of the host `own`, without peers.
    #[must_use]
    pub const fn new(own: Cookie) -> Self {
        Self {
            own,
            peers: BTreeMap::new(),
            questions: 0,
            asked: [Vec::new(), Vec::new()],
        }
    }

    /// Notes that the host asks for pieces. Call it before each question.
    pub fn asks(&mut self, wanted: &[Digest]) {
        self.questions = self.questions.saturating_add(1);
        let [last, before] = &mut self.asked;
        *before = std::mem::replace(last, wanted.to_vec());
    }

    /// Takes in the answer of a peer. Pieces that the host did not ask for are ignored.
    pub fn take(&mut self, from: IpAddr, cookie: Cookie, pieces: &[(State, Digest)]) {
        // A host answers by IPv4 and by IPv6. Within a protocol the cookie can be a copy.
        let mut others = self.peers.iter();
        let known = others
            .any(|(address, peer)| address.is_ipv4() != from.is_ipv4() && peer.cookie == cookie);
        let is_new = !self.peers.contains_key(&from);
        let full = self.active().count() >= PEERS || self.peers.len() >= REMEMBERED;
        if cookie == self.own || known || (is_new && full) {
            return;
        }
        let peer = self.peers.entry(from).or_insert_with(|| Peer {
            cookie,
            has: BTreeSet::new(),
            fetches: BTreeSet::new(),
            denied: BTreeSet::new(),
            timeouts: 0,
            refusals: 0,
            rests_until: 0,
            waited: Duration::ZERO,
            excluded: false,
        });
        if peer.excluded {
            return;
        }
        peer.cookie = cookie;
        peer.fetches.clear();
        let rests = self.questions < peer.rests_until;
        let asked: Vec<&Digest> = self.asked.iter().flatten().collect();
        for (state, sha256) in pieces {
            if !asked.contains(&sha256) {
                continue;
            }
            match state {
                State::Want => {}
                State::Have if peer.has.len() >= PIECES_OF_PEER => {}
                State::Have if rests || peer.denied.contains(sha256) => {}
                State::Have => drop(peer.has.insert(*sha256)),
                State::Part if peer.waited >= CLAIM_LIMIT => {}
                State::Part => drop(peer.fetches.insert(*sha256)),
            }
        }
    }

    /// Excludes a peer from the rest of the run.
    pub fn exclude(&mut self, peer: IpAddr) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.excluded = true;
            peer.has.clear();
            peer.fetches.clear();
        }
    }

    /// Notes that a peer sent nothing of a piece. Its answers are outdated then.
    pub fn failed(&mut self, from: IpAddr, sha256: &Digest, fault: Fault) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.has.clear();
        let excluded = match fault {
            Fault::Denied => {
                peer.denied.insert(*sha256);
                peer.denied.len() >= DENIALS
            }
            Fault::Timeout => {
                peer.timeouts = peer.timeouts.saturating_add(1);
                peer.timeouts >= TIMEOUTS
            }
            Fault::Refused => {
                peer.refusals = peer.refusals.saturating_add(1);
                let rest = 2_u32.saturating_pow(peer.refusals);
                peer.rests_until = self.questions.saturating_add(rest);
                false
            }
        };
        if excluded {
            self.exclude(from);
        }
    }

    /// Notes that the host waited because peers claim pieces.
    pub fn waited(&mut self, pieces: &[Digest], time: Duration) {
        for peer in self.peers.values_mut() {
            if pieces.iter().any(|sha256| peer.fetches.contains(sha256)) {
                peer.waited = peer.waited.saturating_add(time);
                if peer.waited >= CLAIM_LIMIT {
                    peer.fetches.clear();
                }
            }
        }
    }

    /// Notes that a piece is there, and the peer that sent it.
    pub fn came(&mut self, sha256: &Digest, from: Option<IpAddr>) {
        for (address, peer) in &mut self.peers {
            let had = peer.has.remove(sha256);
            if had && from.is_some() && peer.waited < CLAIM_LIMIT {
                peer.waited = Duration::ZERO;
            }
            if from == Some(*address) {
                peer.timeouts = 0;
                peer.refusals = 0;
            }
        }
    }

    /// Notes that a peer, which did not answer the last question, fetches nothing.
    pub fn silent(&mut self, peer: IpAddr) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.fetches.clear();
        }
    }

    /// Returns the peers that were not left.
    pub fn active(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let active = self.peers.iter().filter(|(_, peer)| !peer.excluded);
        active.map(|(address, _)| *address)
    }

    /// Returns true if peers have all of these pieces, so that a question is of no use.
    #[must_use]
    pub fn covers(&self, pieces: &[Digest]) -> bool {
        pieces.iter().all(|sha256| self.holder(sha256).is_some())
    }

    /// Returns the step after an answer. `missing` has the pieces in the order of the host.
    #[must_use]
    pub fn next(&self, missing: &[Digest]) -> Next {
        if missing.is_empty() {
            return Next::Done;
        }
        let mut at_peers = missing.iter().filter_map(|sha256| {
            let peer = self.holder(sha256)?;
            Some(Next::Peer(*sha256, peer))
        });
        if let Some(next) = at_peers.next() {
            return next;
        }
        let mut free = missing.iter().filter(|sha256| {
            !self
                .peers
                .values()
                .any(|peer| peer.fetches.contains(sha256))
        });
        free.next()
            .map_or(Next::Wait, |sha256| Next::Origin(*sha256))
    }

    /// Returns true if the host gives up a piece, which a peer of lower rank fetches, too.
    #[must_use]
    pub fn yields(&self, sha256: &Digest) -> bool {
        let own = rank(self.own, sha256);
        let mut others = self.peers.values();
        others.any(|peer| peer.fetches.contains(sha256) && rank(peer.cookie, sha256) < own)
    }

    /// Returns the peer from which this host fetches a piece. Hosts choose different peers.
    fn holder(&self, sha256: &Digest) -> Option<IpAddr> {
        let holders = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.has.contains(sha256));
        let own = self.own.0.rotate_left(1);
        let best = holders.min_by_key(|(_, peer)| rank(Cookie(peer.cookie.0 ^ own), sha256));
        best.map(|(address, _)| *address)
    }
}

/// Returns the rank of a host for a piece: different for each, and known to all.
fn rank(host: Cookie, sha256: &Digest) -> u64 {
    let mut hasher = Hasher::default();
    hasher.update(&host.0.to_be_bytes());
    hasher.update(&sha256.0);
    hasher.finish().number()
}

#[cfg(test)]
mod tests;
