//! Encodes and parses ARP for IPv4 over Ethernet (RFC 826), without the Ethernet
//! header.

use buildos_types::MacAddress;
use std::net::Ipv4Addr;

/// Length of a packet in bytes; Ethernet pads it to 46.
pub const LENGTH: usize = 28;

/// Hardware type Ethernet, protocol type IPv4, and their address lengths.
const HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// `ares_op$REQUEST`.
const REQUEST: u16 = 1;

/// The reason why bytes are not an ARP packet for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArpError {
    /// Shorter than [`LENGTH`].
    #[error("ARP packet of {0} bytes is too short")]
    TooShort(usize),
    /// ARP for another hardware type or protocol.
    #[error("not ARP for IPv4 over Ethernet")]
    OtherProtocol,
}

/// Addresses of an ARP packet. RFC 5227 evaluates them in requests and replies alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Sender hardware address (`ar$sha`).
    pub sender_mac: MacAddress,
    /// Sender protocol address (`ar$spa`), which the sender claims; 0.0.0.0 in a probe.
    pub sender: Ipv4Addr,
    /// Target protocol address (`ar$tpa`).
    pub target: Ipv4Addr,
}

impl Packet {
    /// Returns a probe: it asks for `address` without a claim to it (RFC 5227, section
    /// 1.1, "ARP Probe").
    pub fn probe(mac: MacAddress, address: Ipv4Addr) -> Self {
        Self {
            sender_mac: mac,
            sender: Ipv4Addr::UNSPECIFIED,
            target: address,
        }
    }

    /// Returns an announcement: the sender claims `address` (RFC 5227, section 1.1, "ARP
    /// Announcement").
    pub fn announcement(mac: MacAddress, address: Ipv4Addr) -> Self {
        Self {
            sender_mac: mac,
            sender: address,
            target: address,
        }
    }

    /// Encodes the packet as a request, the form of probes and announcements.
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..6].copy_from_slice(&HEADER);
        bytes[6..8].copy_from_slice(&REQUEST.to_be_bytes());
        bytes[8..14].copy_from_slice(&self.sender_mac.0);
        bytes[14..18].copy_from_slice(&self.sender.octets());
        bytes[24..28].copy_from_slice(&self.target.octets());
        bytes
    }

    /// Parses a request or reply, with or without padding.
    ///
    /// # Errors
    ///
    /// The bytes are too short, or ARP for another hardware type or protocol.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArpError> {
        let packet = bytes
            .first_chunk::<LENGTH>()
            .ok_or(ArpError::TooShort(bytes.len()))?;
        if packet[..6] != HEADER {
            return Err(ArpError::OtherProtocol);
        }
        let [a, b, c, d, e, f] = [8, 9, 10, 11, 12, 13].map(|i: usize| packet[i]);
        Ok(Self {
            sender_mac: MacAddress([a, b, c, d, e, f]),
            sender: Ipv4Addr::new(packet[14], packet[15], packet[16], packet[17]),
            target: Ipv4Addr::new(packet[24], packet[25], packet[26], packet[27]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0x00, 0xff, 0x34, 0x56]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

    #[test]
    fn probe_has_the_bytes_of_rfc_5227() {
        let expected = [
            0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0xff, 0x34, 0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            192, 0, 2, 77,
        ];
        assert_eq!(Packet::probe(MAC, ADDRESS).encode(), expected);
    }

    #[test]
    fn parse_reverses_encode_with_and_without_padding() {
        for packet in [
            Packet::probe(MAC, ADDRESS),
            Packet::announcement(MAC, ADDRESS),
        ] {
            let mut bytes = packet.encode().to_vec();
            assert_eq!(Packet::parse(&bytes), Ok(packet));
            bytes[7] = 2;
            bytes.extend([0; 18]);
            assert_eq!(Packet::parse(&bytes), Ok(packet), "a padded reply");
        }
    }

    #[test]
    fn parse_rejects_short_packets_and_other_protocols() {
        let good = Packet::announcement(MAC, ADDRESS).encode();
        for length in 0..LENGTH {
            let error = ArpError::TooShort(length);
            assert_eq!(Packet::parse(&good[..length]), Err(error));
        }
        for byte in 0..HEADER.len() {
            let mut other = good;
            other[byte] ^= 1;
            assert_eq!(Packet::parse(&other), Err(ArpError::OtherProtocol));
        }
    }
}
