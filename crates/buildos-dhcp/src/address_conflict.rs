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
//! | before the second announcement | a claim is a conflict, unless its sender does proxy ARP |
//! | later | answers claims with an announcement every 10 s, and keeps the address (section 2.4, c) |
//!
//! A claim is a packet from another hardware address with the address as sender
//! protocol address.
//!
//! # Proxy ARP
//!
//! A router with proxy ARP answers for addresses that no host has. After a
//! claim, the detector asks for the address of the network and for two other addresses of
//! the subnet, twice in 1.2 s. A claimant that answers for the first, or for both others,
//! is such a router and no conflict.
//!
//! # Limits
//!
//! A probe of another host is not a claim, unlike in the RFC. Switches that track their
//! hosts send such probes. A host that wants the address announces it afterwards.

use core::time::Duration;
use std::collections::VecDeque;
use std::net::Ipv4Addr;

use buildos_types::MacAddress;
use ipnet::Ipv4Net;

use crate::arp::Packet;
use crate::proxy_arp::Check;
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
/// Maximum number of routers with proxy ARP remembered.
const MAXIMUM_PROXIES: usize = 4;
/// Time without a claim after which the address is contested no longer.
const CONTEST_MEMORY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `sent` probes sent; `next` is the time of the next step.
    Probing { sent: u32, next: Instant },
    /// No host answered the probes; the server has not granted the address yet.
    Probed,
    /// `sent` announcements sent; `next` is the time of the next one.
    Announcing { sent: u32, next: Instant },
    /// The address is in use; `defended` is the time of the last defence.
    Defending { defended: Option<Instant> },
}

/// Another host claims an address that this host keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Contest {
    /// Hardware address in the first claim.
    mac: MacAddress,
    last_claim: Instant,
}

/// An output of the detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A packet to broadcast on the link.
    Send(Packet),
    /// The host with this hardware address uses the address: decline it.
    Conflict(MacAddress),
    /// A finding for operators.
    Report(Report),
}

/// A finding about another host. This host keeps the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The host with this hardware address claims the address, too. Emitted once until no
    /// host has claimed the address for a minute.
    Contested(MacAddress),
    /// The router with this hardware address does proxy ARP. Emitted once.
    ProxyArp(MacAddress),
}

/// Detects conflicts over one address on one link.
#[derive(Debug)]
pub struct Detector {
    interface: Ipv4Net,
    mac: MacAddress,
    granted: bool,
    /// Claims are never a conflict.
    keeps: bool,
    phase: Phase,
    contest: Option<Contest>,
    check: Option<Check>,
    /// Routers that do proxy ARP.
    proxies: Vec<MacAddress>,
    outputs: VecDeque<Output>,
}

impl Detector {
    /// Returns a detector that probes for the address of `interface` from the hardware
    /// address `mac`.
    pub fn new(now: Instant, mac: MacAddress, interface: Ipv4Net) -> Self {
        let phase = Phase::Probing { sent: 0, next: now };
        let mut detector = Self::in_phase(phase, mac, interface);
        detector.timeout(now);
        detector
    }

    /// Returns a detector for an address already in use.
    pub fn in_use(mac: MacAddress, interface: Ipv4Net) -> Self {
        let phase = Phase::Defending { defended: None };
        Self {
            granted: true,
            ..Self::in_phase(phase, mac, interface)
        }
    }

    fn in_phase(phase: Phase, mac: MacAddress, interface: Ipv4Net) -> Self {
        Self {
            interface,
            mac,
            granted: false,
            keeps: false,
            phase,
            contest: None,
            check: None,
            proxies: Vec::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Returns the address.
    pub fn address(&self) -> Ipv4Addr {
        self.interface.addr()
    }

    /// Returns the sender protocol addresses whose packets the detector evaluates now.
    pub fn watched(&self) -> Vec<Ipv4Addr> {
        let others = self.check.as_ref().map(Check::addresses);
        let others = others.unwrap_or_default().iter().copied();
        std::iter::once(self.address()).chain(others).collect()
    }

    /// Returns true while a claim leads to a DECLINE, unless [`Detector::keep`] was called.
    pub fn is_early(&self) -> bool {
        let is_defending = matches!(self.phase, Phase::Defending { .. });
        !is_defending || self.check.as_ref().is_some_and(Check::is_early)
    }

    /// Returns true after the probes, while no claim is examined.
    pub fn is_unanswered(&self) -> bool {
        !matches!(self.phase, Phase::Probing { .. }) && self.check.is_none()
    }

    /// Returns the hardware address of a router that does proxy ARP.
    pub fn proxy(&self) -> Option<MacAddress> {
        self.proxies.first().copied()
    }

    /// Returns the hardware address of the host that claims the address, too.
    pub fn contested_by(&self) -> Option<MacAddress> {
        self.contest.map(|contest| contest.mac)
    }

    /// Makes the host keep the address despite claims, also at the beginning: the client
    /// declines no further address.
    pub fn keep(&mut self) {
        self.keeps = true;
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
        let is_over = |contest: &mut Contest| contest.ends_at() <= now;
        self.contest.take_if(is_over);
        self.check_timeout(now);
        match self.phase {
            Phase::Probing { sent, next } if next <= now && sent < PROBES => {
                self.send(Packet::probe(self.mac, self.address()));
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
        let phase = match self.phase {
            Phase::Probing { next, .. } | Phase::Announcing { next, .. } => Some(next),
            Phase::Probed | Phase::Defending { .. } => None,
        };
        let contest = self.contest.map(Contest::ends_at);
        let check = self.check.as_ref().map(Check::deadline);
        [phase, contest, check].into_iter().flatten().min()
    }

    /// Handles an ARP packet received on the link.
    pub fn received(&mut self, now: Instant, packet: &Packet) {
        if packet.sender_mac == self.mac {
            return;
        }
        if packet.sender == self.address() {
            self.claimed(now, packet.sender_mac);
        } else if let Some(check) = &mut self.check {
            if check.answered(packet) {
                self.add_proxy(packet.sender_mac);
            }
        }
    }

    fn claimed(&mut self, now: Instant, mac: MacAddress) {
        if self.proxies.contains(&mac) {
            return;
        }
        self.defend(now);
        match (&mut self.contest, &mut self.check) {
            (Some(contest), _) => contest.last_claim = now,
            (None, Some(check)) => check.add(mac),
            (None, None) => {
                let mut check = Check::new(now, self.mac, self.interface, self.is_early());
                check.add(mac);
                self.check = Some(check);
                self.check_timeout(now);
            }
        }
    }

    /// Sends an announcement, at most one in [`DEFEND_INTERVAL`].
    fn defend(&mut self, now: Instant) {
        let Phase::Defending { defended } = self.phase else {
            return;
        };
        let is_recent = |at| now.saturating_sub(at) < DEFEND_INTERVAL;
        if !defended.is_some_and(is_recent) {
            self.send(Packet::announcement(self.mac, self.address()));
            let defended = Some(now);
            self.phase = Phase::Defending { defended };
        }
    }

    /// Sends the requests of the check that are due, or ends it.
    fn check_timeout(&mut self, now: Instant) {
        let sender = match self.phase {
            Phase::Probing { .. } | Phase::Probed => Ipv4Addr::UNSPECIFIED,
            Phase::Announcing { .. } | Phase::Defending { .. } => self.address(),
        };
        let Some(check) = &mut self.check else { return };
        if let Some(targets) = check.due(now) {
            for target in targets {
                let sender_mac = self.mac;
                self.outputs.push_back(Output::Send(Packet {
                    sender_mac,
                    sender,
                    target,
                }));
            }
        } else if let Some(mac) = check.verdict(now) {
            let is_early = check.is_early();
            self.check = None;
            match is_early && !self.keeps {
                true => self.outputs.push_back(Output::Conflict(mac)),
                false => self.contest(now, mac),
            }
        }
    }

    fn add_proxy(&mut self, mac: MacAddress) {
        self.check.take_if(|check| check.is_resolved());
        if self.proxies.is_empty() {
            let report = Report::ProxyArp(mac);
            self.outputs.push_back(Output::Report(report));
        }
        if self.proxies.len() < MAXIMUM_PROXIES {
            self.proxies.push(mac);
        }
    }

    /// Returns the next output, in order.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn send(&mut self, packet: Packet) {
        self.outputs.push_back(Output::Send(packet));
    }

    fn contest(&mut self, now: Instant, mac: MacAddress) {
        let last_claim = now;
        self.contest = Some(Contest { mac, last_claim });
        let report = Report::Contested(mac);
        self.outputs.push_back(Output::Report(report));
    }

    fn announce(&mut self, now: Instant, sent: u32) {
        self.send(Packet::announcement(self.mac, self.address()));
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

impl Contest {
    fn ends_at(self) -> Instant {
        self.last_claim.saturating_add(CONTEST_MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
    const THIRD: MacAddress = MacAddress([2, 0, 0, 0, 0, 3]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
    /// Duration of a check for proxy ARP, in milliseconds.
    const CHECKED: u64 = 1200;

    fn interface() -> Ipv4Net {
        Ipv4Net::new_assert(ADDRESS, 24)
    }

    /// A detector with a clock in milliseconds.
    struct Link {
        detector: Detector,
        now: u64,
        sent: Vec<(u64, Packet)>,
        conflicts: Vec<(u64, MacAddress)>,
        contests: Vec<(u64, MacAddress)>,
        proxies: Vec<(u64, MacAddress)>,
    }

    impl Link {
        fn new() -> Self {
            let detector = Detector::new(Duration::ZERO, OWN, interface());
            let mut link = Self {
                detector,
                now: 0,
                sent: Vec::new(),
                conflicts: Vec::new(),
                contests: Vec::new(),
                proxies: Vec::new(),
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
            while let Some(output) = self.detector.poll() {
                match output {
                    Output::Send(packet) => self.sent.push((self.now, packet)),
                    Output::Conflict(mac) => self.conflicts.push((self.now, mac)),
                    Output::Report(Report::Contested(mac)) => self.contests.push((self.now, mac)),
                    Output::Report(Report::ProxyArp(mac)) => self.proxies.push((self.now, mac)),
                }
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

        fn claim(&mut self) {
            self.claim_by(OTHER);
        }

        fn claim_by(&mut self, mac: MacAddress) {
            let claim = Packet::announcement(mac, ADDRESS);
            self.detector.received(self.now(), &claim);
            self.drain();
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
            link.claim();
            assert!(link.detector.is_early());
            link.run_until(60_000);
            assert_eq!(link.conflicts, [(at + CHECKED, OTHER)]);
            assert_eq!(link.contests, []);
        }
        let mut link = Link::new();
        link.run_until(3000);
        link.claim();
        link.run_until(60_000);
        assert_eq!(link.conflicts, [(3000 + CHECKED, OTHER)], "not granted yet");
    }

    #[test]
    fn claims_of_address_in_use_are_answered_every_ten_seconds_and_never_a_conflict() {
        let mut link = Link::granted();
        for at in (2200..62_200).step_by(500) {
            link.run_until(at);
            link.claim();
        }
        assert_eq!(link.conflicts, []);
        let defences = link.times(announcement()).split_off(2);
        assert_eq!(defences, [2200, 12_200, 22_200, 32_200, 42_200, 52_200]);
    }

    #[test]
    fn contest_is_reported_once_until_no_claim_for_a_minute() {
        let mut link = Link::granted();
        for (at, mac) in [(5000, OTHER), (5001, THIRD), (64_000, THIRD)] {
            link.run_until(at);
            link.claim_by(mac);
        }
        link.run_until(123_999);
        assert_eq!(link.detector.contested_by(), Some(OTHER));
        link.run_until(124_000);
        assert_eq!(link.detector.contested_by(), None);
        assert_eq!(link.detector.deadline(), None);
        link.claim_by(THIRD);
        link.run_until(130_000);
        assert_eq!(
            link.contests,
            [(5000 + CHECKED, OTHER), (124_000 + CHECKED, THIRD)]
        );
    }

    #[test]
    fn kept_address_is_probed_and_announced_despite_claims() {
        let mut link = Link::new();
        link.detector.keep();
        link.claim();
        link.run_until(1000);
        link.claim();
        assert_eq!(link.times(announcement()), [0; 0], "not granted yet");
        link.grant();
        link.claim();
        link.run_until(60_000);
        assert_eq!(link.times(probe()), [0, 60, 120]);
        assert_eq!(link.times(announcement()), [1000, 3000]);
        assert_eq!(link.conflicts, []);
        assert_eq!(link.contests, [(CHECKED, OTHER)]);
    }

    #[test]
    fn address_already_in_use_is_defended_from_the_start() {
        let mut detector = Detector::in_use(OWN, interface());
        assert_eq!((detector.poll(), detector.deadline()), (None, None));
        let claim = Packet::announcement(OTHER, ADDRESS);
        detector.received(Duration::ZERO, &claim);
        detector.received(Duration::ZERO, &claim);
        let outputs: Vec<_> = std::iter::from_fn(|| detector.poll()).collect();
        let defence = Output::Send(announcement());
        assert_eq!(outputs[0], defence);
        assert_eq!(
            outputs.iter().filter(|output| **output == defence).count(),
            1
        );
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
                let phase = link.detector.phase;
                link.detector.received(link.now(), &packet);
                assert_eq!((link.detector.phase, link.detector.poll()), (phase, None));
            }
        }
    }

    #[test]
    fn early_timeout_changes_nothing() {
        for at in [0, 100, 1000, 5000] {
            let mut link = Link::granted();
            link.run_until(at);
            let phase = link.detector.phase;
            link.detector.timeout(link.now());
            assert_eq!((link.detector.phase, link.detector.poll()), (phase, None));
        }
    }

    /// Answers each request for one of the first `count` targets of a check.
    fn answer(link: &mut Link, mac: MacAddress, count: usize, skip: usize) {
        let targets = link.detector.watched().split_off(1);
        let answered = targets.into_iter().skip(skip).take(count);
        for target in answered {
            let answer = Packet {
                sender_mac: mac,
                sender: target,
                target: ADDRESS,
            };
            link.detector.received(link.now(), &answer);
            link.drain();
        }
    }

    #[test]
    fn claimant_that_answers_for_network_or_two_others_is_a_proxy_and_no_conflict() {
        for at in [0, 60, 200, 2199, 5000] {
            for (skip, count) in [(0, 1), (1, 2)] {
                let mut link = Link::granted();
                link.run_until(at);
                link.claim();
                link.run_until(at + 600);
                answer(&mut link, OTHER, count, skip);
                assert_eq!(link.proxies, [(at + 600, OTHER)]);
                link.claim();
                link.run_until(60_000);
                link.claim();
                assert_eq!(
                    (&link.conflicts[..], &link.contests[..]),
                    (&[][..], &[][..])
                );
                assert_eq!(link.detector.proxy(), Some(OTHER));
                assert_eq!(link.detector.watched(), [ADDRESS]);
                assert_eq!(link.detector.deadline(), None);
            }
        }
    }

    #[test]
    fn claimant_beside_a_proxy_is_a_conflict() {
        let mut link = Link::granted();
        link.claim();
        link.claim_by(THIRD);
        answer(&mut link, OTHER, 3, 0);
        link.run_until(5000);
        assert_eq!(link.conflicts, [(CHECKED, THIRD)]);
    }

    #[test]
    fn claimant_that_answers_for_one_other_address_is_a_conflict() {
        let mut link = Link::granted();
        link.claim();
        answer(&mut link, OTHER, 1, 1);
        answer(&mut link, THIRD, 3, 0);
        link.run_until(5000);
        assert_eq!(link.conflicts, [(CHECKED, OTHER)]);
        assert_eq!(link.proxies, []);
    }

    #[test]
    fn check_asks_for_three_addresses_twice_from_own_address_once_announced() {
        for (at, sender) in [(0, Ipv4Addr::UNSPECIFIED), (300, ADDRESS), (5000, ADDRESS)] {
            let mut link = Link::granted();
            link.run_until(at);
            link.claim();
            let targets = link.detector.watched().split_off(1);
            link.run_until(at + 1199);
            for target in targets {
                let request = Packet {
                    sender_mac: OWN,
                    sender,
                    target,
                };
                let times = link.times(request);
                assert_eq!(times[0], at);
                assert_eq!(times.len() + usize::from(at == 0), 2);
            }
        }
    }
}
