//! Defines the identifiers of journal messages, which `units/systemd/catalog` explains.
//! Logs the messages that concern several modules.

use std::net::Ipv4Addr;

use buildos_dhcp::address_conflict::Report;
use buildos_dhcp::{Event, Lease};

use crate::history::GONE;
use crate::uplink::candidate::Candidate;
use crate::uplink::notice::Notice;

/// A lease was granted.
pub const BOUND: &str = "3a4d2f0d9c5e4be19c0a3a34b55f1b6a";
/// A lease was extended or confirmed.
pub const RENEWED: &str = "b7a65f0a3d554dd3a6b7f5c2e8c61f0d";
/// A lease ended.
pub const LOST: &str = "5e1c9b7f8a0240b6b2c4d09e3f7a1d58";
/// No server confirmed a resumed lease, which remains in use.
pub const UNCONFIRMED: &str = "94f1f0f6d2c64f7e8b1e0b9d7c3a2e15";
/// Another NIC took br0 over.
pub const REPLACED: &str = "46d1c1cf3cbd4b0ea4a5e4ed0b83b0ce";
/// br0 moved to another NIC of the same LAN.
pub const TAKEN_OVER: &str = "a4d3c9e1b7584f06932ce8d15f60b27a";
/// br0 has a port for IPv6 only.
pub const IPV6_ONLY: &str = "c07d2b5e94a34f1c8be6f3a1d5927084";
/// The lease ended because the host was moved to another network.
pub const MOVED: &str = "8f0d3a5c6e914b27a1d4c0b97f52e638";
/// br0 has the static address, as no server grants a lease.
pub const STATIC: &str = "c2a9de0e6cbb4d0f9f9fb8a4d7a1c35e";
/// br0 keeps the address of an expired lease.
pub const KEPT: &str = "0d8f4b52a7e14c6fb0a95dd1e0f6728b";
/// Another host has the address that br0 has, or would have, without a lease.
pub const FALLBACK_CLAIMED: &str = "7be1f0a93c5a4d2d86c04a1f5e92d7b3";
/// A server granted a lease, with a different address than br0 had without it.
pub const FALLBACK_ENDED: &str = "a45d7c1f28e64be3972f60b8c1d3e9fa";
/// The gateway does not answer any more.
pub const GATEWAY_SILENT: &str = "b1c7e90d24f84a3f9d6e5a08c3712fb4";
/// The gateway answers again.
pub const GATEWAY_ANSWERS: &str = "2e6f4b8097c14d5eb3a2f1d09c8e7a65";
/// netd refused a server's message, or a server did not grant its offer.
pub const REFUSED: &str = "e0b3c8d1a7f94c5cb6d2f1e4a9078b63";
/// Another host claims the address of br0, which netd keeps.
pub const CONTESTED: &str = "b4c30b76a4764c599b011671668df086";
/// A router does proxy ARP.
pub const PROXY_ARP: &str = "597ab9d38d844c758b8f3ce1c77c4858";
/// The candidates or their carrier changed.
pub const CANDIDATE: &str = "1f8e7d6c5b4a49389271605f4e3d2c1b";
/// The private network changed.
pub const PRIVATE: &str = "7c2f9d1e6b3a4850a1f4c8e7d0b95263";
/// No private network is free.
pub const OVERLAP: &str = "f21e6c0d8a7b4935b0c4d96e1fa8725d";
/// The kernel refused an operation.
pub const KERNEL: &str = "d95b0e3c7a1f4268be90f2d4c6a8173e";
/// netd undid a change by another program.
pub const REPAIRED: &str = "0f6b7a52e9c84d31b4a05d8e2c71f396";
/// A file in `/run` cannot be written.
pub const FILE: &str = "68a0d4f2c1b94e7f9d3c5e8b7a60f142";
/// Another program configures the network; netd does not start.
pub const OTHER_MANAGER: &str = "4c0d1a7be52f4b6d9f3a86e1c7d05b28";

/// Logs an event of a DHCP client.
pub fn client_event(nic: &Candidate, event: &Event) {
    let interface = nic.name.as_str();
    match event {
        Event::Offered { server, address } => {
            tracing::debug!(interface, "{interface}: OFFER of {address} from {server}");
        }
        Event::Refused {
            kind,
            server,
            reason,
        } => {
            let server = server
                .map(|server| format!(" from {server}"))
                .unwrap_or_default();
            tracing::warn!(
                message_id = REFUSED,
                interface,
                "{interface}: {kind}{server} refused: {reason}"
            );
        }
        Event::RequestFailed { server, reason } => {
            tracing::warn!(
                message_id = REFUSED,
                interface,
                "{interface}: no lease from {server}: {reason}"
            );
        }
        Event::Bound(lease) => granted(BOUND, interface, "bound to", lease),
        Event::Renewed(lease) => granted(RENEWED, interface, "extended", lease),
        Event::Unconfirmed(lease) => tracing::warn!(
            message_id = UNCONFIRMED,
            interface,
            buildos_address = %lease.address,
            "{interface}: no server confirmed {}; it is used until its lease ends",
            lease.address
        ),
        Event::Lost { lease, reason } => tracing::warn!(
            message_id = LOST,
            interface,
            buildos_address = %lease.address,
            "{interface}: lost the lease of {}: {reason}",
            lease.address
        ),
    }
}

/// Logs a finding about another host and the address of a client.
pub fn report(nic: &Candidate, address: Ipv4Addr, report: Report) {
    let interface = nic.name.as_str();
    match report {
        Report::Contested(by) => tracing::warn!(
            message_id = CONTESTED,
            interface,
            buildos_address = %address,
            buildos_mac = %by,
            "{interface}: {by} claims {address}, too; this host keeps and defends it"
        ),
        Report::ProxyArp(by) => tracing::warn!(
            message_id = PROXY_ARP,
            interface,
            buildos_address = %address,
            buildos_mac = %by,
            "{interface}: {by} answers ARP for {address} and for addresses that no host has; \
             its claims are ignored (detect_conflicts)"
        ),
    }
}

/// Logs that a NIC went, and its lease with it.
pub fn gone(nic: &Candidate, lease: &Lease) {
    let interface = nic.name.as_str();
    tracing::warn!(
        message_id = LOST,
        interface,
        buildos_address = %lease.address,
        "{interface}: lost {}{}: {GONE}",
        if lease.is_configured() { "the static address " } else { "the lease of " },
        lease.address
    );
}

/// Logs a decision of the election about a NIC.
pub fn notice(nic: &Candidate, notice: &Notice) {
    let interface = nic.name.as_str();
    match notice {
        Notice::Replaced { lease, by, reason } => tracing::info!(
            message_id = REPLACED,
            interface,
            buildos_address = %lease.address,
            "{interface}: {by} is the uplink now: {reason}; the lease of {} ended",
            lease.address
        ),
        Notice::Moved {
            lease,
            server,
            network,
        } => tracing::warn!(
            message_id = MOVED,
            interface,
            buildos_address = %lease.address,
            buildos_server = %server,
            "{interface}: the lease of {} ended: neither its server nor its gateway answers, \
             and {server} offers an address of {network}",
            lease.address
        ),
        Notice::FallbackUsed(lease) => tracing::warn!(
            message_id = STATIC,
            interface,
            buildos_address = %lease.address,
            "{interface}: no server grants a lease; br0 has the static address {}/{}",
            lease.address,
            lease.prefix
        ),
        Notice::Kept(lease) => tracing::warn!(
            message_id = KEPT,
            interface,
            buildos_address = %lease.address,
            buildos_server = %lease.server,
            "{interface}: the lease of {} expired; br0 keeps the address (keep_expired)",
            lease.address
        ),
        Notice::FallbackClaimed { address, by } => tracing::warn!(
            message_id = FALLBACK_CLAIMED,
            interface,
            buildos_address = %address,
            buildos_mac = %by,
            "{interface}: br0 does not have {address} without a lease: {by} has it"
        ),
        Notice::FallbackEnded { address, granted } => tracing::info!(
            message_id = FALLBACK_ENDED,
            interface,
            buildos_address = %granted,
            "{interface}: br0 has {granted} by a lease instead of {address}"
        ),
        Notice::TakenOver {
            lease,
            from,
            reason,
            confirmed_by,
        } => tracing::warn!(
            message_id = TAKEN_OVER,
            interface,
            buildos_address = %lease.address,
            "{interface}: takes br0 over from {from} ({reason}) with the lease of {}: \
             {confirmed_by}",
            lease.address
        ),
        Notice::Ipv6Only => tracing::info!(
            message_id = IPV6_ONLY,
            interface,
            "{interface}: becomes the port of br0 for IPv6, as no DHCP server grants a lease"
        ),
        Notice::GatewaySilent(gateway) => tracing::warn!(
            message_id = GATEWAY_SILENT,
            interface,
            buildos_gateway = %gateway,
            "{interface}: gateway {gateway} does not answer ARP"
        ),
        Notice::GatewayAnswers(gateway) => tracing::info!(
            message_id = GATEWAY_ANSWERS,
            interface,
            buildos_gateway = %gateway,
            "{interface}: gateway {gateway} answers ARP again"
        ),
    }
}

/// Logs which candidates appeared, disappeared, or changed their carrier.
pub fn candidates_changed(before: &[&Candidate], now: &[Candidate]) {
    for candidate in now {
        let former = before.iter().find(|c| c.index == candidate.index);
        let change = match (former.map(|c| c.carrier), candidate.carrier) {
            (Some(old), new) if old == new => continue,
            (_, true) => "carrier",
            (Some(_), false) => "carrier lost",
            (None, false) => "no carrier",
        };
        candidate_changed(candidate, change);
    }
    for candidate in before {
        if now.iter().all(|c| c.index != candidate.index) {
            candidate_changed(candidate, "gone");
        }
    }
}

fn candidate_changed(candidate: &Candidate, change: &str) {
    let interface = candidate.name.as_str();
    tracing::info!(message_id = CANDIDATE, interface, "{interface}: {change}");
}

/// Logs that netd undid a change. `by` is the netlink port of its author, normally the
/// process id.
pub fn repaired(operation: &str, by: Option<u32>) {
    match by {
        Some(by) => tracing::warn!(
            message_id = REPAIRED,
            buildos_changed_by = by,
            "repaired after a change by process {by}: {operation}"
        ),
        None => tracing::warn!(
            message_id = REPAIRED,
            "repaired after a change by an unknown process: {operation}"
        ),
    }
}

fn granted(message_id: &str, interface: &str, change: &str, lease: &Lease) {
    let term = match lease.term {
        Some(term) => format!("lease {} s", term.lease.as_secs()),
        None => "lease without end".to_owned(),
    };
    tracing::info!(
        message_id,
        interface,
        buildos_address = %lease.address,
        buildos_server = %lease.server,
        "{interface}: {change} {}/{} by {}, {term}",
        lease.address,
        lease.prefix,
        lease.server,
    );
}
