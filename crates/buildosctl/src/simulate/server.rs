//! Simulates a DHCP server (RFC 2131, section 4.3) with the described behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{Instant, MessageKind, Options};
use buildos_types::MacAddress;
use ipnet::Ipv4Net;

use super::topology::{self, Behaviour};

/// Offsets of fields (RFC 2131, section 2).
const XID: std::ops::Range<usize> = 4..8;
const CIADDR: std::ops::Range<usize> = 12..16;
const YIADDR: std::ops::Range<usize> = 16..20;
const CHADDR: std::ops::Range<usize> = 28..34;
const COOKIE: std::ops::Range<usize> = 236..240;
/// `op`, `htype` and `hlen` of a reply to an Ethernet host.
const REPLY: [u8; 3] = [2, 1, 6];

const SUBNET_MASK: u8 = 1;
const REQUESTED_ADDRESS: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER: u8 = 54;
const END: u8 = 255;

/// A running server.
pub(crate) struct Server {
    spec: topology::Server,
    given: BTreeMap<MacAddress, Ipv4Net>,
    declined: BTreeSet<Ipv4Addr>,
}

/// The answer to a message.
pub(crate) struct Reply {
    /// OFFER, ACK or NAK.
    pub(crate) kind: MessageKind,
    /// The offered or granted address; [`None`] in a NAK.
    pub(crate) address: Option<Ipv4Net>,
    /// UDP payload.
    pub(crate) payload: Vec<u8>,
}

impl Server {
    pub(crate) fn new(spec: topology::Server) -> Self {
        Self {
            spec,
            given: BTreeMap::new(),
            declined: BTreeSet::new(),
        }
    }

    pub(crate) fn spec(&self) -> &topology::Server {
        &self.spec
    }

    /// Returns true if it receives messages to that address at that time since the start.
    pub(crate) fn receives(&self, at: Instant, destination: Ipv4Addr) -> bool {
        let alive = at >= self.spec.from.0 && self.spec.until.is_none_or(|until| at < until.0);
        alive && (destination.is_broadcast() || destination == self.spec.address)
    }

    /// Returns the answer to a message, if the server answers it.
    pub(crate) fn answer(&mut self, kind: MessageKind, message: &[u8]) -> Option<Reply> {
        let request = Request::parse(message)?;
        let is_addressed = request
            .server
            .is_none_or(|server| server == self.spec.address);
        let behaviour = self.spec.behaviour;
        match kind {
            MessageKind::Discover if behaviour != Behaviour::Silent => {
                let address = self.address_for(request.mac)?;
                Some(self.reply(MessageKind::Offer, &request, Some(address)))
            }
            MessageKind::Request => {
                let known = self.given.get(&request.mac).copied();
                let granted = known.filter(|net| request.address == Some(net.addr()));
                match (behaviour, granted) {
                    (Behaviour::Silent | Behaviour::OffersOnly, _) => None,
                    _ if !is_addressed => None,
                    (Behaviour::Good, Some(_)) => {
                        Some(self.reply(MessageKind::Ack, &request, granted))
                    }
                    (Behaviour::Good, None) if !self.spec.authoritative => None,
                    (Behaviour::Good | Behaviour::Denies, _) => {
                        Some(self.reply(MessageKind::Nak, &request, None))
                    }
                }
            }
            MessageKind::Decline if is_addressed => {
                self.declined.extend(request.address);
                self.given.remove(&request.mac);
                None
            }
            MessageKind::Release if is_addressed => {
                self.given.remove(&request.mac);
                None
            }
            MessageKind::Discover
            | MessageKind::Decline
            | MessageKind::Release
            | MessageKind::Offer
            | MessageKind::Ack
            | MessageKind::Nak => None,
        }
    }

    fn address_for(&mut self, mac: MacAddress) -> Option<Ipv4Net> {
        if let Some(known) = self.given.get(&mac) {
            return Some(*known);
        }
        let free = |net: &&Ipv4Net| {
            !self.declined.contains(&net.addr()) && !self.given.values().any(|given| given == *net)
        };
        let net = *self.spec.offers.iter().find(free)?;
        self.given.insert(mac, net);
        Some(net)
    }

    fn reply(&self, kind: MessageKind, request: &Request, address: Option<Ipv4Net>) -> Reply {
        let mut payload = vec![0; COOKIE.end];
        payload[..REPLY.len()].copy_from_slice(&REPLY);
        payload[XID].copy_from_slice(&request.xid);
        payload[CHADDR].copy_from_slice(&request.mac.0);
        payload[COOKIE].copy_from_slice(&[99, 130, 83, 99]);
        let type_of = match kind {
            MessageKind::Offer => 2,
            MessageKind::Ack => 5,
            MessageKind::Nak
            | MessageKind::Discover
            | MessageKind::Request
            | MessageKind::Decline
            | MessageKind::Release => 6,
        };
        let mut options = BTreeMap::new();
        options.insert(SERVER, self.spec.address.octets().to_vec());
        if let Some(net) = address {
            payload[YIADDR].copy_from_slice(&net.addr().octets());
            options.insert(SUBNET_MASK, net.netmask().octets().to_vec());
            options.extend(self.spec.options.clone());
        }
        options.retain(|code, _| !self.spec.without.contains(code));
        payload.extend([MESSAGE_TYPE, 1, type_of]);
        for (code, data) in &options {
            // Long options are split (RFC 3396).
            let parts: Vec<&[u8]> = match data.is_empty() {
                true => vec![&[]],
                false => data.chunks(255).collect(),
            };
            for part in parts {
                payload.extend([*code, u8::try_from(part.len()).unwrap_or(u8::MAX)]);
                payload.extend(part);
            }
        }
        payload.push(END);
        Reply {
            kind,
            address,
            payload,
        }
    }

    /// Returns the delay of an answer of that kind.
    pub(crate) fn delay(&self, kind: MessageKind) -> Duration {
        let offers = kind == MessageKind::Offer;
        let extra = self.spec.offer_delay.filter(|_| offers);
        extra.unwrap_or(self.spec.delay)
    }

    /// Returns its lease time in seconds, if its messages contain one.
    pub(crate) fn lease_seconds(&self) -> Option<u32> {
        let bytes = self.spec.options.get(&LEASE_TIME)?;
        Some(u32::from_be_bytes(bytes.as_slice().try_into().ok()?))
    }
}

/// The relevant fields of a client's message.
struct Request {
    xid: [u8; 4],
    mac: MacAddress,
    /// Option 54.
    server: Option<Ipv4Addr>,
    /// Option 50, or `ciaddr`.
    address: Option<Ipv4Addr>,
}

impl Request {
    fn parse(message: &[u8]) -> Option<Self> {
        let options = Options::parse(message).ok()?;
        let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
        let option = |code| options.get(code).and_then(address);
        let in_use = address(message.get(CIADDR)?).filter(|ciaddr| !ciaddr.is_unspecified());
        Some(Self {
            xid: message.get(XID)?.try_into().ok()?,
            mac: MacAddress(message.get(CHADDR)?.try_into().ok()?),
            server: option(SERVER),
            address: option(REQUESTED_ADDRESS).or(in_use),
        })
    }
}
