//! Defines Ethernet hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 48-bit hardware address (EUI-48), displayed as `aa:bb:cc:dd:ee:ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

/// The text is not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address such as de:ad:be:ef:b8:da or 01-de-ad-be-ef-b8-da")]
pub struct InvalidMacAddress(pub String);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = InvalidMacAddress;

    /// Parses six octets separated by `:` or `-`.
    ///
    /// A leading octet 01, the hardware type that PXELINUX puts into `BOOTIF=`
    /// (`ipappend 2`), is accepted and dropped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || InvalidMacAddress(text.to_owned());
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
    type Error = InvalidMacAddress;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_address_with_either_separator_or_bootif_prefix_is_parsed() {
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
    fn mac_address_malformed_is_refused() {
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
