//! Detects address conflicts (RFC 5227) in parallel with the DHCP exchange.
//!
//! Under the RFC, a host probes for several seconds before it uses an address, at every
//! boot. Conflicts are rare, so the detector sends its probes together with the REQUEST.
//! The host uses the address once it is granted, and declines it after a conflict.
//!
//! | time | packets and claims |
//! |---|---|
//! | 0, 60, 120 ms | sends probes (sender address 0.0.0.0) |
//! | 200 ms, or when granted | sends an announcement, and the second 2 s later |
//! | before the second announcement | any claim is a conflict |
//! | later | answers a claim with an announcement; a second claim within 10 s is a conflict (section 2.4, b) |
//!
//! A claim is a packet from another hardware address with the address as sender
//! protocol address.
//!
//! # Limits
//!
//! A probe of another host is not a claim, unlike in the RFC. Switches that track their
//! hosts send such probes. A host that wants the address announces it afterwards.

use core::time::Duration;
use std::collections::VecDeque;
use std::net::Ipv4Addr;

use crate::arp::Packet;
use buildos_types::MacAddress;

use crate::time::Instant;

/// PROBE_NUM.
const PROBES: u32 = 3;
/// Replaces PROBE_MIN to PROBE_MAX, 1 to 2 s. Running hosts answer within two
/// milliseconds. The conflict with a sleeping host is detected while the address is in
/// use.
const PROBE_INTERVAL: Duration = Duration::from_millis(60);
/// Replaces ANNOUNCE_WAIT, 2 s: from the last probe to the first announcement.
const ANNOUNCE_WAIT: Duration = Duration::from_millis(80);
/// ANNOUNCE_NUM.
const ANNOUNCEMENTS: u32 = 2;
/// ANNOUNCE_INTERVAL.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
/// DEFEND_INTERVAL.
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `sent` probes sent; `next` is the time of the next step.
    Probing { sent: u32, next: Instant },
    /// No host answered the probes; the server has not granted the address yet.
    Probed,
    /// `sent` announcements sent; `next` is the time of the next one.
    Announcing { sent: u32, next: Instant },
    /// The address is in use; `defended` is the time of the last claim.
    Defending { defended: Option<Instant> },
}

/// Detects conflicts over one address on one link.
#[derive(Debug)]
pub struct Detector {
    address: Ipv4Addr,
    mac: MacAddress,
    granted: bool,
    phase: Phase,
    packets: VecDeque<Packet>,
}

impl Detector {
    /// Returns a detector that probes for `address` from the hardware address `mac`.
    pub fn new(now: Instant, mac: MacAddress, address: Ipv4Addr) -> Self {
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

    /// Returns a detector for an address already in use.
    pub fn in_use(mac: MacAddress, address: Ipv4Addr) -> Self {
        Self {
            address,
            mac,
            granted: true,
            phase: Phase::Defending { defended: None },
            packets: VecDeque::new(),
        }
    }

    /// Returns the address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Permits announcements: the server granted the address.
    pub fn grant(&mut self, now: Instant) {
        self.granted = true;
        if self.phase == Phase::Probed {
            self.announce(now, 0);
        }
    }

    /// Handles the passage of [`Detector::deadline`].
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
                self.phase = Phase::Probed;
                if self.granted {
                    self.announce(now, 0);
                }
            }
            Phase::Announcing { sent, next } if next <= now => self.announce(now, sent),
            Phase::Probing { .. }
            | Phase::Probed
            | Phase::Announcing { .. }
            | Phase::Defending { .. } => {}
        }
    }

    /// Returns the time by which to call [`Detector::timeout`].
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Probing { next, .. } | Phase::Announcing { next, .. } => Some(next),
            Phase::Probed | Phase::Defending { .. } => None,
        }
    }

    /// Handles an ARP packet received on the link. Returns the hardware address of the
    /// other host if the packet is a conflict.
    pub fn received(&mut self, now: Instant, packet: &Packet) -> Option<MacAddress> {
        if packet.sender != self.address || packet.sender_mac == self.mac {
            return None;
        }
        match self.phase {
            Phase::Probing { .. } | Phase::Probed | Phase::Announcing { .. } => {
                Some(packet.sender_mac)
            }
            Phase::Defending { defended } => {
                let is_second = defended.is_some_and(|at| now.saturating_sub(at) < DEFEND_INTERVAL);
                if is_second {
                    return Some(packet.sender_mac);
                }
                self.packets
                    .push_back(Packet::announcement(self.mac, self.address));
                let defended = Some(now);
                self.phase = Phase::Defending { defended };
                None
            }
        }
    }

    /// Returns the next packet to broadcast on the link.
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
            false => Phase::Defending { defended: None },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

    /// A detector with a clock in milliseconds.
    struct Link {
        detector: Detector,
        now: u64,
        sent: Vec<(u64, Packet)>,
    }

    impl Link {
        fn new() -> Self {
            let detector = Detector::new(Duration::ZERO, OWN, ADDRESS);
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

        fn claim(&mut self) -> Option<MacAddress> {
            let conflict = self
                .detector
                .received(self.now(), &Packet::announcement(OTHER, ADDRESS));
            self.drain();
            conflict
        }

        fn times(&self, packet: Packet) -> Vec<u64> {
            let same = self.sent.iter().filter(|(_, sent)| *sent == packet);
            same.map(|(at, _)| *at).collect()
        }
    }

    fn probe() -> Packet {
        Packet::probe(OWN, ADDRESS)
    }

    fn announcement() -> Packet {
        Packet::announcement(OWN, ADDRESS)
    }

    #[test]
    fn granted_address_is_probed_then_announced() {
        let mut link = Link::granted();
        link.run_until(60_000);
        assert_eq!(link.times(probe()), [0, 60, 120]);
        assert_eq!(link.times(announcement()), [200, 2200]);
        assert_eq!(link.detector.deadline(), None, "no further packets");
    }

    #[test]
    fn address_not_granted_is_not_announced() {
        let mut link = Link::new();
        link.run_until(5000);
        assert_eq!(link.times(announcement()), [0; 0]);
        link.grant();
        link.grant();
        link.run_until(60_000);
        assert_eq!(link.times(announcement()), [5000, 7000]);
    }

    #[test]
    fn claim_before_second_announcement_is_a_conflict() {
        for at in [0, 60, 199, 200, 2199] {
            let mut link = Link::granted();
            link.run_until(at);
            assert_eq!(link.claim(), Some(OTHER), "at {at} ms");
        }
        let mut link = Link::new();
        link.run_until(3000);
        assert_eq!(link.claim(), Some(OTHER), "not granted yet");
    }

    #[test]
    fn first_claim_after_announcements_is_answered_and_second_is_a_conflict() {
        let mut link = Link::granted();
        link.run_until(2200);
        assert_eq!(link.claim(), None);
        assert_eq!(link.times(announcement()), [200, 2200, 2200], "defended");
        link.run_until(12_200);
        assert_eq!(
            link.claim(),
            None,
            "after ten seconds a claim is the first again"
        );
        link.run_until(22_199);
        assert_eq!(link.claim(), Some(OTHER));
    }

    #[test]
    fn address_already_in_use_is_defended_from_the_start() {
        let mut detector = Detector::in_use(OWN, ADDRESS);
        assert_eq!((detector.poll(), detector.deadline()), (None, None));
        let claim = Packet::announcement(OTHER, ADDRESS);
        assert_eq!(detector.received(Duration::ZERO, &claim), None);
        assert_eq!(detector.poll(), Some(announcement()));
        assert_eq!(detector.received(Duration::ZERO, &claim), Some(OTHER));
    }

    #[test]
    fn packet_without_a_claim_changes_nothing() {
        for packet in [
            Packet::announcement(OWN, ADDRESS),
            Packet::announcement(OTHER, Ipv4Addr::new(192, 0, 2, 78)),
            Packet::probe(OTHER, ADDRESS),
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
    fn early_timeout_changes_nothing() {
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
