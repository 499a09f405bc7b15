//! Journal messages: the identifiers that `units/systemd/catalog` explains,
//! and the one place where DHCP events become text.

use buildos_dhcp::{Event, Lease};

use crate::uplink::election::Candidate;

/// A lease was taken.
pub const BOUND: &str = "3a4d2f0d9c5e4be19c0a3a34b55f1b6a";
/// A lease was extended or confirmed.
pub const RENEWED: &str = "b7a65f0a3d554dd3a6b7f5c2e8c61f0d";
/// A lease is gone.
pub const LOST: &str = "5e1c9b7f8a0240b6b2c4d09e3f7a1d58";
/// A resumed lease is used though nobody confirmed it.
pub const UNCONFIRMED: &str = "94f1f0f6d2c64f7e8b1e0b9d7c3a2e15";
/// A server was refused, or did not keep its offer.
pub const REFUSED: &str = "e0b3c8d1a7f94c5cb6d2f1e4a9078b63";
/// The set of candidates or their carrier changed.
pub const CANDIDATE: &str = "1f8e7d6c5b4a49389271605f4e3d2c1b";
/// Another private network was chosen.
pub const PRIVATE: &str = "7c2f9d1e6b3a4850a1f4c8e7d0b95263";
/// The kernel refused an operation.
pub const KERNEL: &str = "d95b0e3c7a1f4268be90f2d4c6a8173e";
/// Somebody undid what netd did; it was done again.
pub const REPAIRED: &str = "0f6b7a52e9c84d31b4a05d8e2c71f396";
/// A file in `/run` could not be written.
pub const FILE: &str = "68a0d4f2c1b94e7f9d3c5e8b7a60f142";
/// Somebody else configures the network, and nothing is done.
pub const RIVAL: &str = "4c0d1a7be52f4b6d9f3a86e1c7d05b28";

/// Writes an event of a DHCP client to the journal.
pub fn log(candidate: &Candidate, event: &Event) {
    let interface = candidate.name.as_str();
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
            "{interface}: {} is gone: {reason}",
            lease.address
        ),
    }
}

/// Writes to the journal that something undone by somebody else is done again.
/// `by` is the netlink port of who did it, normally the number of its process.
pub fn repaired(what: &str, by: Option<u32>) {
    match by {
        Some(by) => tracing::warn!(
            message_id = REPAIRED,
            buildos_changed_by = by,
            "put right after a change by process {by}: {what}"
        ),
        None => tracing::warn!(
            message_id = REPAIRED,
            "put right after a change by somebody: {what}"
        ),
    }
}

fn granted(message_id: &str, interface: &str, what: &str, lease: &Lease) {
    let term = match lease.term {
        Some(term) => format!("lease {} s", term.lease.as_secs()),
        None => "lease without end".to_owned(),
    };
    tracing::info!(
        message_id,
        interface,
        buildos_address = %lease.address,
        buildos_server = %lease.server,
        "{interface}: {what} {}/{} by {}, {term}",
        lease.address,
        lease.prefix,
        lease.server,
    );
}
