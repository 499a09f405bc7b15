//! Builds the socket filters of the packet sockets.
//!
//! They are classic BPF programs (linux/filter.h) for AF_PACKET sockets of type
//! SOCK_DGRAM, whose packets begin after the Ethernet header. The kernel then wakes the
//! process for relevant packets only. While a rack boots, most DHCP answers and ARP
//! packets are for other machines.
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

/// Returns the filter for unfragmented UDP packets to port 68 with a BOOTP reply to
/// this hardware address.
pub fn dhcp_replies(mac: MacAddress) -> Vec<Instruction> {
    let (upper, lower) = halves(mac);
    let mut program = Program::default();
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

/// Returns the filter for ARP packets in which another hardware address claims
/// `address` (RFC 5227, section 2.4).
pub fn address_claims(address: Ipv4Addr, mac: MacAddress) -> Vec<Instruction> {
    let (upper, lower) = halves(mac);
    let mut program = Program::default();
    program.load(LOAD_WORD, ARP_TYPES);
    program.require(JUMP_EQUAL, ETHERNET_AND_IPV4);
    program.load(LOAD_HALF, ARP_LENGTHS);
    program.require(JUMP_EQUAL, MAC_AND_IPV4);
    program.load(LOAD_WORD, SENDER);
    program.require(JUMP_EQUAL, u32::from(address));
    program.load(LOAD_WORD, SENDER_MAC);
    // Equal upper bytes: the lower ones decide.
    program.skip_unless(JUMP_EQUAL, upper, 2);
    program.load(LOAD_HALF, SENDER_MAC + 4);
    program.forbid(JUMP_EQUAL, lower);
    program.finish()
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
mod tests {
    use super::*;
    use crate::arp::Packet;
    use crate::udp_packet;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0x00, 0xff, 0x34, 0x56]);

    /// Runs the program like the kernel: a load outside the packet drops the packet.
    fn run(program: &[Instruction], packet: &[u8]) -> u32 {
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
        run(&dhcp_replies(MAC), packet) != 0
    }

    fn reply() -> Vec<u8> {
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
        assert_eq!(run(&dhcp_replies(MAC), &reply()), u32::MAX);
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
    fn arp_filter_passes_only_claims_of_other_hosts() {
        const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
        let program = address_claims(ADDRESS, MAC);
        let passes = |packet: &[u8]| run(&program, packet) != 0;
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
    fn jumps_stay_inside_the_program() {
        for program in [dhcp_replies(MAC), address_claims(Ipv4Addr::LOCALHOST, MAC)] {
            for (index, instruction) in program.iter().enumerate() {
                let furthest = index + 1 + usize::from(instruction.jt.max(instruction.jf));
                assert!(furthest < program.len() || instruction.code == RETURN);
            }
        }
    }
}
