//! Defines how a client identifies itself to servers, which may choose address and options
//! by it.

use serde::Deserialize;

/// Longest option (RFC 2132, section 2).
const LONGEST_OPTION: usize = 255;
/// Shortest client identifier (RFC 2132, section 9.14).
const SHORTEST_IDENTIFIER: usize = 2;

/// Identification of a client, in DISCOVERs and REQUESTs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor class identifier (option 60).
    pub vendor_class: Option<ClassName>,
    /// User class (option 77).
    pub user_class: Option<ClassName>,
    /// Client identifier (option 61), also in DECLINEs and RELEASEs.
    pub client_id: ClientId,
}

/// The name of a class: 1 to 254 printable ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ClassName(String);

impl ClassName {
    /// Returns the name as the single class of option 77 (RFC 3004, section 4).
    pub(crate) fn user_class(&self) -> Vec<u8> {
        // The constructor checks the length.
        let length = u8::try_from(self.0.len()).unwrap_or(u8::MAX);
        [&[length], self.0.as_bytes()].concat()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The reason why a text is not a class name or a client identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text is not a class name.
    #[error("a class name has 1 to 254 printable ASCII characters")]
    ClassName,
    /// The text is not a client identifier.
    #[error("a client identifier is \"mac\", \"none\", or 2 to 255 bytes in hexadecimal")]
    ClientId,
}

impl TryFrom<String> for ClassName {
    type Error = IdentityError;

    fn try_from(name: String) -> Result<Self, IdentityError> {
        let is_printable = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        // Option 77 adds a byte.
        match is_printable && (1..LONGEST_OPTION).contains(&name.len()) {
            true => Ok(Self(name)),
            false => Err(IdentityError::ClassName),
        }
    }
}

/// A client identifier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ClientId {
    /// Hardware type and hardware address, as most PXE ROMs send them.
    #[default]
    Mac,
    /// No option 61, as some UEFI firmware: servers then identify the client by its hardware
    /// address.
    None,
    /// These bytes, the type first: 255 for a DUID (RFC 4361), 0 for any other.
    Bytes(Vec<u8>),
}

impl TryFrom<String> for ClientId {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        match text.as_str() {
            "mac" => return Ok(Self::Mac),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |pair: &[u8]| match *pair {
            [high, low] => u8::try_from((digit(high)? << 4) | digit(low)?).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        bytes
            .filter(|bytes| (SHORTEST_IDENTIFIER..=LONGEST_OPTION).contains(&bytes.len()))
            .map(Self::Bytes)
            .ok_or(IdentityError::ClientId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_id_is_mac_none_or_hexadecimal_bytes() {
        let parse = |text: &str| ClientId::try_from(text.to_owned());
        assert_eq!(parse("mac"), Ok(ClientId::Mac));
        assert_eq!(parse("none"), Ok(ClientId::None));
        let bytes = Ok(ClientId::Bytes(vec![0xff, 0x00, 0x1a]));
        assert_eq!(parse("ff:00:1A"), bytes);
        assert_eq!(parse("ff001a"), bytes);
        assert!(parse(&"00".repeat(255)).is_ok());
        for bad in ["", "ff", "ff:0", "ff:zz", "MAC", &"00".repeat(256)] {
            assert_eq!(parse(bad), Err(IdentityError::ClientId), "{bad:?}");
        }
    }

    #[test]
    fn class_name_is_printable_and_fits_into_an_option() {
        let parse = |text: &str| ClassName::try_from(text.to_owned());
        assert!(parse("build host 7").is_ok() && parse(&"a".repeat(254)).is_ok());
        for bad in ["", "a\nb", "café", &"a".repeat(255)] {
            assert_eq!(parse(bad), Err(IdentityError::ClassName), "{bad:?}");
        }
        assert_eq!(parse("ab").unwrap().user_class(), b"\x02ab");
    }
}
