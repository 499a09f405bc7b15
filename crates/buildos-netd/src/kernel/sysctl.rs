//! Writes settings of links below `/proc/sys/net`
//! (Documentation/networking/ip-sysctl.rst).

use std::io;

use buildos_types::InterfaceName;

use super::error::KernelError;

/// `arp_ignore` of NICs: a NIC answers only for its own addresses, of which it normally has
/// none.
const ARP_IGNORE_OTHERS: i32 = 1;
/// `accept_ra` of br0: accepts router advertisements even if the host forwards packets, as
/// a host of virtual machines may.
const ACCEPT_RA_ALWAYS: i32 = 2;

/// Family, name and value of a setting.
type Setting = (&'static str, &'static str, i32);

/// Disables IPv6 and ARP replies for addresses of other links.
pub(super) const IPV6_AND_ARP_OFF: [Setting; 2] = [
    ("ipv6", "disable_ipv6", 1),
    ("ipv4", "arp_ignore", ARP_IGNORE_OTHERS),
];
/// Disables IPv6.
pub(super) const IPV6_OFF: [Setting; 1] = [("ipv6", "disable_ipv6", 1)];
/// Enables IPv6 with router advertisements.
pub(super) const IPV6_ON: [Setting; 2] = [
    ("ipv6", "accept_ra", ACCEPT_RA_ALWAYS),
    ("ipv6", "disable_ipv6", 0),
];

/// Returns true if an administrator disabled IPv6 for all links, or for new ones.
pub(super) fn is_ipv6_disabled() -> bool {
    ["all", "default"].iter().any(|links| {
        let path = format!("/proc/sys/net/ipv6/conf/{links}/disable_ipv6");
        std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
    })
}

/// Disables large receive offload of a NIC (LRO), as the kernel does when the NIC becomes a port
/// of a bridge. Some drivers reset the NIC for it, which must happen before the first lease. The
/// kernel also does it when a link begins to forward packets (`dev_disable_lro`).
pub(super) fn disable_lro(link: &InterfaceName) {
    let path = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
    if std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "0") {
        let written = std::fs::write(&path, "1").and_then(|()| std::fs::write(&path, "0"));
        if let Err(error) = written {
            tracing::debug!(%error, "cannot disable LRO of {link}");
        }
    }
}

/// Writes the settings in order. Skips those that do not exist: a kernel without IPv6 has
/// no settings for it.
pub(super) fn write(link: &InterfaceName, settings: &[Setting]) -> Result<(), KernelError> {
    for (family, name, value) in settings {
        let path = format!("/proc/sys/net/{family}/conf/{link}/{name}");
        match std::fs::write(&path, value.to_string()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(KernelError::Sysctl {
                    path,
                    value: *value,
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(())
}
