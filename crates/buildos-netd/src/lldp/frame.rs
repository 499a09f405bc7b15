//! Parses LLDP frames.
//!
//! A frame is a list of TLVs: 7 bits of type, 9 bits of length, the value. Chassis ID, Port ID
//! and Time To Live come first, in this order, and once each.
//!
//! # Sources
//!
//! IEEE 802.1AB-2016, clauses 8 and 9; for VLANs, IEEE 802.1Q-2018, annex D.
//!
//! # Limits
//!
//! TLVs with other subjects are skipped. A frame without an End TLV is accepted: some devices
//! fill the frame. Names are cut after 64 bytes, and at most 16 VLANs are kept.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use buildos_types::{Escaped, MacAddress};
use serde::Serialize;

/// Bytes of a name that are kept: a line of a console has room for two.
const LONGEST_NAME: usize = 64;
/// Limit of [`Neighbour::vlans`].
const VLANS: usize = 16;
/// Largest VLAN ID; 0 and 4095 are no VLANs.
const LAST_VLAN: u16 = 4094;
/// Longest Chassis ID and Port ID, with the byte of the subtype.
const LONGEST_ID: usize = 256;

/// Types of TLVs.
mod tlv {
    pub(super) const END: u8 = 0;
    pub(super) const CHASSIS_ID: u8 = 1;
    pub(super) const PORT_ID: u8 = 2;
    pub(super) const TIME_TO_LIVE: u8 = 3;
    pub(super) const PORT_DESCRIPTION: u8 = 4;
    pub(super) const SYSTEM_NAME: u8 = 5;
    pub(super) const ORGANIZATION: u8 = 127;
}

/// OUI of IEEE 802.1, with the subtypes Port VLAN ID and VLAN Name.
const IEEE_802_1: [u8; 3] = [0x00, 0x80, 0xc2];
const PORT_VLAN_ID: u8 = 1;
const VLAN_NAME: u8 = 3;

/// The device at the other end of a cable, as it describes itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// System Name, else Chassis ID.
    pub system: Escaped,
    /// Name of the port: Port ID if that is a name, else Port Description, else Port ID.
    pub port: Escaped,
    /// VLAN of frames without a tag (Port VLAN ID); [`None`] if the device did not say.
    pub untagged_vlan: Option<u16>,
    /// VLANs of the port (VLAN Name), in ascending order.
    pub vlans: Vec<u16>,
}

impl Neighbour {
    /// Returns the VLANs of the port whose frames have a tag.
    pub fn tagged_vlans(&self) -> impl Iterator<Item = u16> {
        let vlans = self.vlans.iter().copied();
        vlans.filter(|vlan| Some(*vlan) != self.untagged_vlan)
    }
}

impl fmt::Display for Neighbour {
    /// Writes the device and its port on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.system.as_str(), self.port.as_str())
    }
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Chassis ID and Port ID as received: together they identify the sender.
    pub sender: (Vec<u8>, Vec<u8>),
    /// Duration for which the frame is valid; zero if the device leaves.
    pub valid_for: Duration,
    #[allow(missing_docs)]
    pub neighbour: Neighbour,
}

/// Why a frame is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A TLV is longer than the rest of the frame.
    #[error("a TLV is truncated")]
    Truncated,
    /// The frame does not begin with Chassis ID, Port ID and Time To Live, or repeats one.
    #[error("Chassis ID, Port ID and Time To Live are not the first TLVs, once each")]
    Mandatory,
    /// An identifier is empty or longer than 255 bytes, or the Time To Live is incomplete.
    #[error("the length of a mandatory TLV is invalid")]
    Length,
}

/// Parses the payload of a frame with the ethertype 0x88cc.
///
/// # Errors
///
/// [`Malformed`]: the frame must be ignored as a whole.
pub fn parse(payload: &[u8]) -> Result<Frame, Malformed> {
    let mut tlvs = Tlvs(payload);
    let chassis = mandatory(&mut tlvs, tlv::CHASSIS_ID)?;
    let port = mandatory(&mut tlvs, tlv::PORT_ID)?;
    let ttl = mandatory(&mut tlvs, tlv::TIME_TO_LIVE)?;
    let (chassis_type, chassis_id) = identifier(chassis)?;
    let (port_type, port_id) = identifier(port)?;
    let ttl = ttl.first_chunk().copied().ok_or(Malformed::Length)?;
    let mut system = None;
    let mut description = None;
    let mut neighbour = Neighbour::default();
    for tlv in tlvs {
        match tlv? {
            (tlv::END, _) => break,
            (tlv::CHASSIS_ID | tlv::PORT_ID | tlv::TIME_TO_LIVE, _) => {
                return Err(Malformed::Mandatory);
            }
            (tlv::PORT_DESCRIPTION, text) => description = description.or(name(text)),
            (tlv::SYSTEM_NAME, text) => system = system.or(name(text)),
            (tlv::ORGANIZATION, value) => organization(value, &mut neighbour),
            _ => {}
        }
    }
    neighbour.vlans.sort_unstable();
    neighbour.vlans.dedup();
    let chassis_kind = CHASSIS_KINDS.get(usize::from(chassis_type));
    let chassis_kind = chassis_kind.copied().unwrap_or(Kind::Other);
    let port_kind = PORT_KINDS.get(usize::from(port_type));
    let port_kind = port_kind.copied().unwrap_or(Kind::Other);
    neighbour.system = system.unwrap_or_else(|| text(chassis_kind, chassis_id));
    neighbour.port = match port_kind {
        Kind::Name => text(port_kind, port_id),
        Kind::Hardware | Kind::Network | Kind::Other => {
            description.unwrap_or_else(|| text(port_kind, port_id))
        }
    };
    Ok(Frame {
        sender: (chassis.to_vec(), port.to_vec()),
        valid_for: Duration::from_secs(u16::from_be_bytes(ttl).into()),
        neighbour,
    })
}

/// Returns the value of the next TLV, which must have this type.
fn mandatory<'a>(tlvs: &mut Tlvs<'a>, wanted: u8) -> Result<&'a [u8], Malformed> {
    match tlvs.next() {
        Some(Ok((kind, value))) if kind == wanted => Ok(value),
        Some(Err(error)) => Err(error),
        Some(Ok(_)) | None => Err(Malformed::Mandatory),
    }
}

/// Splits an identifier into subtype and value.
fn identifier(value: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    match value.split_first() {
        Some((subtype, id)) if !id.is_empty() && value.len() <= LONGEST_ID => Ok((*subtype, id)),
        _ => Err(Malformed::Length),
    }
}

/// What an identifier contains.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// The name of an interface, or one that the operator of the device chose.
    Name,
    /// A MAC address.
    Hardware,
    /// An address after the number of its family.
    Network,
    /// Text without a defined meaning.
    Other,
}

/// Kinds of Chassis IDs by subtype (IEEE 802.1AB-2016, table 8-2).
const CHASSIS_KINDS: [Kind; 8] = [
    Kind::Other,
    Kind::Other,
    Kind::Name,
    Kind::Other,
    Kind::Hardware,
    Kind::Network,
    Kind::Name,
    Kind::Name,
];

/// Kinds of Port IDs by subtype (table 8-3). Subtype 7, locally assigned, is often a bare number.
const PORT_KINDS: [Kind; 8] = [
    Kind::Other,
    Kind::Name,
    Kind::Other,
    Kind::Hardware,
    Kind::Network,
    Kind::Name,
    Kind::Other,
    Kind::Other,
];

/// Returns an identifier as text.
fn text(kind: Kind, id: &[u8]) -> Escaped {
    let address = match kind {
        Kind::Hardware => <[u8; 6]>::try_from(id)
            .ok()
            .map(|mac| MacAddress(mac).to_string()),
        Kind::Network => network_address(id),
        Kind::Name | Kind::Other => None,
    };
    match address {
        Some(address) => Escaped::new(&address),
        None => name(id).unwrap_or_else(|| Escaped::new("?")),
    }
}

/// Returns an address that follows the number of its family (IANA Address Family Numbers).
fn network_address(id: &[u8]) -> Option<String> {
    match id.split_first()? {
        (1, address) => Some(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).to_string()),
        (2, address) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).to_string()),
        _ => None,
    }
}

/// Returns text, without the padding that some devices send; [`None`] if nothing is left.
fn name(bytes: &[u8]) -> Option<Escaped> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let bytes = bytes.get(..end.unwrap_or(bytes.len()))?.trim_ascii();
    let mut bytes = bytes.get(..LONGEST_NAME).unwrap_or(bytes);
    // A character is not cut in its middle.
    let cut = std::str::from_utf8(bytes).err();
    if let Some(error) = cut.filter(|error| error.error_len().is_none()) {
        bytes = bytes.get(..error.valid_up_to())?;
    }
    (!bytes.is_empty()).then(|| Escaped::from_bytes(bytes))
}

/// Adds what a TLV of IEEE 802.1 says.
fn organization(value: &[u8], neighbour: &mut Neighbour) {
    let Some((&[a, b, c, subtype, high, low], _)) = value.split_first_chunk() else {
        return;
    };
    let vlan = u16::from_be_bytes([high, low]);
    // Port VLAN ID 0: the port takes no frames without a tag.
    if [a, b, c] != IEEE_802_1 || !(1..=LAST_VLAN).contains(&vlan) {
        return;
    }
    match subtype {
        PORT_VLAN_ID => neighbour.untagged_vlan = Some(vlan),
        VLAN_NAME if neighbour.vlans.len() < VLANS => neighbour.vlans.push(vlan),
        _ => {}
    }
}

/// Iterates over types and values.
struct Tlvs<'a>(&'a [u8]);

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<(u8, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((head, rest)) = self.0.split_first_chunk() else {
            self.0 = &[];
            return Some(Err(Malformed::Truncated));
        };
        let head = u16::from_be_bytes(*head);
        let Some((value, rest)) = rest.split_at_checked(usize::from(head & 0x1ff)) else {
            self.0 = &[];
            return Some(Err(Malformed::Truncated));
        };
        self.0 = rest;
        // Seven bits fit.
        Some(Ok(((head >> 9) as u8, value)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Appends a TLV.
    pub(crate) fn add(payload: &mut Vec<u8>, kind: u8, value: &[u8]) {
        let head = (u16::from(kind) << 9) | u16::try_from(value.len()).unwrap();
        payload.extend(head.to_be_bytes());
        payload.extend(value);
    }

    fn vlan(subtype: u8, vlan: u16, name: &[u8]) -> Vec<u8> {
        let mut value = [&IEEE_802_1[..], &[subtype], &vlan.to_be_bytes()].concat();
        if subtype == VLAN_NAME {
            value.push(u8::try_from(name.len()).unwrap());
            value.extend(name);
        }
        value
    }

    /// Returns the mandatory TLVs of a port, valid for two minutes.
    pub(crate) fn of_port(port: &str) -> Vec<u8> {
        let mut payload = Vec::new();
        add(&mut payload, tlv::CHASSIS_ID, &[4, 2, 0, 0, 0, 0, 0xfe]);
        add(
            &mut payload,
            tlv::PORT_ID,
            &[&[5], port.as_bytes()].concat(),
        );
        add(&mut payload, tlv::TIME_TO_LIVE, &[0, 120]);
        payload
    }

    fn full() -> Vec<u8> {
        let mut payload = of_port("Gi1/0/12");
        add(&mut payload, tlv::PORT_DESCRIPTION, b"build host 7");
        add(&mut payload, tlv::SYSTEM_NAME, b"sw1.example.org\0\0");
        add(&mut payload, 6, b"System Description");
        add(
            &mut payload,
            tlv::ORGANIZATION,
            &vlan(PORT_VLAN_ID, 42, b""),
        );
        for id in [42, 20, 10, 10] {
            add(
                &mut payload,
                tlv::ORGANIZATION,
                &vlan(VLAN_NAME, id, b"farm"),
            );
        }
        add(
            &mut payload,
            tlv::ORGANIZATION,
            &[0x00, 0x12, 0x0f, 1, 2, 3, 4, 5, 6],
        );
        add(&mut payload, tlv::END, b"");
        payload.extend([0; 14]);
        payload
    }

    #[test]
    fn frame_of_switch_has_name_port_and_vlans() {
        let frame = parse(&full()).unwrap();
        assert_eq!(frame.valid_for, Duration::from_secs(120));
        let neighbour = frame.neighbour;
        assert_eq!(neighbour.to_string(), "sw1.example.org port Gi1/0/12");
        assert_eq!(neighbour.untagged_vlan, Some(42));
        assert_eq!(neighbour.vlans, [10, 20, 42]);
        assert_eq!(neighbour.tagged_vlans().collect::<Vec<_>>(), [10, 20]);
    }

    #[test]
    fn frame_without_names_shows_identifiers() {
        for (chassis, port, expected) in [
            (
                &b"\x04\x02\0\0\0\0\xfe"[..],
                &b"\x03\x02\0\0\0\0\x01"[..],
                "02:00:00:00:00:fe port 02:00:00:00:00:01",
            ),
            (b"\x05\x01\xc0\0\x02\x01", b"\x0512", "192.0.2.1 port 12"),
            (b"\x07sw", b"\x0712", "sw port 12"),
            (b"\x07a\nb", b"\x05\xff", "a\\u{a}b port \\xff"),
            (b"\x04\0\0", b"\x05 ", "? port ?"),
            (b"\xffx", b"\xffy", "x port y"),
        ] {
            let mut payload = Vec::new();
            add(&mut payload, tlv::CHASSIS_ID, chassis);
            add(&mut payload, tlv::PORT_ID, port);
            add(&mut payload, tlv::TIME_TO_LIVE, &[0, 1]);
            assert_eq!(parse(&payload).unwrap().neighbour.to_string(), expected);
        }
    }

    #[test]
    fn port_without_name_shows_its_description() {
        let mut payload = Vec::new();
        add(&mut payload, tlv::CHASSIS_ID, b"\x07sw");
        add(&mut payload, tlv::PORT_ID, b"\x03\x02\0\0\0\0\x01");
        add(&mut payload, tlv::TIME_TO_LIVE, &[0, 1]);
        add(&mut payload, tlv::PORT_DESCRIPTION, b"swp7");
        assert_eq!(parse(&payload).unwrap().neighbour.port.as_str(), "swp7");
    }

    #[test]
    fn long_name_is_cut_between_characters() {
        let mut payload = of_port("1");
        let name = "x".repeat(LONGEST_NAME - 1) + "é";
        add(&mut payload, tlv::SYSTEM_NAME, name.as_bytes());
        let system = parse(&payload).unwrap().neighbour.system;
        assert_eq!(system.as_str(), "x".repeat(LONGEST_NAME - 1));
    }

    #[test]
    fn invalid_vlans_are_ignored_and_their_number_is_limited() {
        let mut payload = of_port("1");
        for id in [0, 4095] {
            let untagged = vlan(PORT_VLAN_ID, id, b"");
            add(&mut payload, tlv::ORGANIZATION, &untagged);
        }
        for id in 1..100 {
            add(&mut payload, tlv::ORGANIZATION, &vlan(VLAN_NAME, id, b""));
        }
        let neighbour = parse(&payload).unwrap().neighbour;
        assert_eq!(neighbour.untagged_vlan, None);
        assert_eq!(neighbour.vlans.len(), VLANS);
    }

    #[test]
    fn malformed_frames_are_refused() {
        let valid = of_port("1");
        let without_first = valid.get(9..).unwrap();
        let mut repeated = valid.clone();
        add(&mut repeated, tlv::PORT_ID, b"\x052");
        let mut truncated = valid.clone();
        truncated.extend([tlv::SYSTEM_NAME << 1, 9, b'x']);
        let mut half = valid.clone();
        half.push(0);
        let mut empty = Vec::new();
        add(&mut empty, tlv::CHASSIS_ID, &[4]);
        add(&mut empty, tlv::PORT_ID, &[5, 1]);
        add(&mut empty, tlv::TIME_TO_LIVE, &[0, 1]);
        let mut short_ttl = of_port("1");
        short_ttl.truncate(short_ttl.len() - 4);
        add(&mut short_ttl, tlv::TIME_TO_LIVE, &[1]);
        for (payload, error) in [
            (&[][..], Malformed::Mandatory),
            (without_first, Malformed::Mandatory),
            (&repeated, Malformed::Mandatory),
            (&truncated, Malformed::Truncated),
            (&half, Malformed::Truncated),
            (&empty, Malformed::Length),
            (&short_ttl, Malformed::Length),
        ] {
            assert_eq!(parse(payload), Err(error), "{payload:?}");
        }
    }
}
