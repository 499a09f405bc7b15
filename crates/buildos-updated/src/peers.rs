//! Fetches pieces from other hosts of the LAN, and from the origin what they do not have.
//!
//! ```text
//! question ─broadcast on br0→ buildos-pieces of each host ─answer→ swarm ─→ peer or origin
//!     ↑                                                                          │
//!     └───────────────── before a piece that no peer has ────────────────────────┘
//! ```
//!
//! | file | does |
//! |---|---|
//! | [`ask`] | asks the hosts of the link, and reads their answers |
//! | [`answer`] | answers from the spool: the program `buildos-pieces` |
//!
//! busybox httpd serves the pieces (`buildos-pieces-http.socket`).
//!
//! # Limits
//!
//! Each piece is verified before it gets its name. A peer that sends anything else is left for
//! the rest of the run. Every failure of peers ends at the origin.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use buildos_channel::plan::Piece;
use buildos_channel::query::{Cookie, PIECES, PORT};
use buildos_channel::swarm::{Fault, Next, Swarm};
use buildos_channel::{Digest, HostId};
use buildos_service::random;

use crate::messages;
use crate::programs::curl::PeerFailure;
use crate::settings::{Settings, Source};
use crate::spool::Spool;

pub mod answer;
pub mod ask;

use ask::Asker;

/// Time for the first answers. A LAN without peers costs it twice in a run.
const FIRST_ANSWERS: Duration = Duration::from_millis(150);
/// Time for the answers of peers that answered before.
const ANSWERS: Duration = Duration::from_millis(200);
/// Questions that wait for answers although no peer is known.
const FIRST_QUESTIONS: u32 = 2;
/// Shortest time between two questions while peers fetch all that is missing. Random up to the
/// same time is added.
const PAUSE: Duration = Duration::from_millis(200);
/// Failures to connect or to answer in time, after which a static peer is excluded.
const FAILURES: usize = 2;
/// A static peer that lacks so many pieces in a row is excluded.
const ABSENT: usize = 8;

/// Bytes fetched in a run, and the peers that sent wrong content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes.
    pub peers: u64,
    /// Bytes.
    pub origin: u64,
    /// Peers that sent wrong content, with the reason.
    pub bad: Vec<String>,
}

/// Fetches objects in a run.
pub struct Fetcher<'a> {
    spool: &'a Spool,
    source: &'a Source,
    settings: &'a Settings,
    swarm: Swarm,
    asker: Option<Asker>,
    fixed: Vec<Fixed<'a>>,
    /// Peers that answered the last question.
    answered: BTreeSet<IpAddr>,
    questions: u32,
    #[allow(missing_docs)]
    pub counts: Counts,
}

/// A peer of the configuration, which is not asked what it has.
struct Fixed<'a> {
    url: &'a Source,
    failures: usize,
    absent: usize,
}

impl<'a> Fetcher<'a> {
    /// Returns the fetcher of a run. Without a socket it uses the origin and the peers of the
    /// configuration.
    #[must_use]
    pub fn new(
        spool: &'a Spool,
        source: &'a Source,
        settings: &'a Settings,
        host: &HostId,
        root: &Path,
    ) -> Self {
        let cookie = Cookie::of(host);
        let asker = settings.share.then(|| Asker::new(root, cookie));
        let asker = asker.and_then(|asker| {
            asker
                .inspect_err(|error| tracing::debug!("cannot ask peers: {error}"))
                .ok()
        });
        let fixed = settings.peers.iter().map(|url| Fixed {
            url,
            failures: 0,
            absent: 0,
        });
        Self {
            spool,
            source,
            settings,
            swarm: Swarm::new(cookie),
            asker,
            fixed: fixed.collect(),
            answered: BTreeSet::new(),
            questions: 0,
            counts: Counts::default(),
        }
    }

    /// Fetches one object, unless the spool has it.
    ///
    /// # Errors
    ///
    /// Neither a peer nor the origin sends it.
    pub fn object(&mut self, sha256: &Digest, size: u64) -> Result<(), String> {
        if self.spool.has(sha256, size) {
            return Ok(());
        }
        self.ask(&[*sha256]);
        while let Next::Peer(_, peer) = self.swarm.next(&[*sha256]) {
            if self.fetch_from_peer(peer, sha256, size)? {
                return Ok(());
            }
        }
        self.fetch_from_origin(sha256, size)
    }

    /// Fetches pieces. `show` gets the number of those that are there, and can end it.
    ///
    /// # Errors
    ///
    /// Neither a peer nor the origin sends a piece, or `show` ended it.
    pub fn pieces(
        &mut self,
        pieces: &[Piece],
        mut show: impl FnMut(usize, &Counts) -> Result<(), String>,
    ) -> Result<(), String> {
        let absent = |piece: &&Piece| !self.spool.has(&piece.sha256, piece.size);
        let mut missing: Vec<Piece> = pieces.iter().filter(absent).copied().collect();
        while !missing.is_empty() {
            show(pieces.len().saturating_sub(missing.len()), &self.counts)?;
            if let Some(sha256) = self.step(&missing)? {
                missing.retain(|piece| piece.sha256 != sha256);
            }
        }
        Ok(())
    }

    /// Takes one step, and returns the piece that came.
    fn step(&mut self, missing: &[Piece]) -> Result<Option<Digest>, String> {
        let window: Vec<Digest> = missing.iter().map(|p| p.sha256).take(PIECES).collect();
        let size = |sha256: &Digest| {
            let found = missing.iter().find(|piece| piece.sha256 == *sha256);
            found.map_or(0, |piece| piece.size)
        };
        if !self.swarm.covers(&window) {
            self.ask(&window);
        }
        match self.swarm.next(&window) {
            Next::Done => Ok(None),
            Next::Wait => {
                let jitter = random::seed() % 200;
                let pause = PAUSE.saturating_add(Duration::from_millis(jitter));
                thread::sleep(pause);
                self.swarm.waited(&window, pause);
                Ok(None)
            }
            Next::Peer(sha256, peer) => {
                let came = self.fetch_from_peer(peer, &sha256, size(&sha256))?;
                Ok(came.then_some(sha256))
            }
            Next::Origin(sha256) => {
                self.spool.claim(&sha256)?;
                self.ask(&[sha256]);
                if self.swarm.yields(&sha256) || self.swarm.covers(&[sha256]) {
                    self.swarm.waited(&[sha256], ANSWERS);
                    self.spool.release(&sha256);
                    return Ok(None);
                }
                self.fetch_from_origin(&sha256, size(&sha256))?;
                Ok(Some(sha256))
            }
        }
    }

    /// Asks the hosts of the LAN, and waits for answers if there is a reason to expect any.
    fn ask(&mut self, wanted: &[Digest]) {
        let Some(asker) = &mut self.asker else {
            return;
        };
        let wait = match self.answered.is_empty() {
            false => ANSWERS,
            true if self.questions < FIRST_QUESTIONS => FIRST_ANSWERS,
            // Answers to the question of before are there already.
            true => Duration::ZERO,
        };
        self.questions = self.questions.saturating_add(1);
        self.swarm.asks(wanted);
        let expected = std::mem::take(&mut self.answered);
        let (swarm, answered) = (&mut self.swarm, &mut self.answered);
        asker.ask(wanted, wait, |from, query| {
            swarm.take(from, query.cookie, &query.pieces);
            answered.insert(from);
            !expected.is_empty() && expected.is_subset(answered)
        });
        for peer in expected.difference(&self.answered) {
            self.swarm.silent(*peer);
        }
    }

    /// Returns false if the peer does not send the piece.
    fn fetch_from_peer(
        &mut self,
        peer: IpAddr,
        sha256: &Digest,
        size: u64,
    ) -> Result<bool, String> {
        let url = format!("{}/{sha256}", base(peer));
        match self
            .spool
            .fetch_from_peer(sha256, size, &url, Some(ask::LINK), self.settings)
        {
            Ok(()) => {
                self.counts.peers = self.counts.peers.saturating_add(size);
                self.swarm.came(sha256, Some(peer));
                return Ok(true);
            }
            Err(PeerFailure::Absent) => self.swarm.failed(peer, sha256, Fault::Denied),
            Err(PeerFailure::Unreachable(reason)) => {
                tracing::debug!("peer {peer}: {reason}");
                self.swarm.failed(peer, sha256, Fault::Timeout);
            }
            Err(PeerFailure::Refused(reason)) => {
                tracing::debug!("peer {peer}: {reason}");
                self.swarm.failed(peer, sha256, Fault::Refused);
            }
            Err(PeerFailure::Slow(reason)) => {
                tracing::debug!("peer {peer}: {reason}");
                self.swarm.exclude(peer);
            }
            Err(PeerFailure::Bad(reason)) => {
                self.bad(&peer.to_string(), &reason);
                self.swarm.exclude(peer);
            }
            Err(PeerFailure::Local(reason)) => return Err(reason),
        }
        Ok(false)
    }

    fn bad(&mut self, peer: &str, reason: &str) {
        messages::bad_peer(peer, reason);
        self.counts.bad.push(format!("{peer}: {reason}"));
    }

    /// Fetches a piece from a peer of the configuration, or from the origin.
    fn fetch_from_origin(&mut self, sha256: &Digest, size: u64) -> Result<(), String> {
        for index in 0..self.fixed.len() {
            let Some(fixed) = self.fixed.get_mut(index) else {
                break;
            };
            if fixed.failures >= FAILURES || fixed.absent >= ABSENT {
                continue;
            }
            let url = fixed.url.file(&format!("objects/{sha256}"));
            let name = fixed.url.as_str();
            match self
                .spool
                .fetch_from_peer(sha256, size, &url, None, self.settings)
            {
                Ok(()) => {
                    (fixed.absent, fixed.failures) = (0, 0);
                    self.swarm.came(sha256, None);
                    self.counts.peers = self.counts.peers.saturating_add(size);
                    return Ok(());
                }
                Err(PeerFailure::Absent) => fixed.absent = fixed.absent.saturating_add(1),
                Err(PeerFailure::Unreachable(reason) | PeerFailure::Refused(reason)) => {
                    tracing::debug!("peer {name}: {reason}");
                    fixed.failures = fixed.failures.saturating_add(1);
                }
                Err(PeerFailure::Slow(reason)) => {
                    tracing::debug!("peer {name}: {reason}");
                    fixed.failures = FAILURES;
                }
                Err(PeerFailure::Bad(reason)) => {
                    fixed.failures = FAILURES;
                    self.bad(name, &reason);
                }
                Err(PeerFailure::Local(reason)) => return Err(reason),
            }
        }
        let (spool, source) = (self.spool, self.source);
        let came = spool.fetch(sha256, size, source, self.settings)?;
        self.counts.origin = self.counts.origin.saturating_add(came);
        self.swarm.came(sha256, None);
        Ok(())
    }
}

/// Returns the URL below which a peer has its pieces.
fn base(peer: IpAddr) -> String {
    match peer {
        IpAddr::V4(address) => format!("http://{address}:{PORT}"),
        // A link-local address needs its link (RFC 6874).
        IpAddr::V6(address) => format!("http://[{address}%25{}]:{PORT}", ask::LINK),
    }
}
