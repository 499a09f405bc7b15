//! Builds the socket filters of the packet sockets and of the UDP socket.
//!
//! They are classic BPF programs (linux/filter.h), mostly for AF_PACKET sockets of type
//! SOCK_DGRAM, whose packets begin after the Ethernet header. The kernel then wakes the
//! process for relevant packets only. While a rack boots, most DHCP answers and ARP
//! packets are for other machines.
//!
//! A NIC on a trunk port receives frames of other VLANs. For an ordinary socket, the kernel
//! marks them PACKET_OTHERHOST and removes the tag; a [tap](address_claims) sees the tag.
//! A tag with VLAN 0 holds only a priority (IEEE 802.1Q): the frame is for this host.
//!
//! # Limits
//!
//! A filter checks a few fields. [`udp_packet::parse`](crate::udp_packet::parse),
//! [`decode`](crate::decode) and [`arp::Packet::parse`](crate::arp::Packet::parse)
//! validate the packets that it passes.

use buildos_types::MacAddress;
use std::net::Ipv4Addr;

/// An instruction with the layout of `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Opcode.
    pub code: u16,
    /// Instructions to skip if the condition of a jump is true.
    pub jt: u8,
    /// Instructions to skip if it is false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

// linux/bpf_common.h: class | size | mode, and class | operation | source.
const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const LOAD_BYTE_AT_X: u16 = 0x50; // BPF_LD | BPF_B | BPF_IND
const LOAD_HALF_AT_X: u16 = 0x48; // BPF_LD | BPF_H | BPF_IND
const LOAD_WORD_AT_X: u16 = 0x40; // BPF_LD | BPF_W | BPF_IND
const X_IS_HEADER_LENGTH: u16 = 0xb1; // BPF_LDX | BPF_B | BPF_MSH
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_NOT_BELOW: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// linux/filter.h: "offsets" of ancillary data, for LOAD_WORD.
const ANCILLARY: u32 = 0xffff_f000; // SKF_AD_OFF
/// Offset of the Ethernet header (SKF_LL_OFF), which begins with the destination.
const LINK_LAYER: u32 = 0xffe0_0000;
const ETHERTYPE: u32 = ANCILLARY; // SKF_AD_PROTOCOL
const PACKET_TYPE: u32 = ANCILLARY + 4; // SKF_AD_PKTTYPE
const VLAN_TAG: u32 = ANCILLARY + 44; // SKF_AD_VLAN_TAG
const HAS_VLAN_TAG: u32 = ANCILLARY + 48; // SKF_AD_VLAN_TAG_PRESENT

/// PACKET_OTHERHOST (linux/if_packet.h). The types below it are for this host.
const OTHER_HOST: u32 = 3;
/// The VLAN in a tag; the other bits are the priority.
const VLAN: u32 = 0x0fff;
const ARP: u32 = 0x0806;

/// Offsets in the IPv4 header.
const PROTOCOL: u32 = 9;
const FRAGMENT: u32 = 6;
/// More-fragments flag and fragment offset.
const FRAGMENT_BITS: u32 = 0x3fff;
const UDP: u32 = 17;
/// Offsets from the UDP header.
const DESTINATION_PORT: u32 = 2;
const UDP_LENGTH: u32 = 4;
const OP: u32 = 8;
const CHADDR: u32 = 8 + 28;
const CLIENT_PORT: u32 = 68;
/// UDP header, BOOTP header and cookie.
const SHORTEST: u32 = 8 + 240;
const BOOTREPLY: u32 = 2;

/// Offsets in an ARP packet, with the values at the first two.
const ARP_TYPES: u32 = 0;
const ETHERNET_AND_IPV4: u32 = 0x0001_0800;
const ARP_LENGTHS: u32 = 4;
const MAC_AND_IPV4: u32 = 0x0604;
const SENDER_MAC: u32 = 8;
const SENDER: u32 = 14;
const TARGET: u32 = 24;

/// Returns the filter for unfragmented UDP packets to port 68 with a BOOTP reply to
/// this hardware address.
pub fn dhcp_replies(mac: MacAddress) -> Vec<Instruction> {
    let (upper, lower) = halves(mac);
    let mut program = Program::for_this_host();
    program.load(LOAD_BYTE, PROTOCOL);
    program.require(JUMP_EQUAL, UDP);
    program.load(LOAD_HALF, FRAGMENT);
    program.forbid(JUMP_ANY_BIT, FRAGMENT_BITS);
    program.load(X_IS_HEADER_LENGTH, 0);
    program.load(LOAD_HALF_AT_X, DESTINATION_PORT);
    program.require(JUMP_EQUAL, CLIENT_PORT);
    program.load(LOAD_HALF_AT_X, UDP_LENGTH);
    program.require(JUMP_NOT_BELOW, SHORTEST);
    program.load(LOAD_BYTE_AT_X, OP);
    program.require(JUMP_EQUAL, BOOTREPLY);
    program.load(LOAD_WORD_AT_X, CHADDR);
    program.require(JUMP_EQUAL, upper);
    program.load(LOAD_HALF_AT_X, CHADDR + 4);
    program.require(JUMP_EQUAL, lower);
    program.finish()
}

/// Returns the filter of a UDP socket for BOOTP replies to this hardware address. Packets
/// begin at the UDP header.
pub fn dhcp_datagrams(mac: MacAddress) -> Vec<Instruction> {
    let (upper, lower) = halves(mac);
    let mut program = Program::default();
    program.load(LOAD_HALF, UDP_LENGTH);
    program.require(JUMP_NOT_BELOW, SHORTEST);
    program.load(LOAD_BYTE, OP);
    program.require(JUMP_EQUAL, BOOTREPLY);
    program.load(LOAD_WORD, CHADDR);
    program.require(JUMP_EQUAL, upper);
    program.load(LOAD_HALF, CHADDR + 4);
    program.require(JUMP_EQUAL, lower);
    program.finish()
}

/// Returns the filter for ARP packets in which another hardware address claims one of
/// `addresses` (RFC 5227, section 2.4).
///
/// It also serves for a tap, a socket that receives the frames of all protocols.
pub fn address_claims(addresses: &[Ipv4Addr], mac: MacAddress) -> Vec<Instruction> {
    let (upper, lower) = halves(mac);
    let mut program = Program::for_this_host();
    program.load(LOAD_WORD, ETHERTYPE);
    program.require(JUMP_EQUAL, ARP);
    program.load(LOAD_WORD, ARP_TYPES);
    program.require(JUMP_EQUAL, ETHERNET_AND_IPV4);
    program.load(LOAD_HALF, ARP_LENGTHS);
    program.require(JUMP_EQUAL, MAC_AND_IPV4);
    program.load(LOAD_WORD, SENDER);
    program.require_one_of(addresses.iter().copied().map(u32::from).collect());
    program.load(LOAD_WORD, SENDER_MAC);
    // Equal upper bytes: the lower ones decide.
    program.skip_unless(JUMP_EQUAL, upper, 2);
    program.load(LOAD_HALF, SENDER_MAC + 4);
    program.forbid(JUMP_EQUAL, lower);
    program.finish()
}

/// Returns the filter for ARP packets from `sender` to `target`, such as answers to requests
/// of `target`. The same addresses can be in use on another VLAN.
pub fn arp_between(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<Instruction> {
    let mut program = Program::for_this_host();
    program.load(LOAD_WORD, ARP_TYPES);
    program.require(JUMP_EQUAL, ETHERNET_AND_IPV4);
    program.load(LOAD_HALF, ARP_LENGTHS);
    program.require(JUMP_EQUAL, MAC_AND_IPV4);
    program.load(LOAD_WORD, SENDER);
    program.require(JUMP_EQUAL, u32::from(sender));
    program.load(LOAD_WORD, TARGET);
    program.require(JUMP_EQUAL, u32::from(target));
    program.finish()
}

/// Returns the filter for frames to this multicast address. Switches do not forward those to
/// 01:80:c2:00:00:0x, so the sender is at the other end of the cable.
pub fn multicast(group: MacAddress) -> Vec<Instruction> {
    let (upper, lower) = halves(group);
    let mut program = Program::for_this_host();
    program.load(LOAD_WORD, LINK_LAYER);
    program.require(JUMP_EQUAL, upper);
    program.load(LOAD_HALF, LINK_LAYER + 4);
    program.require(JUMP_EQUAL, lower);
    program.finish()
}

/// Returns true if a frame with this tag (IEEE 802.1Q) is for another VLAN, so that the filters
/// drop it.
pub fn is_of_other_vlan(tag: u16) -> bool {
    u32::from(tag) & VLAN != 0
}

/// Returns the first four bytes and the last two.
fn halves(mac: MacAddress) -> (u32, u32) {
    let [a, b, c, d, e, f] = mac.0;
    let upper = u32::from_be_bytes([a, b, c, d]);
    (upper, u16::from_be_bytes([e, f]).into())
}

/// The destination of a jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Skips this many instructions.
    Skip(u8),
    /// Drops the packet.
    Drop,
}

/// A list of loads and tests. The program passes a packet that no test drops.
#[derive(Debug, Default)]
struct Program(Vec<(u16, u32, Target, Target)>);

impl Program {
    /// Returns a program that passes the frames for this host, without the tag of a VLAN.
    fn for_this_host() -> Self {
        let mut program = Self::default();
        program.load(LOAD_WORD, PACKET_TYPE);
        program.forbid(JUMP_NOT_BELOW, OTHER_HOST);
        program.load(LOAD_WORD, HAS_VLAN_TAG);
        program.skip_unless(JUMP_EQUAL, 1, 2);
        program.load(LOAD_WORD, VLAN_TAG);
        program.forbid(JUMP_ANY_BIT, VLAN);
        program
    }

    fn load(&mut self, code: u16, k: u32) {
        self.0.push((code, k, Target::Skip(0), Target::Skip(0)));
    }

    fn require(&mut self, code: u16, k: u32) {
        self.0.push((code, k, Target::Skip(0), Target::Drop));
    }

    fn forbid(&mut self, code: u16, k: u32) {
        self.0.push((code, k, Target::Drop, Target::Skip(0)));
    }

    fn skip_unless(&mut self, code: u16, k: u32, skipped: u8) {
        self.0
            .push((code, k, Target::Skip(0), Target::Skip(skipped)));
    }

    /// Requires that the loaded value is one of `values`.
    fn require_one_of(&mut self, values: Vec<u32>) {
        let count = values.len();
        for (index, value) in values.into_iter().enumerate() {
            // The lists have at most four values.
            let rest = u8::try_from(count - index - 1).unwrap_or(u8::MAX);
            let no = if rest == 0 {
                Target::Drop
            } else {
                Target::Skip(0)
            };
            self.0.push((JUMP_EQUAL, value, Target::Skip(rest), no));
        }
    }

    fn finish(self) -> Vec<Instruction> {
        let last = self.0.len() + 1;
        let mut program: Vec<Instruction> = Vec::with_capacity(last + 1);
        for (index, (code, k, yes, no)) in self.0.into_iter().enumerate() {
            // The programs have a few dozen instructions: a u8 can skip them.
            let distance = |target| match target {
                Target::Skip(count) => count,
                Target::Drop => u8::try_from(last - index - 1).unwrap_or(u8::MAX),
            };
            let (jt, jf) = (distance(yes), distance(no));
            program.push(Instruction { code, jt, jf, k });
        }
        for verdict in [u32::MAX, 0] {
            program.push(Instruction {
                code: RETURN,
                jt: 0,
                jf: 0,
                k: verdict,
            });
        }
        program
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arp::Packet;
    use crate::udp_packet;

    pub(super) const MAC: MacAddress = MacAddress([0x52, 0x54, 0x00, 0xff, 0x34, 0x56]);

    /// What the kernel knows about a frame besides its bytes.
    #[derive(Debug, Clone, Copy)]
    pub(super) struct Frame {
        pub(super) ethertype: u32,
        pub(super) packet_type: u32,
        pub(super) vlan_tag: Option<u32>,
    }

    /// A broadcast without a tag.
    const ARP_FRAME: Frame = Frame {
        ethertype: ARP,
        packet_type: 1,
        vlan_tag: None,
    };
    const IP_FRAME: Frame = Frame {
        ethertype: 0x0800,
        ..ARP_FRAME
    };

    /// Runs the program like the kernel: a load outside the packet drops the packet.
    pub(super) fn run(program: &[Instruction], frame: Frame, packet: &[u8]) -> u32 {
        let load = |offset: u32, size: usize| {
            let offset = usize::try_from(offset).unwrap();
            let bytes = packet.get(offset..offset + size)?;
            Some(
                bytes
                    .iter()
                    .fold(0, |value, byte| (value << 8) | u32::from(*byte)),
            )
        };
        let (mut a, mut x, mut pc) = (0u32, 0u32, 0usize);
        loop {
            let Instruction { code, jt, jf, k } = program[pc];
            pc += 1;
            let value = match code {
                LOAD_WORD if k == ETHERTYPE => Some(frame.ethertype),
                LOAD_WORD if k == PACKET_TYPE => Some(frame.packet_type),
                LOAD_WORD if k == VLAN_TAG => Some(frame.vlan_tag.unwrap_or_default()),
                LOAD_WORD if k == HAS_VLAN_TAG => Some(frame.vlan_tag.is_some().into()),
                LOAD_BYTE => load(k, 1),
                LOAD_HALF => load(k, 2),
                LOAD_WORD => load(k, 4),
                LOAD_BYTE_AT_X => load(x + k, 1),
                LOAD_HALF_AT_X => load(x + k, 2),
                LOAD_WORD_AT_X => load(x + k, 4),
                X_IS_HEADER_LENGTH => {
                    let Some(byte) = load(k, 1) else { return 0 };
                    x = 4 * (byte & 0x0f);
                    continue;
                }
                RETURN => return k,
                JUMP_EQUAL | JUMP_NOT_BELOW | JUMP_ANY_BIT => {
                    let holds = match code {
                        JUMP_EQUAL => a == k,
                        JUMP_NOT_BELOW => a >= k,
                        _ => a & k != 0,
                    };
                    pc += usize::from(if holds { jt } else { jf });
                    continue;
                }
                _ => panic!("opcode {code:#x}"),
            };
            let Some(value) = value else { return 0 };
            a = value;
        }
    }

    fn passes(packet: &[u8]) -> bool {
        run(&dhcp_replies(MAC), IP_FRAME, packet) != 0
    }

    pub(super) fn reply() -> Vec<u8> {
        let mut payload = vec![0; 300];
        payload[0] = 2;
        payload[28..34].copy_from_slice(&MAC.0);
        let mut packet =
            udp_packet::build(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::BROADCAST, &payload).unwrap();
        packet[20..24].rotate_left(2);
        packet
    }

    #[test]
    fn dhcp_filter_passes_whole_replies_to_this_host() {
        assert_eq!(run(&dhcp_replies(MAC), IP_FRAME, &reply()), u32::MAX);
        let mut with_ip_options = reply();
        with_ip_options.splice(20..20, [1; 40]);
        with_ip_options[0] = 0x4f;
        assert!(passes(&with_ip_options));
    }

    #[test]
    fn dhcp_filter_drops_other_packets() {
        type Change = fn(&mut Vec<u8>);
        let cases: [(&str, Change); 14] = [
            ("TCP", |p| p[9] = 6),
            ("more fragments", |p| p[6] |= 0x20),
            ("later fragment", |p| p[7] = 1),
            ("far fragment", |p| p[6] |= 0x10),
            ("another port", |p| p[23] = 67),
            ("another port's upper byte", |p| p[22] = 1),
            ("UDP too short", |p| p[24..26].copy_from_slice(&[0, 247])),
            ("a request", |p| p[28] = 1),
            ("another host, first byte", |p| p[56] ^= 1),
            ("another host, fourth byte", |p| p[59] ^= 1),
            ("another host, last byte", |p| p[61] ^= 1),
            ("cut inside the address", |p| p.truncate(61)),
            ("cut inside the UDP header", |p| p.truncate(22)),
            ("nothing", Vec::clear),
        ];
        for (name, change) in cases {
            let mut packet = reply();
            change(&mut packet);
            assert!(!passes(&packet), "{name}");
        }
        let mut shortest = reply();
        shortest[24..26].copy_from_slice(&[0, 248]);
        assert!(passes(&shortest));
    }

    #[test]
    fn udp_filter_passes_only_replies_to_this_host() {
        let passes = |packet: &[u8]| run(&dhcp_datagrams(MAC), IP_FRAME, packet) != 0;
        let datagram = reply().split_off(20);
        assert!(passes(&datagram));
        type Change = fn(&mut Vec<u8>);
        let cases: [(&str, Change); 6] = [
            ("UDP too short", |p| p[4..6].copy_from_slice(&[0, 247])),
            ("a request", |p| p[8] = 1),
            ("another host, first byte", |p| p[36] ^= 1),
            ("another host, last byte", |p| p[41] ^= 1),
            ("cut inside the address", |p| p.truncate(41)),
            ("nothing", Vec::clear),
        ];
        for (name, change) in cases {
            let mut datagram = datagram.clone();
            change(&mut datagram);
            assert!(!passes(&datagram), "{name}");
        }
    }

    #[test]
    fn arp_filter_passes_only_claims_of_other_hosts() {
        const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
        let program = address_claims(&[ADDRESS], MAC);
        let passes = |packet: &[u8]| run(&program, ARP_FRAME, packet) != 0;
        for byte in 0..MAC.0.len() {
            let mut other = MAC;
            other.0[byte] ^= 1;
            assert!(passes(&Packet::announcement(other, ADDRESS).encode()));
            assert!(!passes(&Packet::probe(other, ADDRESS).encode()));
        }
        assert!(!passes(&Packet::announcement(MAC, ADDRESS).encode()));
        let other = MacAddress([2; 6]);
        let elsewhere = Ipv4Addr::new(192, 0, 2, 78);
        assert!(!passes(&Packet::announcement(other, elsewhere).encode()));
        let claim = Packet::announcement(other, ADDRESS).encode();
        for byte in 0..6 {
            let mut packet = claim;
            packet[byte] ^= 1;
            assert!(!passes(&packet), "byte {byte}");
        }
        assert!(!passes(&claim[..13]), "cut inside the addresses");
    }

    #[test]
    fn arp_filter_passes_claims_of_each_address() {
        let addresses = [1, 2, 3, 4].map(|last| Ipv4Addr::new(192, 0, 2, last));
        for count in 1..=addresses.len() {
            let program = address_claims(&addresses[..count], MAC);
            for (index, address) in addresses.into_iter().enumerate() {
                let claim = Packet::announcement(MacAddress([2; 6]), address).encode();
                let passed = run(&program, ARP_FRAME, &claim) != 0;
                assert_eq!(passed, index < count, "{address} of {count}");
            }
        }
    }

    #[test]
    fn frames_of_other_hosts_vlans_and_protocols_are_dropped() {
        const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
        let claim = Packet::announcement(MacAddress([2; 6]), ADDRESS).encode();
        let claims = address_claims(&[ADDRESS], MAC);
        let answers = arp_between(ADDRESS, ADDRESS);
        let passes = |change: fn(&mut Frame)| {
            let (mut arp, mut ip) = (ARP_FRAME, IP_FRAME);
            change(&mut arp);
            change(&mut ip);
            let claim_passes = run(&claims, arp, &claim) != 0;
            assert_eq!(claim_passes, run(&answers, arp, &claim) != 0);
            assert_eq!(claim_passes, run(&dhcp_replies(MAC), ip, &reply()) != 0);
            claim_passes
        };
        assert!(passes(|frame| frame.packet_type = 0), "to this host");
        assert!(passes(|frame| frame.packet_type = 2), "multicast");
        assert!(!passes(|frame| frame.packet_type = 3), "to another host");
        assert!(!passes(|frame| frame.packet_type = 4), "from this host");
        assert!(passes(|frame| frame.vlan_tag = Some(0)), "priority tag");
        assert!(passes(|frame| frame.vlan_tag = Some(0xe000)), "priority 7");
        assert!(!passes(|frame| frame.vlan_tag = Some(20)), "VLAN 20");
        assert!(!passes(|frame| frame.vlan_tag = Some(0xe001)), "VLAN 1");
        assert_eq!(
            run(&claims, IP_FRAME, &claim),
            0,
            "a tap sees all protocols"
        );
    }

    #[test]
    fn jumps_stay_inside_the_program() {
        let claims = address_claims(&[Ipv4Addr::LOCALHOST; 4], MAC);
        let answers = arp_between(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST);
        for program in [dhcp_replies(MAC), dhcp_datagrams(MAC), claims, answers] {
            for (index, instruction) in program.iter().enumerate() {
                let furthest = index + 1 + usize::from(instruction.jt.max(instruction.jf));
                assert!(furthest < program.len() || instruction.code == RETURN);
            }
        }
    }
}
