//! What the kernel lets through to the packet socket.
//!
//! A classic BPF program (linux/filter.h) for an AF_PACKET socket of type
//! SOCK_DGRAM, whose packets begin with the IPv4 header. It keeps the process
//! asleep while the network talks of other things: on a rack that boots, most
//! DHCP answers are broadcast and meant for other machines. What it lets through
//! is still checked in full by [`frame::parse`](crate::frame::parse) and
//! [`decode`](crate::decode).

use crate::Mac;

/// One instruction, laid out as `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Opcode.
    pub code: u16,
    /// How many instructions to skip when a jump's condition holds.
    pub jt: u8,
    /// How many instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

// linux/bpf_common.h: class | size | mode, and class | operation | source.
const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
const LOAD_BYTE_AT_X: u16 = 0x50; // BPF_LD | BPF_B | BPF_IND
const LOAD_HALF_AT_X: u16 = 0x48; // BPF_LD | BPF_H | BPF_IND
const LOAD_WORD_AT_X: u16 = 0x40; // BPF_LD | BPF_W | BPF_IND
const X_IS_HEADER_LENGTH: u16 = 0xb1; // BPF_LDX | BPF_B | BPF_MSH
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_NOT_BELOW: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

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

/// Number of instructions of [`program`].
pub const LENGTH: usize = 17;

/// The program that passes whole UDP packets to port 68 which hold a BOOTP reply
/// to this hardware address.
pub fn program(mac: Mac) -> [Instruction; LENGTH] {
    let load = |code, k| Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let [a, b, c, d, e, f] = mac.map(u32::from);
    // A test at index i that fails jumps to the last instruction.
    let require = |code, k, i: u8| Instruction {
        code,
        jt: 0,
        jf: 15 - i,
        k,
    };
    [
        load(LOAD_BYTE, PROTOCOL),
        require(JUMP_EQUAL, UDP, 1),
        load(LOAD_HALF, FRAGMENT),
        Instruction {
            code: JUMP_ANY_BIT,
            jt: 12,
            jf: 0,
            k: FRAGMENT_BITS,
        },
        load(X_IS_HEADER_LENGTH, 0),
        load(LOAD_HALF_AT_X, DESTINATION_PORT),
        require(JUMP_EQUAL, CLIENT_PORT, 6),
        load(LOAD_HALF_AT_X, UDP_LENGTH),
        require(JUMP_NOT_BELOW, SHORTEST, 8),
        load(LOAD_BYTE_AT_X, OP),
        require(JUMP_EQUAL, BOOTREPLY, 10),
        load(LOAD_WORD_AT_X, CHADDR),
        require(JUMP_EQUAL, (a << 24) | (b << 16) | (c << 8) | d, 12),
        load(LOAD_HALF_AT_X, CHADDR + 4),
        require(JUMP_EQUAL, (e << 8) | f, 14),
        load(RETURN, u32::MAX),
        load(RETURN, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::frame;

    const MAC: Mac = [0x52, 0x54, 0x00, 0xff, 0x34, 0x56];

    /// Runs the program as the kernel does; a load outside the packet drops it.
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
        run(&program(MAC), packet) != 0
    }

    fn reply() -> Vec<u8> {
        let mut payload = vec![0; 300];
        payload[0] = 2;
        payload[28..34].copy_from_slice(&MAC);
        let mut packet =
            frame::build(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::BROADCAST, &payload).unwrap();
        packet[20..24].rotate_left(2);
        packet
    }

    #[test]
    fn passes_replies_to_this_host_whole() {
        assert_eq!(run(&program(MAC), &reply()), u32::MAX);
        let mut with_ip_options = reply();
        with_ip_options.splice(20..20, [1; 40]);
        with_ip_options[0] = 0x4f;
        assert!(passes(&with_ip_options));
    }

    #[test]
    fn drops_everything_else() {
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
    fn every_jump_stays_inside() {
        for (index, instruction) in program(MAC).iter().enumerate() {
            let furthest = index + 1 + usize::from(instruction.jt.max(instruction.jf));
            assert!(furthest < LENGTH || instruction.code == RETURN);
        }
    }
}
