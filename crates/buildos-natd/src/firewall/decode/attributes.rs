//! Iterates over netlink attributes as nf_tables nests them; its numbers are
//! big-endian.

use netlink_packet_core::{DecodeError, NLA_HEADER_SIZE, NlasIterator, parse_string, parse_u32_be};

/// Returns the numbers in the attributes of these kinds.
pub(super) fn numbers<const N: usize>(
    attributes: &[u8],
    kinds: [u16; N],
) -> Result<[Option<u32>; N], DecodeError> {
    let mut found = [None; N];
    each(attributes, |kind, value| {
        for (expected, found) in kinds.iter().zip(&mut found) {
            if *expected == kind {
                *found = Some(parse_u32_be(value)?);
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// Calls `visit` with the kind and value of each attribute.
pub(super) fn each<'a>(
    attributes: &'a [u8],
    mut visit: impl FnMut(u16, &'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let kind = attribute.kind();
        let length = attribute.length() as usize;
        // `value()` borrows from the iterator's item, which ends here.
        let value = attribute
            .into_inner()
            .get(NLA_HEADER_SIZE..length)
            .unwrap_or_default();
        visit(kind, value)?;
    }
    Ok(())
}

/// Parses a string with or without a final NUL.
pub(super) fn text(value: &[u8]) -> Result<String, DecodeError> {
    parse_string(value)
}

/// `NFTA_DATA_VALUE`.
pub(super) const DATA_VALUE: u16 = 1;
// enum nft_expr_attributes
pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;

/// Returns `NFTA_DATA_VALUE` of a nested `nft_data_attributes`.
pub(super) fn data_value(attributes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut found = Vec::new();
    each(attributes, |kind, value| {
        if kind == DATA_VALUE {
            found = value.to_vec();
        }
        Ok(())
    })?;
    Ok(found)
}

/// Returns the name of an expression, and its attributes.
pub(super) fn named_data(attributes: &[u8]) -> Result<(String, &[u8]), DecodeError> {
    let (mut name, mut data) = (String::new(), &[][..]);
    each(attributes, |kind, value| {
        match kind {
            EXPRESSION_NAME => name = text(value)?,
            EXPRESSION_DATA => data = value,
            _ => {}
        }
        Ok(())
    })?;
    Ok((name, data))
}

/// Encodes an attribute with padding, as the kernel does.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (NLA_HEADER_SIZE + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
