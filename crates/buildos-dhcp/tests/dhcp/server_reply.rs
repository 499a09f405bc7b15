//! Builds the messages of servers byte by byte.

use std::net::Ipv4Addr;

use buildos_types::MacAddress;

use crate::host::MAC;

pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

const OFFER: u8 = 2;
const ACK: u8 = 5;
const NAK: u8 = 6;

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// The bytes before the options.
    pub(crate) header: Vec<u8>,
    options: Vec<(u8, Vec<u8>)>,
    /// Bytes after the options; an end mark by default.
    tail: Vec<u8>,
}

impl Reply {
    /// Returns a reply with header, message type and server identifier.
    fn new(kind: u8, server: Ipv4Addr) -> Self {
        let mut header = vec![0; 240];
        header[..3].copy_from_slice(&[2, 1, 6]);
        header[28..34].copy_from_slice(&MAC.0);
        header[236..].copy_from_slice(&[99, 130, 83, 99]);
        let options = vec![(53, vec![kind]), (54, server.octets().into())];
        Self {
            header,
            options,
            tail: vec![255],
        }
    }

    fn granting(kind: u8, server: Ipv4Addr) -> Self {
        Self::new(kind, server)
            .address(ADDRESS)
            .with(51, 3600u32.to_be_bytes())
            .with(1, [255, 255, 255, 0])
            .with(3, GATEWAY.octets())
    }

    pub(crate) fn offer() -> Self {
        Self::granting(OFFER, SERVER)
    }

    pub(crate) fn offer_of(server: Ipv4Addr) -> Self {
        Self::granting(OFFER, server)
    }

    pub(crate) fn ack() -> Self {
        Self::granting(ACK, SERVER)
    }

    pub(crate) fn ack_of(server: Ipv4Addr) -> Self {
        Self::granting(ACK, server)
    }

    pub(crate) fn nak() -> Self {
        Self::nak_of(SERVER)
    }

    pub(crate) fn nak_of(server: Ipv4Addr) -> Self {
        Self::new(NAK, server)
    }

    pub(crate) fn xid(mut self, xid: u32) -> Self {
        // XOR: a test that sets an id beforehand gets a wrong one.
        for (byte, value) in self.header[4..8].iter_mut().zip(xid.to_be_bytes()) {
            *byte ^= value;
        }
        self
    }

    pub(crate) fn address(mut self, address: Ipv4Addr) -> Self {
        self.header[16..20].copy_from_slice(&address.octets());
        self
    }

    pub(crate) fn chaddr(mut self, mac: MacAddress) -> Self {
        self.header[28..34].copy_from_slice(&mac.0);
        self
    }

    /// Sets bytes of the header.
    pub(crate) fn header(mut self, at: usize, bytes: &[u8]) -> Self {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn with(self, code: u8, data: impl Into<Vec<u8>>) -> Self {
        let mut reply = self.without(code);
        reply.options.push((code, data.into()));
        reply
    }

    /// Repeats an option.
    pub(crate) fn repeated(mut self, code: u8, data: impl Into<Vec<u8>>) -> Self {
        self.options.push((code, data.into()));
        self
    }

    pub(crate) fn without(mut self, code: u8) -> Self {
        self.options.retain(|(other, _)| *other != code);
        self
    }

    pub(crate) fn lasting(self, lease: u32) -> Self {
        self.with(51, lease.to_be_bytes())
    }

    pub(crate) fn tail(mut self, tail: &[u8]) -> Self {
        self.tail = tail.to_vec();
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.clone();
        for (code, data) in &self.options {
            bytes.extend([*code, u8::try_from(data.len()).unwrap()]);
            bytes.extend(data);
        }
        bytes.extend(&self.tail);
        bytes
    }
}
