//! The machines that have an address: dnsmasq's file of leases.
//!
//! A line has the end of the lease (seconds since 1970; 0 is never), the
//! hardware address, the address, the name (`*` for none) and the client
//! identifier (`*` for none), with spaces between them; dnsmasq(8) writes the
//! file and rewrites it in place. What a machine chose itself, its name and its
//! identifier, is not looked at.

use std::net::Ipv4Addr;

/// A lease of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Hardware address, as `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// When it ends: seconds since 1970, 0 for never.
    pub expires: u64,
}

/// The leases in the text of the file. Lines that are none, as a line that is
/// just being written, are left out.
pub fn parse(text: &str) -> impl Iterator<Item = Lease> {
    text.lines().filter_map(lease)
}

fn lease(line: &str) -> Option<Lease> {
    let mut fields = line.split(' ');
    let (expires, mac, address) = (fields.next()?, fields.next()?, fields.next()?);
    // A line that ends before them is not finished.
    let (_name, _identifier) = (fields.next()?, fields.next()?);
    Some(Lease {
        address: address.parse().ok()?,
        mac: hardware(mac)?,
        expires: expires.parse().ok()?,
    })
}

/// An Ethernet address, which dnsmasq writes without its type (1).
fn hardware(text: &str) -> Option<String> {
    let mut octets = 0;
    for octet in text.split(':') {
        if octet.len() != 2 || !octet.chars().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        octets += 1;
    }
    (octets == 6).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leases(text: &str) -> Vec<Lease> {
        parse(text).collect()
    }

    const FILE: &str = "\
1795683600 02:bd:01:00:00:07 172.23.4.5 * 01:02:bd:01:00:00:07
0 02:BD:01:00:00:08 172.23.4.6 my-name *
duid 00:01:00:01
1795683600 3ab2 fd00::1 * 00:01
";

    #[test]
    fn leases_of_machines() {
        let lease = |address, mac: &str, expires| Lease {
            address: Ipv4Addr::from(address),
            mac: mac.to_owned(),
            expires,
        };
        assert_eq!(
            leases(FILE),
            [
                lease([172, 23, 4, 5], "02:bd:01:00:00:07", 1_795_683_600),
                lease([172, 23, 4, 6], "02:bd:01:00:00:08", 0),
            ]
        );
    }

    #[test]
    fn what_is_none_is_left_out() {
        for line in [
            "",
            "x",
            "1 02:bd:01:00:00:07",
            "1 02:bd:01:00:00:07 172.23.4.5 *",
            "1 02:bd:01:00:00:07 172.23.4 * *",
            "1 02:bd:01:00:00 172.23.4.5 * *",
            "1 06-02:bd:01:00:00:07 172.23.4.5 * *",
            "-1 02:bd:01:00:00:07 172.23.4.5 * *",
            "1  02:bd:01:00:00:07 172.23.4.5 * *",
            "99999999999999999999 02:bd:01:00:00:07 172.23.4.5 * *",
        ] {
            assert_eq!(leases(line), [], "{line}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// A good file with bytes changed, removed and put in.
        #[test]
        fn no_file_does_harm(
            edits in proptest::collection::vec((0_usize..220, 0_u8..3, any::<u8>()), 0..12),
        ) {
            let mut bytes = FILE.as_bytes().to_vec();
            for (at, what, byte) in edits {
                let at = at % (bytes.len() + 1);
                match what {
                    0 => bytes.insert(at, byte),
                    1 if at < bytes.len() => {
                        bytes.remove(at);
                    }
                    _ => {
                        if let Some(old) = bytes.get_mut(at) {
                            *old = byte;
                        }
                    }
                }
            }
            for lease in parse(&String::from_utf8_lossy(&bytes)) {
                prop_assert_eq!(lease.mac.len(), 17);
                prop_assert!(lease.mac.chars().all(|c| c == ':' || c.is_ascii_hexdigit()));
            }
        }

        #[test]
        fn nor_does_any_text(text: String) {
            let _ = leases(&text);
        }
    }
}
