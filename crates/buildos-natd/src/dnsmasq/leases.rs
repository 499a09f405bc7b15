//! Reads dnsmasq's lease file: the machines that have an address.
//!
//! The fields of a line, separated by spaces (dnsmasq(8)):
//!
//! | field | content |
//! |---|---|
//! | 1 | end of the lease in seconds since 1970, 0 for never |
//! | 2 | MAC address |
//! | 3 | IPv4 address |
//! | 4 | host name, `*` if the machine sent none |
//! | 5 | client identifier, `*` if the machine sent none |
//!
//! Fields 4 and 5 are chosen by the machine and ignored. dnsmasq rewrites the file in
//! place, so the last line may be incomplete.

use std::io::{self, BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;

use buildos_service::file::{open_regular, too_large};
use buildos_types::MacAddress;

/// Limit of the lease file, bytes: 65,536 leases with the longest names and client
/// identifiers. dnsmasq's user writes the file.
const LIMIT: usize = 64 << 20;

/// A lease of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The leased address.
    pub address: Ipv4Addr,
    /// The machine's MAC address.
    pub mac: MacAddress,
    /// End of the lease in seconds since 1970, 0 for never.
    pub expires: u64,
}

/// Reads the leases, also that of the probe. Other and incomplete lines are skipped. The
/// file itself is never in memory as a whole.
///
/// # Errors
///
/// The file cannot be read, is not a regular file, or is too large.
pub fn read(path: &Path) -> io::Result<Vec<Lease>> {
    parse(open_regular(path)?, LIMIT)
}

/// Returns the leases in the first `limit` bytes, or an error if there are more bytes.
fn parse(text: impl io::Read, limit: usize) -> io::Result<Vec<Lease>> {
    let limit_and_one = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut text = BufReader::new(text.take(limit_and_one));
    let (mut leases, mut line, mut length) = (Vec::new(), Vec::new(), 0);
    loop {
        line.clear();
        length += text.read_until(b'\n', &mut line)?;
        if length > limit {
            return Err(too_large(limit));
        }
        if line.is_empty() {
            return Ok(leases);
        }
        leases.extend(lease(String::from_utf8_lossy(&line).trim_end_matches('\n')));
    }
}

fn lease(line: &str) -> Option<Lease> {
    let mut fields = line.split(' ');
    let (expires, mac, address) = (fields.next()?, fields.next()?, fields.next()?);
    // A line without these fields is incomplete.
    let (_name, _identifier) = (fields.next()?, fields.next()?);
    Some(Lease {
        address: address.parse().ok()?,
        // dnsmasq prefixes addresses of other hardware than Ethernet with their hardware
        // type.
        mac: mac.parse().ok()?,
        expires: expires.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leases(text: &str) -> Vec<Lease> {
        parse(text.as_bytes(), LIMIT).unwrap()
    }

    const FILE: &str = "\
1795683600 02:bd:01:00:00:07 172.23.4.5 * 01:02:bd:01:00:00:07
0 02:BD:01:00:00:08 172.23.4.6 my-name *
duid 00:01:00:01
1795683600 3ab2 fd00::1 * 00:01
";

    #[test]
    fn lease_lines_of_machines_are_parsed() {
        let lease = |address, mac: &str, expires| Lease {
            address: Ipv4Addr::from(address),
            mac: mac.parse().unwrap(),
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
    fn malformed_lines_are_skipped() {
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

    #[test]
    fn file_above_its_limit_is_refused() {
        assert_eq!(parse(FILE.as_bytes(), FILE.len()).unwrap().len(), 2);
        let error = parse(FILE.as_bytes(), FILE.len() - 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// A valid file with bytes changed, removed and inserted.
        #[test]
        fn damaged_file_yields_valid_leases_only(
            edits in proptest::collection::vec((0_usize..220, 0_u8..3, any::<u8>()), 0..12),
        ) {
            let mut bytes = FILE.as_bytes().to_vec();
            for (at, kind, byte) in edits {
                let at = at % (bytes.len() + 1);
                match kind {
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
            for lease in parse(&*bytes, LIMIT).unwrap() {
                let mac = lease.mac.to_string();
                prop_assert_eq!(mac.len(), 17);
                prop_assert!(mac.chars().all(|c| c == ':' || c.is_ascii_hexdigit()));
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(text: String) {
            let _ = leases(&text);
        }
    }
}
