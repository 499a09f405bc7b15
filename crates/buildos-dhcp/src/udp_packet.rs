//! Adds and removes the IPv4 and UDP headers of messages on a packet socket.
//!
//! A host without an address can neither send nor receive DHCP through a UDP socket.
//! netd therefore uses AF_PACKET with SOCK_DGRAM, where the kernel handles the Ethernet
//! header only.
//!
//! # Sources
//!
//! RFC 791 (IPv4), RFC 768 (UDP), RFC 1071 (checksum).

use std::net::Ipv4Addr;

/// Port of DHCP servers and relays.
pub const SERVER_PORT: u16 = 67;
/// Port of DHCP clients.
pub const CLIENT_PORT: u16 = 68;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const VERSION_AND_LENGTH: u8 = 0x45;
const DONT_FRAGMENT: u16 = 0x4000;
const FRAGMENT_BITS: u16 = 0x3fff;
const TTL: u8 = 64;
const UDP: u8 = 17;

/// The reason why a packet is not a datagram for a DHCP client, or cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UdpPacketError {
    /// The packet is shorter than the length in its headers.
    #[error("packet of {0} bytes is shorter than the length in its headers")]
    Truncated(usize),
    /// Not IPv4, or IPv4 with an impossible header length.
    #[error("not an IPv4 packet")]
    NotIpv4,
    /// A fragment. DHCP servers send none to a client that cannot reassemble them.
    #[error("fragment")]
    Fragment,
    /// Another protocol, or another destination port.
    #[error("not UDP to port 68")]
    OtherPort,
    /// The length in the UDP header differs from that of the packet.
    #[error("UDP length {0} differs from the length of the packet")]
    UdpLength(u16),
    #[error("IP checksum is wrong")]
    #[allow(missing_docs)]
    IpChecksum,
    #[error("UDP checksum is wrong")]
    #[allow(missing_docs)]
    UdpChecksum,
    /// The payload to send does not fit into an IPv4 packet.
    #[error("payload of {0} bytes does not fit into an IPv4 packet")]
    TooLong(usize),
}

/// A datagram received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Address of the server or relay.
    pub source: Ipv4Addr,
    /// Broadcast, or the address offered.
    pub destination: Ipv4Addr,
    /// The DHCP message.
    pub payload: &'a [u8],
}

/// Returns an IPv4 packet from port 68 to port 67 with this payload.
pub fn build(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    payload: &[u8],
) -> Result<Vec<u8>, UdpPacketError> {
    let too_long = |_| UdpPacketError::TooLong(payload.len());
    let total = u16::try_from(IP_HEADER + UDP_HEADER + payload.len()).map_err(too_long)?;
    let udp_length = u16::try_from(UDP_HEADER + payload.len()).map_err(too_long)?;

    let mut packet = Vec::with_capacity(usize::from(total));
    packet.extend([VERSION_AND_LENGTH, 0]);
    packet.extend(total.to_be_bytes());
    // RFC 6864, section 4.1: an unfragmented packet needs no identifier.
    packet.extend([0, 0]);
    packet.extend(DONT_FRAGMENT.to_be_bytes());
    packet.extend([TTL, UDP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let checksum = fold(sum(&packet));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());

    packet.extend(CLIENT_PORT.to_be_bytes());
    packet.extend(SERVER_PORT.to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    // Zero means "no checksum"; 0xffff is the same number in ones' complement.
    let checksum = match udp_checksum(source, destination, &packet[IP_HEADER..]) {
        0 => u16::MAX,
        checksum => checksum,
    };
    packet[IP_HEADER + 6..IP_HEADER + 8].copy_from_slice(&checksum.to_be_bytes());
    Ok(packet)
}

/// Parses a packet, with or without Ethernet padding.
///
/// `checksum_ready` is false if the kernel reports TP_STATUS_CSUMNOTREADY
/// (PACKET_AUXDATA). A packet sent on the same machine reaches no hardware that would
/// fill in its UDP checksum.
pub fn parse(packet: &[u8], checksum_ready: bool) -> Result<Datagram<'_>, UdpPacketError> {
    let truncated = UdpPacketError::Truncated(packet.len());
    let fixed = packet.first_chunk::<IP_HEADER>().ok_or(truncated)?;
    let header_length = usize::from(fixed[0] & 0x0f) * 4;
    if fixed[0] >> 4 != 4 || header_length < IP_HEADER {
        return Err(UdpPacketError::NotIpv4);
    }
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let (header, segment) = packet
        .get(..total)
        .and_then(|packet| packet.split_at_checked(header_length))
        .ok_or(truncated)?;
    if fold(sum(header)) != 0 {
        return Err(UdpPacketError::IpChecksum);
    }
    if u16::from_be_bytes([fixed[6], fixed[7]]) & FRAGMENT_BITS != 0 {
        return Err(UdpPacketError::Fragment);
    }
    if fixed[9] != UDP {
        return Err(UdpPacketError::OtherPort);
    }
    let (udp, payload) = segment.split_first_chunk::<UDP_HEADER>().ok_or(truncated)?;
    if u16::from_be_bytes([udp[2], udp[3]]) != CLIENT_PORT {
        return Err(UdpPacketError::OtherPort);
    }
    let udp_length = u16::from_be_bytes([udp[4], udp[5]]);
    if usize::from(udp_length) != segment.len() {
        return Err(UdpPacketError::UdpLength(udp_length));
    }
    let source = Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]);
    let destination = Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]);
    let has_checksum = udp[6..] != [0, 0];
    if has_checksum && checksum_ready && udp_checksum(source, destination, segment) != 0 {
        return Err(UdpPacketError::UdpChecksum);
    }
    Ok(Datagram {
        source,
        destination,
        payload,
    })
}

/// Returns the checksum of a UDP segment with its pseudo header; zero if the segment
/// holds a correct checksum.
fn udp_checksum(source: Ipv4Addr, destination: Ipv4Addr, segment: &[u8]) -> u16 {
    // The length fits: IPv4 packets are no longer than 65,535 bytes.
    let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
    fold(
        sum(&source.octets())
            + sum(&destination.octets())
            + u64::from(UDP)
            + u64::from(length)
            + sum(segment),
    )
}

/// Returns the sum of the 16-bit words. An odd last byte is the upper half of a word.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(2);
    let odd = words
        .remainder()
        .first()
        .map_or(0, |byte| u64::from(*byte) << 8);
    words
        .map(|word| u64::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u64>()
        + odd
}

/// Returns the ones' complement of the sum folded to 16 bits.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

    /// Returns a server's packet: swapped ports leave the checksum correct.
    fn from_server(payload: &[u8]) -> Vec<u8> {
        let mut packet = build(SERVER, ADDRESS, payload).unwrap();
        packet[20..24].rotate_left(2);
        packet
    }

    /// Updates the checksum of the IP header after a change.
    fn set_ip_checksum(packet: &mut [u8]) {
        packet[10..12].fill(0);
        let length = usize::from(packet[0] & 0x0f) * 4;
        let checksum = fold(sum(&packet[..length]));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    #[test]
    fn build_makes_a_known_packet() {
        let packet = build(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, b"odd").unwrap();
        // Checksums computed by hand: the ones' complement of
        // 4500 + 001f + 4000 + 4011 + ffff + ffff = 2c52e -> c530, and of
        // ffff + ffff + 0011 + 000b + 0044 + 0043 + 000b + 6f64 + 6400 = 2d410 -> d412.
        let expected = [
            0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x3a, 0xcf, 0, 0, 0, 0, 255, 255, 255,
            255, //
            0, 68, 0, 67, 0, 11, 0x2b, 0xed, b'o', b'd', b'd',
        ];
        assert_eq!(packet, expected);
    }

    #[test]
    fn parse_reverses_build_with_and_without_padding() {
        for length in 0..600 {
            let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let mut packet = from_server(&payload);
            let expected = Datagram {
                source: SERVER,
                destination: ADDRESS,
                payload: &payload,
            };
            assert_eq!(parse(&packet, true), Ok(expected));
            packet.extend([0; 18]);
            assert_eq!(parse(&packet, true), Ok(expected), "with Ethernet padding");
        }
    }

    #[test]
    fn build_replaces_a_checksum_of_zero() {
        // This payload brings the sum to 0xffff, whose complement is zero.
        let plain = from_server(&[0, 0]);
        let checksum = u16::from_be_bytes([plain[26], plain[27]]);
        let packet = from_server(&checksum.to_be_bytes());
        assert_eq!(packet[26..28], [0xff, 0xff]);
        assert!(parse(&packet, true).is_ok());
    }

    #[test]
    fn parse_skips_ip_options() {
        let mut packet = from_server(b"payload");
        packet.splice(20..20, [1; 8]);
        packet[0] = 0x47;
        packet[3] += 8;
        set_ip_checksum(&mut packet);
        assert_eq!(
            parse(&packet, true).map(|datagram| datagram.payload),
            Ok(&b"payload"[..])
        );
    }

    #[test]
    fn parse_checks_the_udp_checksum_only_if_present_and_ready() {
        let good = from_server(b"payload");
        let mut bad = good.clone();
        bad[30] ^= 1;
        assert_eq!(parse(&bad, true), Err(UdpPacketError::UdpChecksum));
        assert!(parse(&bad, false).is_ok(), "checksum not ready");
        let mut none = bad;
        none[26..28].fill(0);
        assert!(parse(&none, true).is_ok(), "no checksum");
    }

    #[test]
    fn parse_rejects_malformed_and_foreign_packets() {
        let good = from_server(b"payload");
        for length in 0..good.len() {
            assert_eq!(
                parse(&good[..length], true),
                Err(UdpPacketError::Truncated(length))
            );
        }
        type Change = fn(&mut Vec<u8>);
        let cases: [(&str, Change, UdpPacketError); 9] = [
            ("IPv6", |p| p[0] = 0x65, UdpPacketError::NotIpv4),
            ("short header", |p| p[0] = 0x44, UdpPacketError::NotIpv4),
            ("IP checksum", |p| p[8] -= 1, UdpPacketError::IpChecksum),
            (
                "first fragment",
                |p| (p[6] = 0x20, set_ip_checksum(p)).1,
                UdpPacketError::Fragment,
            ),
            (
                "later fragment",
                |p| (p[7] = 1, set_ip_checksum(p)).1,
                UdpPacketError::Fragment,
            ),
            (
                "TCP",
                |p| (p[9] = 6, set_ip_checksum(p)).1,
                UdpPacketError::OtherPort,
            ),
            ("another port", |p| p[23] = 67, UdpPacketError::OtherPort),
            (
                "UDP too short",
                |p| p[25] = 14,
                UdpPacketError::UdpLength(14),
            ),
            (
                "UDP too long",
                |p| p[25] = 16,
                UdpPacketError::UdpLength(16),
            ),
        ];
        for (name, change, error) in cases {
            let mut packet = good.clone();
            change(&mut packet);
            assert_eq!(parse(&packet, true), Err(error), "{name}");
        }
        let mut header_only = good[..20].to_vec();
        header_only[3] = 20;
        set_ip_checksum(&mut header_only);
        assert_eq!(
            parse(&header_only, true),
            Err(UdpPacketError::Truncated(20))
        );
    }

    #[test]
    fn build_rejects_a_payload_longer_than_a_packet() {
        assert!(build(SERVER, ADDRESS, &vec![0; 65_507]).is_ok());
        let error = UdpPacketError::TooLong(65_508);
        assert_eq!(build(SERVER, ADDRESS, &vec![0; 65_508]), Err(error));
    }
}
