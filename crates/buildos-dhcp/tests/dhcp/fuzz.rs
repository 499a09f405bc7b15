//! Fuzzes every parser and the state machine with mutated messages: by default 100,000 per
//! target, see [`buildos_fuzz`].

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::address_conflict::{Detector, Output, Report};
use buildos_dhcp::{Input, Lease, Options, State, arp, decode, udp_packet};
use buildos_fuzz::{Generator, mutate};
use buildos_types::{Escaped, MacAddress};
use ipnet::Ipv4Net;

use crate::host::{EPOCH, Host, MAC};
use crate::server_reply::{Reply, SECOND};

/// Returns messages of every kind with every option that the crate reads.
fn corpus() -> Vec<Vec<u8>> {
    let rich = |reply: Reply| {
        reply
            .with(58, 600u32.to_be_bytes())
            .with(59, 900u32.to_be_bytes())
            .with(6, [192, 0, 2, 53, 192, 0, 2, 54])
            .with(12, *b"rack7\0")
            .with(15, *b"example.org")
            .with(26, 1400u16.to_be_bytes())
            .with(28, [192, 0, 2, 255])
            .with(42, [192, 0, 2, 123])
            .with(81, *b"\x04\0\0\x05rack7\x07example\x03org\x00")
            .with(119, *b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04")
            .with(33, [10, 0, 0, 1, 192, 0, 2, 9])
    };
    let routes = [
        32, 10, 0, 0, 1, 0, 0, 0, 0, 24, 10, 1, 2, 192, 0, 2, 9, 0, 10, 0, 0, 1,
    ];
    let overload = |reply: Reply| {
        reply
            .with(52, [3])
            .header(108, b"\x0f\x03lan\xff")
            .header(44, b"\x0c\x01x\xff")
    };
    [
        Reply::offer(),
        Reply::ack(),
        Reply::nak().with(56, *b"wrong network"),
        rich(Reply::offer()),
        rich(Reply::ack()),
        rich(Reply::ack()).with(121, routes),
        rich(Reply::ack())
            .with(15, *b"a.example b.example")
            .repeated(54, [192, 0, 2, 1]),
        Reply::ack().with(121, [0, 10, 0, 0, 1, 32, 10, 0, 0, 1, 0, 0, 0, 0]),
        overload(rich(Reply::ack())),
        overload(Reply::offer_of(SECOND)),
        Reply::ack().lasting(u32::MAX).with(1, [255; 4]),
    ]
    .iter()
    .map(Reply::bytes)
    .collect()
}

fn executions() -> u64 {
    buildos_fuzz::executions(100_000)
}

#[test]
fn mutated_messages_make_valid_leases_or_errors() {
    let (corpus, mut random) = (corpus(), Generator::new(1));
    let mut leases = 0u64;
    for _ in 0..executions() {
        let mut bytes = corpus[random.below(corpus.len())].clone();
        mutate(&mut bytes, 240, &mut random);
        if let Ok(options) = Options::parse(&bytes) {
            let total: usize = options.iter().map(|(_, data)| data.len()).sum();
            assert!(total <= bytes.len());
        }
        let Ok(message) = decode(&bytes, MAC) else {
            continue;
        };
        if let Some(text) = message.text() {
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
        if let Ok(lease) = Lease::from_message(&message, EPOCH) {
            leases += 1;
            check_lease(&lease);
        }
    }
    assert!(
        leases > executions() / 20,
        "only {leases} usable leases: too many mutations"
    );
}

/// Checks the invariants of a lease.
fn check_lease(lease: &Lease) {
    assert!((1..=32).contains(&lease.prefix));
    assert!(lease.network().contains(&lease.address));
    assert!(!lease.address.is_loopback() && !lease.address.is_multicast());
    if let Some(term) = lease.term {
        assert!(!term.renew.is_zero() && term.renew < term.rebind && term.rebind < term.lease);
    }
    let names = lease.search.iter().chain(&lease.domain).map(String::as_str);
    let texts = lease
        .hostname
        .iter()
        .chain(&lease.fqdn)
        .map(Escaped::as_str);
    for name in names.clone() {
        assert!(name.len() <= 253 && !name.contains(' '), "{name:?}");
    }
    for text in names.chain(texts) {
        assert!(
            text.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{text:?}"
        );
    }
    let text = serde_json::to_string(lease).unwrap();
    assert_eq!(&serde_json::from_str::<Lease>(&text).unwrap(), lease);
}

#[test]
fn mutated_udp_packets_are_parsed_or_rejected() {
    let (corpus, mut random) = (corpus(), Generator::new(2));
    let mut passed = 0u64;
    for _ in 0..executions() {
        let payload = &corpus[random.below(corpus.len())];
        let mut packet = udp_packet::build(SECOND, Ipv4Addr::BROADCAST, payload).unwrap();
        packet[20..24].rotate_left(2);
        mutate(&mut packet, random.below(2) * 28, &mut random);
        if let Ok(datagram) = udp_packet::parse(&packet, random.below(2) == 0) {
            passed += 1;
            assert!(datagram.payload.len() + 28 <= packet.len());
        }
    }
    assert!(passed > 0);
}

#[test]
fn mutated_arp_packets_cause_conflicts_only_for_the_address() {
    let mut random = Generator::new(4);
    let address = Ipv4Addr::new(192, 0, 2, 77);
    let interface = Ipv4Net::new(address, 24).unwrap();
    let (mut now, mut conflicts, mut proxies) = (EPOCH, 0u64, 0u64);
    let mut detector = Detector::new(now, MAC, interface);
    for _ in 0..executions() {
        now += Duration::from_millis(random.next() % 3000);
        let watched = detector.watched();
        let sender = watched[random.below(watched.len())];
        let packet = match random.below(4) {
            0 => arp::Packet::probe(MacAddress([2; 6]), address),
            _ => arp::Packet::announcement(MacAddress([2; 6]), sender),
        };
        let mut bytes = packet.encode().to_vec();
        mutate(&mut bytes, 0, &mut random);
        match random.below(4) {
            0 => detector.grant(now),
            1 => detector.timeout(now),
            _ => {}
        }
        if let Ok(packet) = arp::Packet::parse(&bytes) {
            detector.received(now, &packet);
        }
        while let Some(output) = detector.poll() {
            match output {
                Output::Send(packet) => {
                    assert_eq!(packet.sender_mac, MAC);
                    assert!(interface.contains(&packet.target));
                }
                Output::Conflict(mac) => {
                    conflicts += 1;
                    assert_ne!(mac, MAC);
                    detector = Detector::new(now, MAC, interface);
                }
                Output::Report(Report::Contested(mac)) => assert_ne!(mac, MAC),
                Output::Report(Report::ProxyArp(mac)) => {
                    proxies += 1;
                    assert_ne!(mac, MAC);
                    detector = Detector::new(now, MAC, interface);
                }
            }
        }
    }
    assert!(conflicts > 0 && proxies > 0);
}

#[test]
fn mutated_inputs_keep_leases_valid_in_every_state() {
    let (corpus, mut random) = (corpus(), Generator::new(3));
    let saved = Host::in_state(State::Bound).lease().clone();
    let mut host = Host::new();
    let mut visited = std::collections::BTreeSet::new();
    for execution in 0..executions() {
        if execution % 1000 == 0 {
            host = Host::new();
        }
        host.sent.clear();
        host.events();
        visited.insert(host.state().as_str());
        match random.below(24) {
            0 => host.handle(Input::Start),
            1 => host.handle(Input::Resume(Box::new(saved.clone()))),
            2 if random.below(8) == 0 => host.handle(Input::Stop),
            3 if random.below(4) == 0 => host.handle(Input::Suspend),
            4 if random.below(8) == 0 => host.handle(Input::Release),
            5 => host.handle(Input::Renew),
            6..=9 => host.handle(Input::Select),
            10 if random.below(4) == 0 => {
                let address = host
                    .client
                    .lease()
                    .map_or(Ipv4Addr::LOCALHOST, |l| l.address);
                host.handle(Input::Conflict { address, mac: MAC });
            }
            11..=13 => {
                host.now = host.client.deadline().unwrap_or(host.now).max(host.now);
                host.handle(Input::Timeout);
            }
            14 => {
                host.now = host
                    .now
                    .saturating_add(Duration::from_secs(random.next() % 5000))
            }
            _ => {
                let mut bytes = corpus[random.below(corpus.len())].clone();
                bytes[4..8].copy_from_slice(&host.xid.to_be_bytes());
                if random.below(2) == 0 {
                    mutate(&mut bytes, 240, &mut random);
                }
                host.packet(&bytes);
            }
        }
        if let Some(lease) = host.client.lease() {
            check_lease(lease);
        }
    }
    assert!(
        executions() < 10_000 || visited.len() == State::ALL.len(),
        "{visited:?}"
    );
}
