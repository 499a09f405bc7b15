//! Encodes names as elements of D-Bus object paths.

use std::fmt::Write as _;

/// Encodes a name as one element of a path. Bytes other than letters and digits become
/// `_` and two hexadecimal digits (sd_bus_path_encode(3)).
pub(crate) fn element(name: &str) -> String {
    let mut element = String::with_capacity(name.len());
    for (i, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (i > 0 && byte.is_ascii_digit()) {
            element.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(element, "_{byte:02x}");
        }
    }
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_is_encoded_as_by_systemd() {
        assert_eq!(
            element("buildos-bbot@a1.service"),
            "buildos_2dbbot_40a1_2eservice"
        );
        assert_eq!(element("1.mount"), "_31_2emount");
    }
}
