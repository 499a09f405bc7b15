//! Ethernet hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 48-bit hardware address, shown as `aa:bb:cc:dd:ee:ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

/// The text is no hardware address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no hardware address such as de:ad:be:ef:b8:da or 01-de-ad-be-ef-b8-da")]
pub struct NotAMacAddress(String);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = NotAMacAddress;

    /// Six octets separated by `:` or `-`, or seven of which the first is the
    /// hardware type 01, as PXELINUX writes `BOOTIF=` with `ipappend 2`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || NotAMacAddress(text.to_owned());
        let octets = text
            .split([':', '-'])
            .map(|octet| {
                let digits = octet.len() == 2 && octet.bytes().all(|b| b.is_ascii_hexdigit());
                u8::from_str_radix(octet, 16)
                    .ok()
                    .filter(|_| digits)
                    .ok_or_else(error)
            })
            .collect::<Result<Vec<u8>, _>>()?;
        match octets.as_slice() {
            [a, b, c, d, e, g] | [1, a, b, c, d, e, g] => Ok(Self([*a, *b, *c, *d, *e, *g])),
            _ => Err(error()),
        }
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = NotAMacAddress;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_and_bootif() {
        let mac = MacAddress([0xde, 0xad, 0xbe, 0xef, 0xb8, 0xda]);
        for text in [
            "de:ad:be:ef:b8:da",
            "DE-AD-BE-EF-B8-DA",
            "01-de-ad-be-ef-b8-da",
        ] {
            assert_eq!(text.parse::<MacAddress>().unwrap(), mac, "{text}");
        }
        assert_eq!(mac.to_string(), "de:ad:be:ef:b8:da");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "de:ad:be:ef:b8",
            "20-de-ad-be-ef-b8-da",
            "de:ad:be:ef:b8:+a",
            "deadbeefb8da",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
