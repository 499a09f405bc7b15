//! `/run/buildos/netd/state.json`: the picture for whoever wants to read it
//! without the bus, and what netd needs to go on after its own restart.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use buildos_dhcp::Lease;
use serde::{Deserialize, Serialize};

use crate::mac::MacAddress;
use crate::status::Picture;

/// Identifies the boot; leases count in time since boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What a later netd of the same boot takes up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    boot_id: String,
    /// Hardware address of the port of br0.
    pub uplink: MacAddress,
    /// Its lease.
    pub lease: Lease,
}

#[derive(Serialize)]
struct File<'a> {
    #[serde(flatten)]
    picture: &'a Picture,
    resume: Option<Resume>,
}

#[derive(Deserialize)]
struct Saved {
    resume: Option<Resume>,
}

/// The text of the file.
#[must_use]
pub fn encode(picture: &Picture) -> Vec<u8> {
    let resume = picture
        .uplink
        .as_ref()
        .zip(picture.lease.as_ref())
        .map(|((_, mac), lease)| Resume {
            boot_id: boot_id(),
            uplink: *mac,
            lease: lease.clone(),
        });
    // Only a map with keys that are no strings could fail; there is none.
    serde_json::to_vec_pretty(&File { picture, resume }).unwrap_or_default()
}

/// What an earlier netd of this boot left, if it can be read.
#[must_use]
pub fn read(path: &Path) -> Option<Resume> {
    decode(&fs::read(path).ok()?, &boot_id())
}

fn decode(bytes: &[u8], boot_id: &str) -> Option<Resume> {
    let saved: Saved = serde_json::from_slice(bytes).ok()?;
    saved.resume.filter(|resume| resume.boot_id == boot_id)
}

fn boot_id() -> String {
    static ID: OnceLock<String> = OnceLock::new();
    let read = || fs::read_to_string(BOOT_ID).unwrap_or_default();
    ID.get_or_init(|| read().trim().to_owned()).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::{offline, online};

    #[test]
    fn a_later_netd_of_the_same_boot_takes_the_lease_up() {
        let resume = decode(&encode(&online()), &boot_id()).unwrap();
        assert_eq!(Some(resume.lease), online().lease);
        assert_eq!(resume.uplink, "de:ad:be:ef:b8:da".parse().unwrap());
    }

    #[test]
    fn another_boot_or_no_lease_or_rubbish_is_nothing_to_take_up() {
        assert_eq!(decode(&encode(&online()), "another boot"), None);
        assert_eq!(decode(&encode(&offline()), &boot_id()), None);
        assert_eq!(decode(b"{\"resume\": {\"boot_id\"", &boot_id()), None);
        assert_eq!(decode(b"", &boot_id()), None);
    }
}
