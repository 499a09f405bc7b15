//! Records the decisions of the election: which servers were asked, what they offered, and
//! why an offer was refused.
//!
//! The journal has the transitions. The history has the events that led to them: every
//! server on every NIC, with times. Its size is bounded: a repetition increments a
//! counter, and a new entry replaces the oldest one.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use buildos_dhcp::address_conflict::Report;
use buildos_dhcp::{Event, Lease, Transmit};
use serde::Serialize;

use crate::uplink::notice::Notice;

/// Limit of entries. A boot with four NICs and a rogue server makes about twenty.
const MAX_ENTRIES: usize = 256;
/// Reason of a lease that ended with its NIC.
pub const GONE: &str =
    "the NIC was removed, excluded or taken by another program, or its hardware address changed";
/// Number of the latest entries that are searched for a repetition.
const REPETITION_WINDOW: usize = 32;

/// A decision, made once or several times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// First occurrence, CLOCK_REALTIME in microseconds.
    pub first_usec: u64,
    /// Last occurrence, CLOCK_REALTIME in microseconds.
    pub last_usec: u64,
    /// Number of occurrences.
    pub times: u64,
    #[allow(missing_docs)]
    #[serde(flatten)]
    pub decision: Decision,
}

/// A decision, or an event that led to one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Name of the NIC.
    pub interface: String,
    /// `sent DISCOVER`, `offered`, `refused`, `failed`, `bound`, `extended`,
    /// `unconfirmed`, `contested`, `proxy ARP`, `lost`, `replaced`, `moved`, `taken over`,
    /// `IPv6 only`, `kept`, `static`, `claimed` (the address of the last two), `ended` (their use),
    /// `gateway silent` or `gateway answers`.
    pub decision: String,
    /// The server (option 54).
    pub server: Option<Ipv4Addr>,
    /// The offered or leased address, or that of the gateway.
    pub address: Option<Ipv4Addr>,
    /// The reason, for operators. Text from servers is escaped.
    pub reason: Option<String>,
}

/// The latest decisions.
#[derive(Debug, Default, Serialize)]
pub struct History {
    entries: VecDeque<Entry>,
    #[serde(skip)]
    changed: bool,
}

impl History {
    /// Records a sent message.
    pub fn sent(&mut self, usec: u64, interface: &str, transmit: &Transmit) {
        let server = transmit.destination;
        self.add(
            usec,
            Decision {
                interface: interface.to_owned(),
                decision: format!("sent {}", transmit.kind),
                server: (!server.is_broadcast()).then_some(server),
                address: None,
                reason: None,
            },
        );
    }

    /// Records an event of the DHCP client of a NIC.
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
            Decision {
                interface: interface.to_owned(),
                decision: decision.to_owned(),
                server,
                address,
                reason,
            },
        );
    }

    /// Records a finding about another host and the address of a NIC.
    pub fn report(&mut self, usec: u64, interface: &str, address: Ipv4Addr, report: Report) {
        let (decision, reason) = match report {
            Report::Contested(by) => ("contested", format!("address is claimed by {by}, too")),
            Report::ProxyArp(by) => ("proxy ARP", format!("claims by {by} are ignored")),
        };
        self.add(
            usec,
            Decision {
                interface: interface.to_owned(),
                decision: decision.to_owned(),
                server: None,
                address: Some(address),
                reason: Some(reason),
            },
        );
    }

    /// Records that a NIC went, and its lease with it.
    pub fn gone(&mut self, usec: u64, interface: &str, lease: &Lease) {
        self.add(
            usec,
            Decision {
                interface: interface.to_owned(),
                decision: "lost".to_owned(),
                server: (!lease.is_configured()).then_some(lease.server),
                address: Some(lease.address),
                reason: Some(GONE.to_owned()),
            },
        );
    }

    /// Records a decision of the election about a NIC.
    pub fn notice(&mut self, usec: u64, interface: &str, notice: &Notice) {
        let (decision, server, address, reason) = match notice {
            Notice::Replaced { lease, by, reason } => {
                let reason = format!("{by} took br0 over: {reason}");
                (
                    "replaced",
                    Some(lease.server),
                    Some(lease.address),
                    Some(reason),
                )
            }
            Notice::Moved {
                lease,
                server,
                network,
            } => {
                let reason = format!("{server} offers an address of {network}");
                (
                    "moved",
                    Some(lease.server),
                    Some(lease.address),
                    Some(reason),
                )
            }
            Notice::FallbackUsed(lease) => ("static", None, Some(lease.address), None),
            Notice::Kept(lease) => ("kept", Some(lease.server), Some(lease.address), None),
            Notice::FallbackClaimed { address, by } => (
                "claimed",
                None,
                Some(*address),
                Some(format!("address is in use by {by}")),
            ),
            Notice::FallbackEnded { address, granted } => {
                let reason = format!("a server granted {granted}");
                ("ended", None, Some(*address), Some(reason))
            }
            Notice::TakenOver {
                lease,
                from,
                reason,
                confirmed_by,
            } => {
                let reason = format!("from {from}: {reason}; {confirmed_by}");
                let (server, address) = (Some(lease.server), Some(lease.address));
                ("taken over", server, address, Some(reason))
            }
            Notice::Ipv6Only => ("IPv6 only", None, None, None),
            Notice::GatewaySilent(gateway) => ("gateway silent", None, Some(*gateway), None),
            Notice::GatewayAnswers(gateway) => ("gateway answers", None, Some(*gateway), None),
        };
        self.add(
            usec,
            Decision {
                interface: interface.to_owned(),
                decision: decision.to_owned(),
                server,
                address,
                reason,
            },
        );
    }

    /// Returns the history as JSON if it changed since the last call.
    pub fn take_changes(&mut self) -> Option<Vec<u8>> {
        // JSON fails only for maps whose keys are not strings; there are none.
        std::mem::take(&mut self.changed).then(|| serde_json::to_vec(self).unwrap_or_default())
    }

    fn add(&mut self, usec: u64, decision: Decision) {
        self.changed = true;
        let mut recent = self.entries.iter_mut().rev().take(REPETITION_WINDOW);
        if let Some(entry) = recent.find(|entry| entry.decision == decision) {
            entry.times = entry.times.saturating_add(1);
            entry.last_usec = usec;
            return;
        }
        if self.entries.len() == MAX_ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            first_usec: usec,
            last_usec: usec,
            times: 1,
            decision,
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
    fn history_repetition_increments_counter() {
        let mut history = History::default();
        for usec in 1..=5 {
            history.event(usec, "enp1s0", &refused(1));
            history.event(usec, "enp2s0", &refused(1));
        }
        let [first, second] = history.entries.make_contiguous() else {
            panic!("{:?}", history.entries);
        };
        assert_eq!((first.first_usec, first.last_usec, first.times), (1, 5, 5));
        assert_eq!(second.decision.interface, "enp2s0");
    }

    #[test]
    fn history_full_drops_oldest_entries() {
        let mut history = History::default();
        for server in 0..10_000 {
            history.event(server.into(), "enp1s0", &refused(server));
        }
        assert_eq!(history.entries.len(), MAX_ENTRIES);
        assert_eq!(
            history.entries.back().unwrap().decision.server,
            Some(Ipv4Addr::from(9999))
        );
    }

    #[test]
    fn history_is_json_returned_once_per_change() {
        let mut history = History::default();
        assert_eq!(history.take_changes(), None);
        history.event(7, "enp1s0", &refused(0xc000_0201));
        let json = history.take_changes().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"entries": [{
                "first_usec": 7, "last_usec": 7, "times": 1, "interface": "enp1s0",
                "decision": "refused", "server": "192.0.2.1", "address": null,
                "reason": format!("OFFER: {}", Refusal::NoMask),
            }]})
        );
        assert_eq!(history.take_changes(), None);
    }
}
