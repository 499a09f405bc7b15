//! Address conflict detection (RFC 5227), beside the DHCP exchange.
//!
//! The RFC has a host probe for seconds before it uses an address. A build host
//! would wait at every boot for what nearly never happens, so here the probes go
//! out with the REQUEST, the address is used as soon as it is granted, and given
//! up when somebody else turns out to have it:
//!
//! | time | what |
//! |---|---|
//! | 0, 60, 120 ms | probes ("who has it?", from 0.0.0.0) |
//! | 200 ms, or when granted | announcement, and another 2 s later |
//! | until then | whoever has it keeps it: [`Detector::received`] says so at once |
//! | afterwards | the first claim is answered by an announcement, a second one within 10 s wins (section 2.4, b) |
//!
//! A claim is a packet from another hardware address that names the address as
//! its sender's own. Probes of others are no claims, which the RFC would have
//! while probing: switches that track their hosts send such, and a host that
//! really wants the address announces it afterwards, which is a claim.
//!
//! Pure, as everything in this crate: packets and time come in, packets and a
//! verdict go out.

use core::time::Duration;
use std::collections::VecDeque;
use std::net::Ipv4Addr;

use crate::arp::Packet;
use crate::{Instant, Mac};

/// PROBE_NUM.
const PROBES: u32 = 3;
/// In place of PROBE_MIN to PROBE_MAX, 1 to 2 s: hosts that are awake answer within
/// a millisecond or two, and those that sleep are found while the address is used.
const PROBE_INTERVAL: Duration = Duration::from_millis(60);
/// In place of ANNOUNCE_WAIT, 2 s: from the last probe to the first announcement.
const ANNOUNCE_WAIT: Duration = Duration::from_millis(80);
/// ANNOUNCE_NUM.
const ANNOUNCEMENTS: u32 = 2;
/// ANNOUNCE_INTERVAL.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
/// DEFEND_INTERVAL.
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `sent` probes are out, the next step is due.
    Probing { sent: u32, next: Instant },
    /// Nobody answered; the address is not granted yet.
    Unclaimed,
    /// `sent` announcements are out, the next one is due.
    Announcing { sent: u32, next: Instant },
    /// The address is ours, and defended since the last claim.
    Watching { defended: Option<Instant> },
}

/// Watches over one address on one link.
#[derive(Debug)]
pub struct Detector {
    address: Ipv4Addr,
    mac: Mac,
    granted: bool,
    phase: Phase,
    packets: VecDeque<Packet>,
}

impl Detector {
    /// Begins to probe for `address` from the link with the hardware address `mac`.
    pub fn new(now: Instant, mac: Mac, address: Ipv4Addr) -> Self {
        let mut detector = Self {
            address,
            mac,
            granted: false,
            phase: Phase::Probing { sent: 0, next: now },
            packets: VecDeque::new(),
        };
        detector.timeout(now);
        detector
    }

    /// Watches over an address that is in use already.
    pub fn watching(mac: Mac, address: Ipv4Addr) -> Self {
        Self {
            address,
            mac,
            granted: true,
            phase: Phase::Watching { defended: None },
            packets: VecDeque::new(),
        }
    }

    /// The address watched over.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The server granted the address: it may be announced.
    pub fn grant(&mut self, now: Instant) {
        self.granted = true;
        if self.phase == Phase::Unclaimed {
            self.announce(now, 0);
        }
    }

    /// [`Detector::deadline`] has come.
    pub fn timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Probing { sent, next } if next <= now && sent < PROBES => {
                self.packets
                    .push_back(Packet::probe(self.mac, self.address));
                let sent = sent + 1;
                let wait = match sent < PROBES {
                    true => PROBE_INTERVAL,
                    false => ANNOUNCE_WAIT,
                };
                let next = now.saturating_add(wait);
                self.phase = Phase::Probing { sent, next };
            }
            Phase::Probing { next, .. } if next <= now => {
                self.phase = Phase::Unclaimed;
                if self.granted {
                    self.announce(now, 0);
                }
            }
            Phase::Announcing { sent, next } if next <= now => self.announce(now, sent),
            Phase::Probing { .. }
            | Phase::Unclaimed
            | Phase::Announcing { .. }
            | Phase::Watching { .. } => {}
        }
    }

    /// When to call [`Detector::timeout`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Probing { next, .. } | Phase::Announcing { next, .. } => Some(next),
            Phase::Unclaimed | Phase::Watching { .. } => None,
        }
    }

    /// An ARP packet that came in on the link. The hardware address of its sender
    /// when the address has to be left to it.
    pub fn received(&mut self, now: Instant, packet: &Packet) -> Option<Mac> {
        if packet.sender != self.address || packet.sender_mac == self.mac {
            return None;
        }
        match self.phase {
            Phase::Probing { .. } | Phase::Unclaimed | Phase::Announcing { .. } => {
                Some(packet.sender_mac)
            }
            Phase::Watching { defended } => {
                let again = defended.is_some_and(|at| now.saturating_sub(at) < DEFEND_INTERVAL);
                if again {
                    return Some(packet.sender_mac);
                }
                self.packets
                    .push_back(Packet::announcement(self.mac, self.address));
                let defended = Some(now);
                self.phase = Phase::Watching { defended };
                None
            }
        }
    }

    /// The next packet to broadcast on the link.
    pub fn poll(&mut self) -> Option<Packet> {
        self.packets.pop_front()
    }

    fn announce(&mut self, now: Instant, sent: u32) {
        self.packets
            .push_back(Packet::announcement(self.mac, self.address));
        let sent = sent + 1;
        self.phase = match sent < ANNOUNCEMENTS {
            true => Phase::Announcing {
                sent,
                next: now.saturating_add(ANNOUNCE_INTERVAL),
            },
            false => Phase::Watching { defended: None },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 2];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

    /// A detector with a clock in milliseconds.
    struct Link {
        detector: Detector,
        now: u64,
        sent: Vec<(u64, Packet)>,
    }

    impl Link {
        fn new() -> Self {
            let detector = Detector::new(Duration::ZERO, OURS, ADDRESS);
            let mut link = Self {
                detector,
                now: 0,
                sent: Vec::new(),
            };
            link.drain();
            link
        }

        fn granted() -> Self {
            let mut link = Self::new();
            link.grant();
            link
        }

        fn now(&self) -> Instant {
            Duration::from_millis(self.now)
        }

        fn drain(&mut self) {
            while let Some(packet) = self.detector.poll() {
                self.sent.push((self.now, packet));
            }
        }

        fn grant(&mut self) {
            self.detector.grant(self.now());
            self.drain();
        }

        fn run_until(&mut self, end: u64) {
            while let Some(deadline) = self.detector.deadline() {
                let deadline = u64::try_from(deadline.as_millis()).unwrap();
                if deadline > end {
                    break;
                }
                self.now = deadline;
                self.detector.timeout(self.now());
                self.drain();
            }
            self.now = end;
        }

        fn claim(&mut self) -> Option<Mac> {
            let verdict = self
                .detector
                .received(self.now(), &Packet::announcement(THEIRS, ADDRESS));
            self.drain();
            verdict
        }

        fn times(&self, packet: Packet) -> Vec<u64> {
            let same = self.sent.iter().filter(|(_, sent)| *sent == packet);
            same.map(|(at, _)| *at).collect()
        }
    }

    fn probe() -> Packet {
        Packet::probe(OURS, ADDRESS)
    }

    fn announcement() -> Packet {
        Packet::announcement(OURS, ADDRESS)
    }

    #[test]
    fn probes_then_announces_what_is_granted() {
        let mut link = Link::granted();
        link.run_until(60_000);
        assert_eq!(link.times(probe()), [0, 60, 120]);
        assert_eq!(link.times(announcement()), [200, 2200]);
        assert_eq!(link.detector.deadline(), None, "then it only listens");
    }

    #[test]
    fn what_is_not_granted_is_not_announced() {
        let mut link = Link::new();
        link.run_until(5000);
        assert_eq!(link.times(announcement()), [0; 0]);
        link.grant();
        link.grant();
        link.run_until(60_000);
        assert_eq!(link.times(announcement()), [5000, 7000]);
    }

    #[test]
    fn a_claim_wins_until_the_address_has_been_announced() {
        for at in [0, 60, 199, 200, 2199] {
            let mut link = Link::granted();
            link.run_until(at);
            assert_eq!(link.claim(), Some(THEIRS), "at {at} ms");
        }
        let mut link = Link::new();
        link.run_until(3000);
        assert_eq!(link.claim(), Some(THEIRS), "not granted yet");
    }

    #[test]
    fn afterwards_one_claim_is_answered_and_a_second_one_wins() {
        let mut link = Link::granted();
        link.run_until(2200);
        assert_eq!(link.claim(), None);
        assert_eq!(link.times(announcement()), [200, 2200, 2200], "defended");
        link.run_until(12_200);
        assert_eq!(
            link.claim(),
            None,
            "ten seconds later it counts as the first"
        );
        link.run_until(22_199);
        assert_eq!(link.claim(), Some(THEIRS));
    }

    #[test]
    fn an_address_in_use_already_is_defended_from_the_start() {
        let mut detector = Detector::watching(OURS, ADDRESS);
        assert_eq!((detector.poll(), detector.deadline()), (None, None));
        let claim = Packet::announcement(THEIRS, ADDRESS);
        assert_eq!(detector.received(Duration::ZERO, &claim), None);
        assert_eq!(detector.poll(), Some(announcement()));
        assert_eq!(detector.received(Duration::ZERO, &claim), Some(THEIRS));
    }

    #[test]
    fn what_is_no_claim_changes_nothing() {
        for packet in [
            Packet::announcement(OURS, ADDRESS),
            Packet::announcement(THEIRS, Ipv4Addr::new(192, 0, 2, 78)),
            Packet::probe(THEIRS, ADDRESS),
        ] {
            for at in [0, 200, 5000] {
                let mut link = Link::granted();
                link.run_until(at);
                let (phase, sent) = (link.detector.phase, link.sent.len());
                assert_eq!(link.detector.received(link.now(), &packet), None);
                link.drain();
                assert_eq!((link.detector.phase, link.sent.len()), (phase, sent));
            }
        }
    }

    #[test]
    fn a_timeout_too_early_changes_nothing() {
        for at in [0, 100, 1000, 5000] {
            let mut link = Link::granted();
            link.run_until(at);
            let (phase, sent) = (link.detector.phase, link.sent.len());
            link.detector.timeout(link.now());
            link.drain();
            assert_eq!((link.detector.phase, link.sent.len()), (phase, sent));
        }
    }
}
