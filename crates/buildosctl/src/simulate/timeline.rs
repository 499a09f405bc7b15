//! Records the events of a simulation. Each event is a sentence, split into its subject and
//! the rest.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::address_conflict::Report;
use buildos_dhcp::{Event, Instant, Transmit};
use buildos_netd::uplink::notice::Notice;

/// Reading of the boot clock at the start of a simulation. A real clock never shows 0.
pub(crate) const EPOCH: Duration = Duration::from_secs(10);

/// One line of the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Time since the start.
    pub(crate) at: Duration,
    /// The subject: a NIC, a daemon, or the kernel.
    pub(crate) subject: String,
    /// The rest of the sentence.
    pub(crate) text: String,
}

/// The timeline, in chronological order.
#[derive(Debug, Default)]
pub(crate) struct Timeline(Vec<Entry>);

impl Timeline {
    pub(crate) fn add(&mut self, now: Instant, subject: impl ToString, text: impl Into<String>) {
        self.0.push(Entry {
            at: since_start(now),
            subject: subject.to_string(),
            text: text.into(),
        });
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.0
    }
}

/// Returns the time since the start.
pub(crate) fn since_start(now: Instant) -> Duration {
    now.saturating_sub(EPOCH)
}

/// Returns a sentence for a decision of netd about a NIC.
pub(crate) fn notice(notice: &Notice) -> String {
    match notice {
        Notice::Moved {
            lease,
            server,
            network,
        } => format!(
            "ends its lease of {}: {server} offers an address of {network}",
            lease.address
        ),
        Notice::FallbackUsed(lease) => {
            format!("uses the static address {}/{}", lease.address, lease.prefix)
        }
        Notice::Kept(lease) => format!("keeps {}, whose lease expired", lease.address),
        Notice::FallbackClaimed { address, by } => format!("gives {address} up, which {by} has"),
        Notice::FallbackEnded { address, granted } => {
            format!("gives {address} up for the leased {granted}")
        }
        Notice::TakenOver {
            lease,
            from,
            reason,
            confirmed_by,
        } => format!(
            "takes br0 over from {from} ({reason}) with the lease of {}: {confirmed_by}",
            lease.address
        ),
        Notice::Ipv6Only => "becomes the port of br0 for IPv6".to_owned(),
        Notice::GatewaySilent(gateway) => format!("misses answers of the gateway {gateway}"),
        Notice::GatewayAnswers(gateway) => format!("is answered by the gateway {gateway} again"),
        Notice::Replaced { lease, by, reason } => {
            format!(
                "ends its lease of {}; {by} takes br0 over: {reason}",
                lease.address
            )
        }
    }
}

/// Returns a sentence for a sent message.
pub(crate) fn sent(transmit: &Transmit) -> String {
    match transmit.destination {
        to if to.is_broadcast() => format!("sends {}", transmit.kind),
        to => format!("sends {} to {to}", transmit.kind),
    }
}

/// Returns a sentence for a finding about another host and an address.
pub(crate) fn report(address: Ipv4Addr, report: Report) -> String {
    match report {
        Report::Contested(by) => format!("keeps {address}, which {by} claims, too"),
        Report::ProxyArp(by) => format!("ignores claims by {by}, which does proxy ARP"),
    }
}

/// Returns a sentence for an event of a DHCP client.
pub(crate) fn event(event: &Event) -> String {
    match event {
        Event::Offered { server, address } => format!("is offered {address} by {server}"),
        Event::Refused {
            kind,
            server,
            reason,
        } => {
            let of = server.map(|server| format!(" of {server}"));
            format!("refuses the {kind}{}: {reason}", of.unwrap_or_default())
        }
        Event::RequestFailed { server, reason } => format!("gives up on {server}: {reason}"),
        Event::Bound(lease) => format!("is bound to {} by {}", lease.address, lease.server),
        Event::Renewed(lease) => format!("has {} extended by {}", lease.address, lease.server),
        Event::Unconfirmed(lease) => {
            format!("keeps {}, which no server confirms", lease.address)
        }
        Event::Lost { lease, reason } => format!("loses {}: {reason}", lease.address),
    }
}
