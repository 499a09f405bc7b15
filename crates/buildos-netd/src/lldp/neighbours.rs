//! Keeps the neighbour of each NIC until it expires.
//!
//! | event | effect |
//! |---|---|
//! | frame of a NIC without a neighbour | the sender becomes the neighbour |
//! | frame of the neighbour | it replaces what was known, and is valid from now |
//! | frame of a different sender | ignored: behind a hub, the neighbour would alternate |
//! | frame of the neighbour that is valid for 0 s | no neighbour |
//! | end of the validity, loss of carrier | no neighbour |

use std::collections::BTreeMap;

use buildos_dhcp::Instant;
use buildos_types::LinkIndex;

use super::frame::{Frame, Neighbour};

/// The neighbours.
#[derive(Debug, Default)]
pub struct Neighbours(BTreeMap<LinkIndex, Known>);

#[derive(Debug)]
struct Known {
    sender: (Vec<u8>, Vec<u8>),
    expires: Instant,
    neighbour: Neighbour,
}

impl Neighbours {
    /// Processes a frame that a NIC received.
    pub fn receive(&mut self, now: Instant, link: LinkIndex, frame: Frame) {
        self.timeout(now);
        let known = self.0.get(&link);
        if known.is_some_and(|known| known.sender != frame.sender) {
            return;
        }
        if frame.valid_for.is_zero() {
            self.0.remove(&link);
            return;
        }
        let expires = now.saturating_add(frame.valid_for);
        let (sender, neighbour) = (frame.sender, frame.neighbour);
        let known = Known {
            sender,
            expires,
            neighbour,
        };
        self.0.insert(link, known);
    }

    /// Removes the neighbours that expired. Call it at [`Neighbours::deadline`].
    pub fn timeout(&mut self, now: Instant) {
        self.0.retain(|_, known| known.expires > now);
    }

    /// Returns the end of the first validity.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.0.values().map(|known| known.expires).min()
    }

    /// Removes the neighbours of all links for which `keep` returns false.
    pub fn retain(&mut self, keep: impl Fn(LinkIndex) -> bool) {
        self.0.retain(|link, _| keep(*link));
    }

    /// Returns the neighbour of a link.
    #[must_use]
    pub fn get(&self, link: LinkIndex) -> Option<&Neighbour> {
        self.0.get(&link).map(|known| &known.neighbour)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::frame::{parse, tests::of_port};
    use super::*;

    const START: Instant = Duration::from_secs(100);
    const SECOND: Duration = Duration::from_secs(1);

    fn link() -> LinkIndex {
        LinkIndex::new(2).unwrap()
    }

    fn frame(port: &str, valid_for: Duration) -> Frame {
        let frame = parse(&of_port(port)).unwrap();
        Frame { valid_for, ..frame }
    }

    fn port(neighbours: &Neighbours) -> Option<&str> {
        let neighbour = neighbours.get(link());
        neighbour.map(|neighbour| neighbour.port.as_str())
    }

    #[test]
    fn neighbour_expires_after_its_last_frame() {
        let mut neighbours = Neighbours::default();
        neighbours.receive(START, link(), frame("1", 3 * SECOND));
        neighbours.receive(START + SECOND, link(), frame("1", 3 * SECOND));
        assert_eq!(neighbours.deadline(), Some(START + 4 * SECOND));
        neighbours.timeout(START + 3 * SECOND);
        assert_eq!(port(&neighbours), Some("1"));
        neighbours.timeout(START + 4 * SECOND);
        assert_eq!(port(&neighbours), None);
        assert_eq!(neighbours.deadline(), None);
    }

    #[test]
    fn different_sender_replaces_expired_neighbour_only() {
        let mut neighbours = Neighbours::default();
        neighbours.receive(START, link(), frame("1", 3 * SECOND));
        neighbours.receive(START, link(), frame("2", 3 * SECOND));
        assert_eq!(port(&neighbours), Some("1"));
        neighbours.receive(START + 3 * SECOND, link(), frame("2", 3 * SECOND));
        assert_eq!(port(&neighbours), Some("2"));
    }

    #[test]
    fn neighbour_that_leaves_is_removed() {
        let mut neighbours = Neighbours::default();
        neighbours.receive(START, link(), frame("1", 3 * SECOND));
        neighbours.receive(START, link(), frame("2", Duration::ZERO));
        assert_eq!(port(&neighbours), Some("1"));
        neighbours.receive(START, link(), frame("1", Duration::ZERO));
        assert_eq!(port(&neighbours), None);
    }

    #[test]
    fn link_without_carrier_loses_its_neighbour() {
        let mut neighbours = Neighbours::default();
        neighbours.receive(START, link(), frame("1", 3 * SECOND));
        neighbours.retain(|_| false);
        assert_eq!(port(&neighbours), None);
    }
}
