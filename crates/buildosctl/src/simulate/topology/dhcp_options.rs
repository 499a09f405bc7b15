//! Encodes DHCP options as in a message.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Deserialize;

/// A domain name of option 81 (RFC 4702): flags, two unused octets, then labels.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Fqdn(pub(super) Vec<u8>);

impl TryFrom<String> for Fqdn {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let mut bytes = vec![0x04, 0, 0];
        for label in name.trim_end_matches('.').split('.') {
            let length = u8::try_from(label.len()).unwrap_or(u8::MAX);
            if !(1..=63).contains(&length) {
                return Err(format!("{label:?} in {name:?} is not a label of a name"));
            }
            bytes.push(length);
            bytes.extend(label.bytes());
        }
        bytes.push(0);
        Ok(Self(bytes))
    }
}

/// A classless route (RFC 3442), such as `10.0.0.0/8 via 192.0.2.254`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Via(pub(super) Ipv4Net, pub(super) Ipv4Addr);

impl TryFrom<String> for Via {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let route = text.split_once(" via ").and_then(|(net, gateway)| {
            let net: Ipv4Net = net.trim().parse().ok()?;
            Some(Self(net.trunc(), gateway.trim().parse().ok()?))
        });
        route.ok_or(format!(
            "{text:?} is not a route such as \"10.0.0.0/8 via 192.0.2.254\""
        ))
    }
}

impl Via {
    pub(super) fn encode(&self) -> Vec<u8> {
        let prefix = self.0.prefix_len();
        let significant = usize::from(prefix.div_ceil(8));
        let mut bytes = vec![prefix];
        bytes.extend(&self.0.network().octets()[..significant]);
        bytes.extend(self.1.octets());
        bytes
    }
}

/// Bytes in hexadecimal, such as `05dc`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Hex(pub(super) Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let pairs = text.as_bytes().chunks(2).map(|pair| {
            let digits = std::str::from_utf8(pair)
                .ok()
                .filter(|pair| pair.len() == 2)?;
            digits
                .bytes()
                .all(|b| b.is_ascii_hexdigit())
                .then_some(())?;
            u8::from_str_radix(digits, 16).ok()
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        bytes
            .filter(|bytes| bytes.len() <= 255)
            .map(Self)
            .ok_or(format!(
                "{text:?} is not an option: pairs of hexadecimal digits, 255 at most"
            ))
    }
}

/// Number of an option, parsed from text because TOML keys are text.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Code(pub(super) u8);

impl TryFrom<String> for Code {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let code = text.parse().ok().filter(|code| (1..=254).contains(code));
        code.map(Self)
            .ok_or(format!("{text:?} is not an option from 1 to 254"))
    }
}
