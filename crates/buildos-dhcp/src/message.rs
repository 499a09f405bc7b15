//! Decodes the messages of servers and encodes those of the client (RFC 2131, section
//! 2 and table 5).

use std::net::Ipv4Addr;

use buildos_types::{Escaped, MacAddress};
use dhcproto::encoder::{Encodable, Encoder};
use dhcproto::error::EncodeError;
use dhcproto::v4::{DhcpOption, MessageType, OptionCode, UnknownOption};

use crate::client_name::ClientName;
use crate::identity::{ClientId, Identity};
use crate::options::{OPTIONS, Options, OptionsError, is_host};
use crate::text;

const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const ETHERNET: u8 = 1;
const MAC_LENGTH: u8 = 6;
/// First bit of the `flags` field: the server answers by broadcast.
const BROADCAST: u8 = 0x80;
/// Header fields: client hardware address and magic cookie.
const CHADDR: core::ops::Range<usize> = 28..34;
const COOKIE: core::ops::Range<usize> = 236..OPTIONS;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
/// BOOTP relays and some servers drop shorter messages (RFC 1542, section 2.1).
const MINIMUM_LENGTH: usize = 300;
/// Option 57: the payload of an Ethernet frame without the IP and UDP headers, which
/// satisfies both interpretations of the option's definition.
const MAXIMUM_LENGTH: u16 = 1472;
/// Option 55, in order of preference. Classless routes precede the static routes and
/// routers that they replace (RFC 3442); a server with too little room drops the end.
const PARAMETERS: [u8; 14] = [1, 121, 33, 3, 6, 15, 119, 12, 81, 26, 28, 42, 58, 59];

/// Vendor class identifier (RFC 2132, section 9.13) and user class (RFC 3004).
const VENDOR_CLASS: u8 = 60;
const USER_CLASS: u8 = 77;
/// Option 81 and its flags: the server may update the DNS, and the name is in DNS
/// wire format (RFC 4702, section 2.1).
const CLIENT_FQDN: u8 = 81;
const FQDN_FLAGS: u8 = 0x01 | 0x04;
const MAXIMUM_LABEL: usize = 63;

/// A message type exchanged between this client and a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Asks every server for an offer.
    Discover,
    /// Offers an address.
    Offer,
    /// Requests a lease, its extension or its confirmation.
    Request,
    /// Rejects an address that another host uses.
    Decline,
    /// Grants a REQUEST.
    Ack,
    /// Denies a REQUEST.
    Nak,
    /// Returns a lease.
    Release,
}

impl MessageKind {
    /// Returns the name without its `DHCP` prefix, such as `DISCOVER`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discover => "DISCOVER",
            Self::Offer => "OFFER",
            Self::Request => "REQUEST",
            Self::Decline => "DECLINE",
            Self::Ack => "ACK",
            Self::Nak => "NAK",
            Self::Release => "RELEASE",
        }
    }

    fn wire(self) -> MessageType {
        match self {
            Self::Discover => MessageType::Discover,
            Self::Offer => MessageType::Offer,
            Self::Request => MessageType::Request,
            Self::Decline => MessageType::Decline,
            Self::Ack => MessageType::Ack,
            Self::Nak => MessageType::Nak,
            Self::Release => MessageType::Release,
        }
    }
}

impl std::fmt::Display for MessageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The reason why a payload received on port 68 is not a server's message to this
/// client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the fixed header.
    #[error("message of {0} bytes is too short")]
    TooShort(usize),
    /// `op`, `htype` or `hlen` is not that of a reply to an Ethernet host.
    #[error("not a BOOTP reply to an Ethernet host")]
    NotAReply,
    /// `chaddr` is another client's.
    #[error("meant for another hardware address")]
    OtherClient,
    /// BOOTP with vendor information other than DHCP's.
    #[error("no DHCP magic cookie")]
    NoCookie,
    /// The options cannot be split.
    #[error("options are malformed: {0}")]
    Options(#[from] OptionsError),
    /// Option 53 is missing, or not a type that a server sends.
    #[error("no message type of a server (option 53)")]
    NoType,
    /// The server repeats another client's identifier (option 61; RFC 6842, section 3).
    #[error("meant for another client identifier")]
    OtherIdentifier,
}

/// An OFFER, ACK or NAK to this client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerMessage {
    /// OFFER, ACK or NAK.
    pub kind: MessageKind,
    /// Transaction id of the answered message.
    pub xid: u32,
    /// `yiaddr`: the address offered or granted.
    pub address: Ipv4Addr,
    /// Server identifier (option 54).
    pub server: Option<Ipv4Addr>,
    /// `giaddr`: the relay that the answer came through.
    pub relay: Option<Ipv4Addr>,
    /// All options.
    pub options: Options,
}

impl ServerMessage {
    /// Returns the text of the message (option 56).
    pub fn text(&self) -> Option<Escaped> {
        self.options.get(56).and_then(text::escape)
    }
}

/// Decodes the UDP payload of a message to the client with this hardware address as client
/// identifier.
pub fn decode(payload: &[u8], mac: MacAddress) -> Result<ServerMessage, DecodeError> {
    decode_for(payload, mac, &ClientId::Mac)
}

/// Decodes the UDP payload of a message to the client with these identifiers.
pub(crate) fn decode_for(
    payload: &[u8],
    mac: MacAddress,
    client_id: &ClientId,
) -> Result<ServerMessage, DecodeError> {
    let Some((header, _)) = payload.split_first_chunk::<OPTIONS>() else {
        return Err(DecodeError::TooShort(payload.len()));
    };
    if header[..3] != [BOOTREPLY, ETHERNET, MAC_LENGTH] {
        return Err(DecodeError::NotAReply);
    }
    if header[CHADDR] != mac.0 {
        return Err(DecodeError::OtherClient);
    }
    if header[COOKIE] != MAGIC_COOKIE {
        return Err(DecodeError::NoCookie);
    }
    let options = Options::parse(payload)?;
    let kind = match options.fixed(53) {
        Some([2]) => MessageKind::Offer,
        Some([5]) => MessageKind::Ack,
        Some([6]) => MessageKind::Nak,
        Some(_) | None => return Err(DecodeError::NoType),
    };
    let sent = client_identifier(mac, client_id);
    if options
        .get(61)
        .is_some_and(|id| Some(id) != sent.as_deref())
    {
        return Err(DecodeError::OtherIdentifier);
    }
    Ok(ServerMessage {
        kind,
        xid: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        address: Ipv4Addr::new(header[16], header[17], header[18], header[19]),
        server: options.address(54),
        relay: Some(Ipv4Addr::new(
            header[24], header[25], header[26], header[27],
        ))
        .filter(is_host),
        options,
    })
}

/// Returns the client identifier. By default it is hardware type and address, as the PXE
/// ROM sends them. The server then grants the address that the machine booted with.
fn client_identifier(mac: MacAddress, client_id: &ClientId) -> Option<Vec<u8>> {
    match client_id {
        ClientId::Mac => Some([&[ETHERNET], &mac.0[..]].concat()),
        ClientId::None => None,
        ClientId::Bytes(bytes) => Some(bytes.clone()),
    }
}

/// The fields in which the client's messages differ.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientMessage {
    pub(crate) kind: MessageKind,
    pub(crate) xid: u32,
    pub(crate) secs: u16,
    /// Broadcast flag: the server answers by broadcast.
    pub(crate) broadcast: bool,
    /// The address in use (RENEWING, REBINDING, RELEASE), else 0.0.0.0. Also the source
    /// address of the packet.
    pub(crate) ciaddr: Ipv4Addr,
    /// Requested address (option 50).
    pub(crate) requested: Option<Ipv4Addr>,
    /// Server identifier (option 54).
    pub(crate) server: Option<Ipv4Addr>,
}

impl ClientMessage {
    /// Returns a message without optional fields.
    pub(crate) fn new(kind: MessageKind, xid: u32) -> Self {
        Self {
            kind,
            xid,
            secs: 0,
            broadcast: false,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            requested: None,
            server: None,
        }
    }

    /// Returns the UDP payload, padded to the minimum length of BOOTP.
    pub(crate) fn encode(
        &self,
        mac: MacAddress,
        identity: &Identity,
        name: Option<&ClientName>,
    ) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::with_capacity(MINIMUM_LENGTH);
        bytes.extend([BOOTREQUEST, ETHERNET, MAC_LENGTH, 0]);
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend(self.secs.to_be_bytes());
        bytes.extend([if self.broadcast { BROADCAST } else { 0 }, 0]);
        bytes.extend(self.ciaddr.octets());
        bytes.resize(CHADDR.start, 0);
        bytes.extend(mac.0);
        bytes.resize(COOKIE.start, 0);
        bytes.extend(MAGIC_COOKIE);
        // An encoder overwrites its buffer from the beginning.
        let mut options = Vec::new();
        let mut encoder = Encoder::new(&mut options);
        for option in self.options(mac, identity, name) {
            option.encode(&mut encoder)?;
        }
        DhcpOption::End.encode(&mut encoder)?;
        bytes.extend(options);
        if bytes.len() < MINIMUM_LENGTH {
            bytes.resize(MINIMUM_LENGTH, 0);
        }
        Ok(bytes)
    }

    /// Returns the options that RFC 2131, table 5 permits in this message.
    fn options(
        &self,
        mac: MacAddress,
        identity: &Identity,
        name: Option<&ClientName>,
    ) -> Vec<DhcpOption> {
        let client_id = client_identifier(mac, &identity.client_id);
        let mut options = vec![DhcpOption::MessageType(self.kind.wire())];
        options.extend(client_id.map(DhcpOption::ClientIdentifier));
        options.extend(self.requested.map(DhcpOption::RequestedIpAddress));
        options.extend(self.server.map(DhcpOption::ServerIdentifier));
        if matches!(self.kind, MessageKind::Discover | MessageKind::Request) {
            options.push(DhcpOption::MaxMessageSize(MAXIMUM_LENGTH));
            let vendor = identity.vendor_class.as_ref();
            options.extend(vendor.map(|class| unknown(VENDOR_CLASS, class.as_bytes().to_vec())));
            let user = identity.user_class.as_ref();
            options.extend(user.map(|class| unknown(USER_CLASS, class.user_class())));
            options.extend(name.and_then(name_option));
            options.push(DhcpOption::ParameterRequestList(
                PARAMETERS.into_iter().map(OptionCode::from).collect(),
            ));
        }
        options
    }
}

fn unknown(code: u8, data: Vec<u8>) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), data))
}

/// Returns option 12 or 81, of which a client sends one (RFC 4702, section 3.1).
/// Returns `None` for a name without a wire format.
fn name_option(name: &ClientName) -> Option<DhcpOption> {
    match name {
        ClientName::Host(name) => Some(DhcpOption::Hostname(name.clone())),
        ClientName::Fqdn(name) => {
            // The two RCODE fields are zero from a client.
            let mut data = vec![FQDN_FLAGS, 0, 0];
            for label in name.split('.') {
                if !(1..=MAXIMUM_LABEL).contains(&label.len()) {
                    return None;
                }
                data.push(u8::try_from(label.len()).ok()?);
                data.extend(label.bytes());
            }
            if name.contains('.') {
                data.push(0);
            }
            Some(unknown(CLIENT_FQDN, data))
        }
    }
}
