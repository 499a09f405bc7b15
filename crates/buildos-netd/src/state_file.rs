//! Encodes and decodes `/run/buildos/netd/state.json`: the status for programs that do
//! not use the bus, and the uplink that a restarted netd resumes. The state volume keeps the
//! file for the next boot, see buildos-volumes(8).

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use buildos_dhcp::Lease;
use buildos_service::file::read_bounded;
use buildos_types::MacAddress;
use serde::{Deserialize, Serialize};

use crate::reconcile::FormerUplink;
use crate::status::Status;

/// Bytes of a file of the state volume.
const LIMIT: usize = 1 << 20;
/// Identifies the boot (random(4)). The times of a lease count from boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The uplink that a restarted netd of the same boot resumes.
#[derive(Serialize, Deserialize)]
struct Resume {
    boot_id: String,
    /// Hardware address of the port of br0.
    uplink: MacAddress,
    /// Hardware address of br0, if another NIC had the lease first.
    #[serde(default)]
    identity: Option<MacAddress>,
    /// Hardware address of the gateway, if it answered.
    #[serde(default)]
    gateway_mac: Option<MacAddress>,
    lease: Lease,
}

#[derive(Serialize)]
struct File<'a> {
    #[serde(flatten)]
    status: &'a Status,
    resume: Option<Resume>,
}

#[derive(Deserialize)]
struct Saved {
    resume: Option<Resume>,
}

/// Returns the content of the file.
#[must_use]
pub fn encode(status: &Status) -> Vec<u8> {
    let identity = status.uplink.as_ref().map(|(_, mac)| *mac);
    let resume = status
        .port_mac
        .zip(status.lease.as_ref())
        .map(|(mac, lease)| Resume {
            boot_id: boot_id(),
            uplink: mac,
            identity: identity.filter(|identity| *identity != mac),
            gateway_mac: status.gateway_mac,
            lease: lease.clone(),
        });
    // JSON fails only for maps whose keys are not strings; there are none.
    serde_json::to_vec(&File { status, resume }).unwrap_or_default()
}

/// Returns the uplink that an earlier netd of this boot saved. Ignores unreadable files.
#[must_use]
pub fn read(path: &Path) -> Option<FormerUplink> {
    decode(&fs::read(path).ok()?, &boot_id())
}

/// Returns the uplink that the state volume has kept from the boot before.
#[must_use]
pub fn read_former_boot(path: &Path) -> Option<FormerUplink> {
    decode_former_boot(&read_bounded(path, LIMIT).ok()?, &boot_id())
}

fn decode(bytes: &[u8], boot_id: &str) -> Option<FormerUplink> {
    uplink(bytes, |saved| saved == boot_id)
}

fn decode_former_boot(bytes: &[u8], boot_id: &str) -> Option<FormerUplink> {
    uplink(bytes, |saved| saved != boot_id)
}

fn uplink(bytes: &[u8], is_wanted: impl Fn(&str) -> bool) -> Option<FormerUplink> {
    let saved: Saved = serde_json::from_slice(bytes).ok()?;
    let resume = saved.resume.filter(|resume| is_wanted(&resume.boot_id))?;
    Some(FormerUplink {
        mac: resume.uplink,
        identity: resume.identity,
        gateway_mac: resume.gateway_mac,
        lease: resume.lease,
    })
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
    fn state_file_of_same_boot_returns_lease() {
        let former = decode(&encode(&online()), &boot_id()).unwrap();
        assert_eq!(Some(former.lease), online().lease);
        assert_eq!(former.mac, "de:ad:be:ef:b8:da".parse().unwrap());
        assert_eq!(former.identity, None);
    }

    #[test]
    fn state_file_keeps_identity_of_other_nic() {
        let nic = MacAddress([2, 0, 0, 0, 0, 7]);
        let mut status = online();
        status.port_mac = Some(nic);
        let former = decode(&encode(&status), &boot_id()).unwrap();
        assert_eq!(former.mac, nic);
        assert_eq!(former.identity, Some("de:ad:be:ef:b8:da".parse().unwrap()));
    }

    #[test]
    fn state_file_of_other_boot_without_lease_or_damaged_is_ignored() {
        assert_eq!(decode(&encode(&online()), "another boot"), None);
        assert_eq!(decode(&encode(&offline()), &boot_id()), None);
        assert_eq!(decode(b"{\"resume\": {\"boot_id\"", &boot_id()), None);
        assert_eq!(decode(b"", &boot_id()), None);
    }

    #[test]
    fn state_file_of_other_boot_is_that_of_the_boot_before() {
        let former = decode_former_boot(&encode(&online()), "another boot").unwrap();
        assert_eq!(Some(former.lease), online().lease);
        assert_eq!(decode_former_boot(&encode(&online()), &boot_id()), None);
        assert_eq!(
            decode_former_boot(&encode(&offline()), "another boot"),
            None
        );
        assert_eq!(decode_former_boot(b"{", "another boot"), None);
    }
}
