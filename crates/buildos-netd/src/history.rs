//! The decision ledger: who was asked, what was offered, what was refused and why.
//!
//! The journal tells the transitions, the ledger what led to them: every server on
//! every NIC, with the times. It is bounded: what repeats itself is one entry with a
//! count, and the oldest entry goes when there are too many.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use buildos_dhcp::{Event, Transmit};
use serde::Serialize;

/// Entries kept. A boot with four NICs and a rogue server makes about twenty.
const MOST: usize = 256;
/// How many of the latest entries may be added to when something repeats itself.
const RECENT: usize = 32;

/// One thing that happened, once or several times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// When first, CLOCK_REALTIME microseconds.
    pub first_usec: u64,
    /// When last, CLOCK_REALTIME microseconds.
    pub last_usec: u64,
    /// How often.
    pub times: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened, without the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct What {
    /// Name of the NIC.
    pub interface: String,
    /// `sent DISCOVER`, `offered`, `refused`, `failed`, `bound`, `extended`,
    /// `unconfirmed` or `lost`.
    pub decision: String,
    /// The server (option 54).
    pub server: Option<Ipv4Addr>,
    /// The address that it is about.
    pub address: Option<Ipv4Addr>,
    /// Why, in words; text of servers in it is escaped.
    pub reason: Option<String>,
}

/// The ledger.
#[derive(Debug, Default, Serialize)]
pub struct Ledger {
    entries: VecDeque<Entry>,
    #[serde(skip)]
    changed: bool,
}

impl Ledger {
    /// A message was sent on a NIC.
    pub fn sent(&mut self, usec: u64, interface: &str, transmit: &Transmit) {
        let server = transmit.destination;
        self.add(
            usec,
            What {
                interface: interface.to_owned(),
                decision: format!("sent {}", transmit.kind),
                server: (!server.is_broadcast()).then_some(server),
                address: None,
                reason: None,
            },
        );
    }

    /// Something happened to the client of a NIC.
    pub fn event(&mut self, usec: u64, interface: &str, event: &Event) {
        let (decision, server, address, reason) = match event {
            Event::Offered { server, address } => ("offered", Some(*server), Some(*address), None),
            Event::Refused {
                kind,
                server,
                reason,
            } => ("refused", *server, None, Some(format!("{kind}: {reason}"))),
            Event::RequestFailed { server, reason } => {
                ("failed", Some(*server), None, Some(reason.to_string()))
            }
            Event::Bound(lease) => ("bound", Some(lease.server), Some(lease.address), None),
            Event::Renewed(lease) => ("extended", Some(lease.server), Some(lease.address), None),
            Event::Unconfirmed(lease) => {
                ("unconfirmed", Some(lease.server), Some(lease.address), None)
            }
            Event::Lost { lease, reason } => (
                "lost",
                Some(lease.server),
                Some(lease.address),
                Some(reason.to_string()),
            ),
        };
        self.add(
            usec,
            What {
                interface: interface.to_owned(),
                decision: decision.to_owned(),
                server,
                address,
                reason,
            },
        );
    }

    /// The entries as JSON, when there is something new since the last call.
    pub fn take_changes(&mut self) -> Option<Vec<u8>> {
        // Only a map with keys that are no strings could fail; there is none.
        std::mem::take(&mut self.changed)
            .then(|| serde_json::to_vec_pretty(self).unwrap_or_default())
    }

    fn add(&mut self, usec: u64, what: What) {
        self.changed = true;
        let mut recent = self.entries.iter_mut().rev().take(RECENT);
        if let Some(entry) = recent.find(|entry| entry.what == what) {
            entry.times = entry.times.saturating_add(1);
            entry.last_usec = usec;
            return;
        }
        if self.entries.len() == MOST {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            first_usec: usec,
            last_usec: usec,
            times: 1,
            what,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_dhcp::{MessageKind, Refusal};

    fn refused(server: u32) -> Event {
        Event::Refused {
            kind: MessageKind::Offer,
            server: Some(Ipv4Addr::from(server)),
            reason: Refusal::NoMask,
        }
    }

    #[test]
    fn what_repeats_itself_is_one_entry() {
        let mut ledger = Ledger::default();
        for usec in 1..=5 {
            ledger.event(usec, "enp1s0", &refused(1));
            ledger.event(usec, "enp2s0", &refused(1));
        }
        let [first, second] = ledger.entries.make_contiguous() else {
            panic!("{:?}", ledger.entries);
        };
        assert_eq!((first.first_usec, first.last_usec, first.times), (1, 5, 5));
        assert_eq!(second.what.interface, "enp2s0");
    }

    #[test]
    fn a_flood_leaves_the_latest() {
        let mut ledger = Ledger::default();
        for server in 0..10_000 {
            ledger.event(server.into(), "enp1s0", &refused(server));
        }
        assert_eq!(ledger.entries.len(), MOST);
        assert_eq!(
            ledger.entries.back().unwrap().what.server,
            Some(Ipv4Addr::from(9999))
        );
    }

    #[test]
    fn it_is_json_and_written_when_it_changed() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.take_changes(), None);
        ledger.event(7, "enp1s0", &refused(0xc000_0201));
        let json = ledger.take_changes().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"entries": [{
                "first_usec": 7, "last_usec": 7, "times": 1, "interface": "enp1s0",
                "decision": "refused", "server": "192.0.2.1", "address": null,
                "reason": format!("OFFER: {}", Refusal::NoMask),
            }]})
        );
        assert_eq!(ledger.take_changes(), None);
    }
}
