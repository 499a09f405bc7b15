//! Checks by ARP whether a gateway answers (RFC 4436, RFC 5227).
//!
//! | situation | requests |
//! |---|---|
//! | a check begins | one to the known hardware address, else a broadcast |
//! | unanswered | two broadcasts, 1 s apart; then the gateway is silent |
//! | answered, or silent | the next check begins after 30 s, with 10 % of jitter |
//! | never answered | the next check begins after 300 s, with 10 % of jitter; from 0.0.0.0 after 30 s |
//!
//! A gateway that never answered is [`Reachability::Unknown`], not unreachable: some routers
//! answer no ARP, and the host works as without checks.
//!
//! The answer of the hardware address that the gateway had before confirms that the host is
//! still on the same network (RFC 4436, section 2.2). A different network often has a gateway
//! with the same IP address.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dbus_api::network1::Reachability;
use buildos_dhcp::{Instant, arp};
use buildos_types::MacAddress;

/// Time between two checks. A gateway that fails is noticed after 32 s at most.
const INTERVAL: Duration = Duration::from_secs(30);
/// Time between two checks of a gateway that never answered.
const INTERVAL_UNKNOWN: Duration = Duration::from_secs(300);
/// Part of the time between two checks by which it varies. Hosts that booted together do not ask together.
const JITTER_FRACTION: u32 = 10;
/// Time between two requests of a check.
const RETRY: Duration = Duration::from_secs(1);
/// Unanswered requests after which the gateway is silent.
const REQUESTS: u32 = 3;

/// A request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The packet.
    pub packet: arp::Packet,
    /// Destination; [`None`] for a broadcast.
    pub to: Option<MacAddress>,
}

/// A change of the reachability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The gateway answers for the first time, or again.
    Answers,
    /// The gateway had answered, and does not any more.
    Silent,
}

/// Checks one gateway from one NIC.
#[derive(Debug)]
pub struct Monitor {
    /// The packet of all requests.
    packet: arp::Packet,
    /// Hardware address before the first answer of this monitor.
    former: Option<MacAddress>,
    /// Hardware address of the last answer, else the former one.
    mac: Option<MacAddress>,
    reachability: Reachability,
    confirmed: bool,
    /// Unanswered requests of the current check.
    sent: u32,
    next: Instant,
    requests: VecDeque<Request>,
    random: u64,
}

impl Monitor {
    /// Returns a monitor of `gateway` that begins the first check at `start`. `address` is
    /// the host's own, or 0.0.0.0 while it has none.
    #[must_use]
    pub fn new(
        start: Instant,
        mac: MacAddress,
        address: Ipv4Addr,
        gateway: Ipv4Addr,
        known: Option<MacAddress>,
        seed: u64,
    ) -> Self {
        Self {
            packet: arp::Packet {
                sender_mac: mac,
                sender: address,
                target: gateway,
            },
            former: known,
            mac: known,
            reachability: Reachability::Unknown,
            confirmed: false,
            sent: 0,
            next: start,
            requests: VecDeque::new(),
            random: seed,
        }
    }

    /// Returns true if the monitor checks this gateway from this address.
    #[must_use]
    pub fn checks(&self, address: Ipv4Addr, gateway: Ipv4Addr) -> bool {
        (self.packet.sender, self.packet.target) == (address, gateway)
    }

    /// Returns the gateway.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.packet.target
    }

    /// Returns the host's address in the requests, which answers are sent to.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.packet.sender
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn reachability(&self) -> Reachability {
        self.reachability
    }

    /// Returns the hardware address of the gateway, as far as it is known.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddress> {
        self.mac
    }

    /// Returns true if the gateway answered with the hardware address that it had before:
    /// the host is on the same network as before.
    #[must_use]
    pub fn confirms_network(&self) -> bool {
        self.confirmed
    }

    /// Sends what is due.
    pub fn timeout(&mut self, now: Instant) -> Option<Change> {
        if now < self.next {
            return None;
        }
        if self.sent < REQUESTS {
            let to = self.mac.filter(|_| self.sent == 0);
            let packet = self.packet;
            self.requests.push_back(Request { packet, to });
            self.sent += 1;
            self.next = now.saturating_add(RETRY);
            return None;
        }
        self.sent = 0;
        self.next = now.saturating_add(self.interval());
        let was = self.reachability;
        if was == Reachability::Reachable {
            self.reachability = Reachability::Unreachable;
            return Some(Change::Silent);
        }
        None
    }

    /// Returns the time by which to call [`Monitor::timeout`].
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.next
    }

    /// Handles an ARP packet received on the link.
    pub fn received(&mut self, now: Instant, packet: &arp::Packet) -> Option<Change> {
        if packet.sender != self.gateway() || packet.sender_mac == self.packet.sender_mac {
            return None;
        }
        self.mac = Some(packet.sender_mac);
        self.confirmed |= self.former == self.mac;
        let was = std::mem::replace(&mut self.reachability, Reachability::Reachable);
        if self.sent > 0 || was == Reachability::Unknown {
            self.sent = 0;
            self.next = now.saturating_add(self.interval());
        }
        (was != Reachability::Reachable).then_some(Change::Answers)
    }

    /// Removes and returns the oldest request.
    pub fn poll(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// Returns the time to the next check, with jitter from a linear congruential generator.
    fn interval(&mut self) -> Duration {
        const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
        self.random = self.random.wrapping_mul(MULTIPLIER).wrapping_add(1);
        let interval = match self.reachability {
            Reachability::Unknown if !self.address().is_unspecified() => INTERVAL_UNKNOWN,
            Reachability::Unknown | Reachability::Reachable | Reachability::Unreachable => INTERVAL,
        };
        let span = interval / JITTER_FRACTION;
        let part = u32::from_be_bytes(self.random.to_be_bytes()[..4].try_into().unwrap_or([0; 4]));
        let jitter = span.as_millis().saturating_mul(2 * u128::from(part)) >> u32::BITS;
        let jitter = Duration::from_millis(u64::try_from(jitter).unwrap_or(0));
        (interval - span).saturating_add(jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const ROUTER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xfe]);
    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xfd]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn monitor(known: Option<MacAddress>) -> Monitor {
        Monitor::new(Duration::ZERO, OWN, ADDRESS, GATEWAY, known, 7)
    }

    fn answer(sender_mac: MacAddress) -> arp::Packet {
        arp::Packet {
            sender_mac,
            sender: GATEWAY,
            target: ADDRESS,
        }
    }

    /// Runs all timers up to `end`, and returns the changes and the destinations of requests.
    fn run(
        monitor: &mut Monitor,
        end: Duration,
        router: Option<MacAddress>,
    ) -> (Vec<Change>, Vec<Option<MacAddress>>) {
        let (mut changes, mut sent) = (Vec::new(), Vec::new());
        while monitor.deadline() <= end {
            let now = monitor.deadline();
            changes.extend(monitor.timeout(now));
            while let Some(request) = monitor.poll() {
                assert_eq!(request.packet.target, GATEWAY);
                sent.push(request.to);
                let answer = router.map(answer);
                changes.extend(answer.and_then(|packet| monitor.received(now, &packet)));
            }
        }
        (changes, sent)
    }

    #[test]
    fn gateway_that_never_answers_stays_unknown() {
        let mut monitor = monitor(None);
        let (changes, sent) = run(&mut monitor, Duration::from_secs(3600), None);
        assert_eq!(changes, []);
        assert_eq!(monitor.reachability(), Reachability::Unknown);
        assert!(sent.len() <= 3 * 3600 / 270 + 3, "{}", sent.len());
    }

    #[test]
    fn gateway_is_asked_about_every_thirty_seconds_by_unicast() {
        let mut monitor = monitor(None);
        let (changes, sent) = run(&mut monitor, Duration::from_secs(300), Some(ROUTER));
        assert_eq!(changes, [Change::Answers]);
        assert_eq!(sent[0], None);
        assert!(sent[1..].iter().all(|to| *to == Some(ROUTER)), "{sent:?}");
        assert!((9..=12).contains(&sent.len()), "{sent:?}");
    }

    #[test]
    fn gateway_silent_for_three_requests_is_unreachable_until_it_answers() {
        let mut monitor = monitor(None);
        run(&mut monitor, Duration::from_secs(60), Some(ROUTER));
        let (changes, sent) = run(&mut monitor, Duration::from_secs(97), None);
        assert_eq!(changes, [Change::Silent]);
        assert_eq!(sent[..3], [Some(ROUTER), None, None]);
        assert_eq!(monitor.reachability(), Reachability::Unreachable);
        let (changes, _) = run(&mut monitor, Duration::from_secs(140), Some(ROUTER));
        assert_eq!(changes, [Change::Answers]);
    }

    #[test]
    fn network_is_confirmed_by_known_hardware_address_only() {
        for (known, router, confirmed) in [
            (Some(ROUTER), ROUTER, true),
            (Some(ROUTER), OTHER, false),
            (None, ROUTER, false),
        ] {
            let mut monitor = monitor(known);
            run(&mut monitor, Duration::from_secs(100), Some(router));
            assert_eq!(monitor.confirms_network(), confirmed, "{known:?} {router}");
            assert_eq!(monitor.reachability(), Reachability::Reachable);
        }
    }
}
