//! Compares the filters with the parsers of the packets, for mutated frames: by default 100,000
//! per target, see [`buildos_fuzz`].

use buildos_fuzz::{Generator, executions, mutate};

use super::tests::{Frame, MAC, reply, run};
use super::*;
use crate::arp::Packet;
use crate::{decode, udp_packet};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OTHER: MacAddress = MacAddress([2; 6]);

/// Returns what the kernel knows about a frame: of every type, with and without tags.
fn frame(random: &mut Generator) -> Frame {
    Frame {
        ethertype: *random.one_of(&[ARP, ARP, ARP, 0x0800, 0x86dd]),
        packet_type: *random.one_of(&[0, 1, 1, 2, 3, 4, 7]),
        vlan_tag: match random.below(4) {
            0 => Some(random.next() as u32 & 0xffff),
            1 => Some((random.next() as u32 & 7) << 13),
            _ => None,
        },
    }
}

/// Returns true if the frame is for this host, and of no VLAN.
fn is_ours(frame: Frame) -> bool {
    let tag = frame.vlan_tag.map(|tag| u16::try_from(tag).unwrap());
    frame.packet_type < 3 && !tag.is_some_and(is_of_other_vlan)
}

#[test]
fn filter_of_replies_passes_every_usable_reply_of_no_vlan() {
    let program = dhcp_replies(MAC);
    let mut random = Generator::new(1);
    let (mut usable, mut dropped) = (0u64, 0u64);
    for _ in 0..executions(100_000) {
        let mut packet = reply();
        // Ethernet, a cookie and a message type make it a DHCP message.
        packet[28 + 1..28 + 3].copy_from_slice(&[1, 6]);
        packet[28 + 236..28 + 244].copy_from_slice(&[99, 130, 83, 99, 53, 1, 2, 255]);
        let first = *random.one_of(&[0, 20, 28]);
        mutate(&mut packet, first, &mut random);
        let frame = frame(&mut random);
        let passes = run(&program, frame, &packet) != 0;
        assert!(!passes || is_ours(frame), "{frame:?}");
        dropped += u64::from(!passes);
        let datagram = udp_packet::parse(&packet, false);
        if datagram.is_ok_and(|datagram| decode(datagram.payload, MAC).is_ok()) {
            usable += 1;
            assert_eq!(passes, is_ours(frame), "{frame:?} {packet:x?}");
        }
    }
    assert!(
        usable > executions(100_000) / 50,
        "only {usable} usable replies"
    );
    assert!(dropped > executions(100_000) / 10, "only {dropped} dropped");
}

#[test]
fn filters_of_arp_pass_the_packets_of_their_addresses_only() {
    let addresses = [ADDRESS, GATEWAY];
    let claims = address_claims(&addresses, MAC);
    let answers = arp_between(GATEWAY, ADDRESS);
    let mut random = Generator::new(2);
    let (mut claimed, mut answered) = (0u64, 0u64);
    for _ in 0..executions(100_000) {
        let packet = Packet {
            sender_mac: *random.one_of(&[MAC, OTHER]),
            sender: *random.one_of(&addresses),
            target: *random.one_of(&addresses),
        };
        let mut bytes = packet.encode().to_vec();
        mutate(&mut bytes, 0, &mut random);
        let frame = frame(&mut random);
        let claim = run(&claims, frame, &bytes) != 0;
        let answer = run(&answers, frame, &bytes) != 0;
        assert!(!claim || (is_ours(frame) && frame.ethertype == ARP));
        let Ok(packet) = Packet::parse(&bytes) else {
            assert!(!claim || bytes.len() < crate::arp::LENGTH);
            continue;
        };
        let is_claim = addresses.contains(&packet.sender) && packet.sender_mac != MAC;
        let is_arp = is_ours(frame) && frame.ethertype == ARP;
        assert_eq!(claim, is_claim && is_arp, "{frame:?} {packet:?}");
        let is_answer = (packet.sender, packet.target) == (GATEWAY, ADDRESS);
        assert_eq!(answer, is_answer && is_ours(frame), "{frame:?} {packet:?}");
        claimed += u64::from(claim);
        answered += u64::from(answer);
    }
    assert!(claimed > 0 && answered > 0);
}
