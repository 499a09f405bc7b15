//! Splits a message into options and joins the parts of each option.
//!
//! An option is a code, a length and its bytes (RFC 2132, section 2). Option 52
//! declares that options continue in the header fields `file` and `sname`. The parts
//! of an option are joined in the order options field, `file`, `sname` (RFC 3396).
//!
//! A message with a broken structure has no options: after a wrong length, the
//! remaining bytes mean nothing. The reader of each option checks its bytes, so that a
//! malformed option affects no other.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::Decodable;
use dhcproto::decoder::Decoder;
use dhcproto::v4::DhcpOption;
use serde::{Deserialize, Serialize};

/// Header fields that option 52 can declare to hold options.
const SNAME: core::ops::Range<usize> = 44..108;
const FILE: core::ops::Range<usize> = 108..236;
/// Offset of the options, after the header and the magic cookie.
pub(crate) const OPTIONS: usize = 240;

const PAD: u8 = 0;
const END: u8 = 255;
const OVERLOAD: u8 = 52;

/// A defect in the structure of the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// The message is shorter than a header with its cookie.
    #[error("message ends before its options")]
    TooShort,
    /// An option's length exceeds the rest of its field.
    #[error("option {0} is longer than the rest of the message")]
    PastTheEnd(u8),
    /// Option 52 is not 1, 2 or 3.
    #[error("option overload (52) is malformed")]
    BadOverload,
    /// A field that option 52 declares to hold options has no end mark.
    #[error("options in the file or sname field have no end mark")]
    NoEnd,
}

/// The bytes of each option, by code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// Splits the options of a BOOTP message.
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

    /// Adds the options of one field, and returns true if an end mark closed it.
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

    /// Returns the joined bytes of an option.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    /// Returns all options, ordered by code.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.0.iter().map(|(code, data)| (*code, data.as_slice()))
    }

    /// Returns an option of `N` bytes. Some servers send it more than once, with the same
    /// value.
    pub(crate) fn fixed<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        let data = self.get(code)?;
        let first = *data.first_chunk::<N>()?;
        let mut chunks = data.chunks(N);
        chunks.all(|chunk| *chunk == first).then_some(first)
    }

    /// Returns an option that holds one address.
    pub(crate) fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.fixed::<4>(code).map(Ipv4Addr::from)
    }

    /// Returns the host addresses in an option that lists one or more addresses.
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

    /// Returns an option that holds a 32-bit number.
    pub(crate) fn number(&self, code: u8) -> Option<u32> {
        self.fixed(code).map(u32::from_be_bytes)
    }

    /// Decodes an option, with `tail` appended to its bytes.
    ///
    /// dhcproto gets one option at a time, so that a malformed one affects no other.
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

/// Returns true unless the address is in "this network" (0/8), loopback (127/8),
/// multicast (224/4) or reserved (240/4, which includes the broadcast address).
pub(crate) fn is_host(address: &Ipv4Addr) -> bool {
    !matches!(address.octets()[0], 0 | 127 | 224..)
}

impl FromIterator<(u8, Vec<u8>)> for Options {
    fn from_iter<T: IntoIterator<Item = (u8, Vec<u8>)>>(options: T) -> Self {
        Self(options.into_iter().collect())
    }
}
