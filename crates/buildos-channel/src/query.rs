//! Defines the datagrams by which hosts of a LAN find each other's pieces.
//!
//! The form is that of BitTorrent's local service discovery (BEP 14): lines of HTTP, and a
//! cookie by which a sender recognises its own datagrams. A host asks all hosts of its link;
//! those that have or fetch some of the pieces answer to the sender alone.
//!
//! ```text
//! BUILDOS-SEARCH * HTTP/1.1        BUILDOS-SEARCH * HTTP/1.1
//! Cookie: 00000000000000aa         Cookie: 00000000000000bb
//! Want: <sha256>                   Have: <sha256>
//! Want: <sha256>                   Part: <sha256>
//! ```
//!
//! # Limits
//!
//! An answer has lines for digests of the question only, so it is not longer than the
//! question. Lines with other names are ignored; any other mistake makes the datagram
//! invalid.

use std::fmt::Write as _;

use crate::digest::{Digest, Hasher};
use crate::name::HostId;

/// Pieces in a datagram at most.
pub const PIECES: usize = 16;
/// Bytes of a datagram at most. One packet of any Ethernet has room for it.
pub const LONGEST: usize = 1400;
/// UDP port of questions, and TCP port at which a host serves `/SHA256`.
pub const PORT: u16 = 7873;

const FIRST: &str = "BUILDOS-SEARCH * HTTP/1.1";

/// Identifies the sender of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cookie(pub u64);

/// State of a piece in a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The sender asks for it.
    Want,
    /// The sender has it.
    Have,
    /// The sender fetches it from the origin.
    Part,
}

/// A question or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    #[allow(missing_docs)]
    pub cookie: Cookie,
    /// At most [`PIECES`].
    pub pieces: Vec<(State, Digest)>,
}

impl Cookie {
    /// Returns the cookie of a host. It does not reveal the machine id.
    #[must_use]
    pub fn of(host: &HostId) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(b"cookie\0");
        hasher.update(host.as_str().as_bytes());
        Self(hasher.finish().number())
    }
}

impl State {
    const ALL: [Self; 3] = [Self::Want, Self::Have, Self::Part];

    const fn name(self) -> &'static str {
        match self {
            Self::Want => "Want",
            Self::Have => "Have",
            Self::Part => "Part",
        }
    }
}

impl Query {
    /// Parses a datagram. Returns [`None`] if it is invalid.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() > LONGEST {
            return None;
        }
        let text = std::str::from_utf8(datagram).ok()?;
        let mut lines = text.strip_suffix("\r\n\r\n")?.split("\r\n");
        if lines.next() != Some(FIRST) {
            return None;
        }
        let (mut cookie, mut pieces) = (None, Vec::new());
        for line in lines {
            let (name, value) = line.split_once(": ")?;
            if name == "Cookie" {
                let digits = value.len() == 16 && value.bytes().all(|b| b.is_ascii_hexdigit());
                let number = u64::from_str_radix(value, 16).ok().filter(|_| digits)?;
                cookie = Some(Cookie(number));
            } else if let Some(state) = State::ALL.into_iter().find(|state| state.name() == name) {
                pieces.push((state, value.parse().ok()?));
            }
        }
        (pieces.len() <= PIECES).then_some(Self {
            cookie: cookie?,
            pieces,
        })
    }

    /// Returns the datagram.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{FIRST}\r\nCookie: {:016x}\r\n", self.cookie.0);
        for (state, sha256) in self.pieces.iter().take(PIECES) {
            // Writing to a String cannot fail.
            let _ = write!(out, "{}: {sha256}\r\n", state.name());
        }
        out += "\r\n";
        out
    }

    /// Returns the answer of the host `own`, or [`None`] if it has nothing to answer. `state`
    /// returns [`None`] for a piece that the host neither has nor fetches.
    #[must_use]
    pub fn answer(
        &self,
        own: Cookie,
        mut state: impl FnMut(&Digest) -> Option<State>,
    ) -> Option<Self> {
        if self.cookie == own {
            return None;
        }
        let wanted = self.pieces.iter().filter(|(said, _)| *said == State::Want);
        let pieces: Vec<_> = wanted
            .filter_map(|(_, sha256)| Some((state(sha256)?, *sha256)))
            .collect();
        (!pieces.is_empty()).then_some(Self {
            cookie: own,
            pieces,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::of(&[number])
    }

    fn question(count: u8) -> Query {
        Query {
            cookie: Cookie(0xaa),
            pieces: (0..count).map(|n| (State::Want, digest(n))).collect(),
        }
    }

    #[test]
    fn largest_datagram_is_read_back() {
        let query = question(16);
        assert!(query.text().len() <= LONGEST);
        assert_eq!(Query::parse(query.text().as_bytes()), Some(query));
    }

    #[test]
    fn answer_names_only_what_was_asked_and_is_there() {
        let own = Cookie(0xbb);
        let state = |sha256: &Digest| match *sha256 {
            found if found == digest(1) => Some(State::Have),
            found if found == digest(2) => Some(State::Part),
            _ => None,
        };
        let answer = question(4).answer(own, state).unwrap();
        assert_eq!(
            answer.pieces,
            [(State::Have, digest(1)), (State::Part, digest(2))]
        );
        assert!(answer.text().len() <= question(4).text().len());
        assert_eq!(question(1).answer(own, state), None);
        assert_eq!(
            question(4).answer(Cookie(0xaa), state),
            None,
            "own question"
        );
        assert_eq!(answer.answer(Cookie(1), state), None, "answer to an answer");
    }

    #[test]
    fn invalid_datagrams_are_refused() {
        let good = question(1).text();
        let with = |from: &str, to: &str| good.replace(from, to);
        for bad in [
            String::new(),
            with("BUILDOS", "BT"),
            with("Cookie: 00", "Cookie: +"),
            with("Cookie", "Other"),
            with("Want: ", "Want: x"),
            with("\r\n\r\n", "\r\n"),
            with("Want: ", "Want"),
            question(16).text().replace("\r\n\r\n", &good[27..]),
            with("\r\n\r\n", &format!("\r\nX: {}\r\n\r\n", "x".repeat(1400))),
        ] {
            assert_eq!(Query::parse(bad.as_bytes()), None, "{bad:?}");
        }
        let more = with("\r\n\r\n", "\r\nX-New: 1\r\n\r\n");
        assert_eq!(Query::parse(more.as_bytes()), Some(question(1)));
    }

    mod fuzz {
        use super::*;
        use buildos_fuzz::{Generator, executions, mutate_text};

        const PARTS: [&str; 8] = [
            "\r\n", "Want: ", "Have: ", "Part: ", "Cookie: ", ": ", "\0", "é",
        ];

        #[test]
        fn any_datagram_is_read_back_or_refused() {
            let mut random = Generator::new(0x9e);
            let seeds = [question(0).text(), question(3).text(), question(16).text()];
            for _ in 0..executions(50_000) {
                let mut datagram = random.one_of(&seeds).clone().into_bytes();
                mutate_text(&mut datagram, &PARTS, &mut random);
                let Some(query) = Query::parse(&datagram) else {
                    continue;
                };
                assert!(query.pieces.len() <= PIECES);
                assert_eq!(Query::parse(query.text().as_bytes()), Some(query.clone()));
                let answer = query.answer(Cookie(1), |_| Some(State::Part));
                let length = answer.map_or(0, |answer| answer.text().len());
                assert!(length <= datagram.len());
            }
        }
    }
}
