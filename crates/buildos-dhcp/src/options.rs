//! The options of a message, split and joined, not yet understood.
//!
//! Options are code, length, bytes (RFC 2132, section 2) and may continue in
//! the header's `file` and `sname` fields when option 52 says so. An option may
//! come in parts, which are joined in the order options field, `file`, `sname`
//! (RFC 3396). A message whose structure is broken is not read at all: what a
//! length past the end leaves behind is not what the server meant. Whether the
//! bytes of one option make sense is decided where it is used, for that option
//! alone.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::Decodable;
use dhcproto::decoder::Decoder;
use dhcproto::v4::DhcpOption;
use serde::{Deserialize, Serialize};

/// Fields of the message that option 52 may declare to hold options.
const SNAME: core::ops::Range<usize> = 44..108;
const FILE: core::ops::Range<usize> = 108..236;
/// Where the options begin: after the header and the magic cookie.
pub(crate) const OPTIONS: usize = 240;

const PAD: u8 = 0;
const END: u8 = 255;
const OVERLOAD: u8 = 52;

/// Why the options of a message cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// The message is shorter than a header with its cookie.
    #[error("message ends before its options")]
    TooShort,
    /// An option's length leads past the end of its field.
    #[error("option {0} is longer than what is left")]
    PastTheEnd(u8),
    /// Option 52 has a value other than 1, 2 and 3.
    #[error("option overload (52) is malformed")]
    BadOverload,
    /// A field declared to hold options has no end mark.
    #[error("options in the file or sname field do not end")]
    NoEnd,
}

/// Options by their code, each with all its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// Splits the options of a whole BOOTP message.
    pub fn parse(message: &[u8]) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        let field = message.get(OPTIONS..).ok_or(OptionsError::TooShort)?;
        options.split(field)?;
        let (file, sname) = match options.get(OVERLOAD) {
            None => (false, false),
            Some([1]) => (true, false),
            Some([2]) => (false, true),
            Some([3]) => (true, true),
            Some(_) => return Err(OptionsError::BadOverload),
        };
        for (used, range) in [(file, FILE), (sname, SNAME)] {
            let field = message.get(range).ok_or(OptionsError::TooShort)?;
            if used && !options.split(field)? {
                return Err(OptionsError::NoEnd);
            }
        }
        Ok(options)
    }

    /// Adds the options of one field; true when an end mark closed it.
    fn split(&mut self, mut field: &[u8]) -> Result<bool, OptionsError> {
        loop {
            match *field {
                [] => return Ok(false),
                [END, ..] => return Ok(true),
                [PAD, ref rest @ ..] => field = rest,
                [code] => return Err(OptionsError::PastTheEnd(code)),
                [code, length, ref rest @ ..] => {
                    let (data, rest) = rest
                        .split_at_checked(usize::from(length))
                        .ok_or(OptionsError::PastTheEnd(code))?;
                    self.0.entry(code).or_default().extend_from_slice(data);
                    field = rest;
                }
            }
        }
    }

    /// The bytes of an option, joined.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    /// All options, ordered by code.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.0.iter().map(|(code, data)| (*code, data.as_slice()))
    }

    /// An option that is one address.
    pub(crate) fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.get(code)?.try_into().ok()?;
        Some(octets.into())
    }

    /// An option that is a list of at least one address, without those that no
    /// host can have.
    pub(crate) fn hosts(&self, code: u8) -> Option<Vec<Ipv4Addr>> {
        let data = self.get(code)?;
        if data.is_empty() || data.len() % 4 != 0 {
            return None;
        }
        let addresses = data
            .chunks_exact(4)
            .map(|a| Ipv4Addr::new(a[0], a[1], a[2], a[3]));
        Some(addresses.filter(is_host).collect())
    }

    /// An option that is a number of 32 bits.
    pub(crate) fn number(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    /// An option as dhcproto understands it.
    ///
    /// Each is decoded alone, so that one that fails takes no other with it.
    /// `tail` is appended to its bytes.
    pub(crate) fn decode(&self, code: u8, tail: &[u8]) -> Option<DhcpOption> {
        let mut data = self.get(code)?.to_vec();
        data.extend_from_slice(tail);
        let mut wire = Vec::with_capacity(data.len() + 8);
        for part in data.chunks(usize::from(u8::MAX)) {
            wire.extend([code, u8::try_from(part.len()).ok()?]);
            wire.extend_from_slice(part);
        }
        wire.push(END);
        DhcpOption::decode(&mut Decoder::new(&wire)).ok()
    }
}

/// Whether a host can have this address: none of "this network" (0/8), loopback
/// (127/8), multicast (224/4), reserved (240/4) with the broadcast address.
pub(crate) fn is_host(address: &Ipv4Addr) -> bool {
    !matches!(address.octets()[0], 0 | 127 | 224..)
}

impl FromIterator<(u8, Vec<u8>)> for Options {
    fn from_iter<T: IntoIterator<Item = (u8, Vec<u8>)>>(options: T) -> Self {
        Self(options.into_iter().collect())
    }
}
