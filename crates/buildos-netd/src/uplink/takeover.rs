//! Asks on a NIC whether it is on the LAN of br0's lease.
//!
//! The server is asked with the identity of br0, by INIT-REBOOT (RFC 2131, section 3.2). The NIC has
//! a different hardware address, so the server is to broadcast its answer.
//! [`super::election`] decides when, and what follows.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{Client, Config, Event, Input, Instant, Lease};
use buildos_types::MacAddress;

/// Time for which offers wait for the answers. It includes four REQUESTs.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time after a denial or silence before a NIC is asked again.
const RETRY: Duration = Duration::from_secs(60);

/// Asks on one NIC whether it is on the LAN of br0's lease.
#[derive(Debug)]
pub(super) struct Takeover {
    /// Confirms the lease with the identity of br0.
    pub(super) client: Client,
    /// Gateway of the lease.
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) stage: Stage,
    /// Time until which offers wait; [`None`] once it is over.
    pub(super) offers_wait_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The server is asked.
    Asking,
    /// The server confirmed the lease.
    Confirmed,
    /// The server denied the lease.
    Denied { again_at: Instant },
    /// The server did not answer. The gateway still may.
    Silent { again_at: Instant },
}

impl Takeover {
    pub(super) fn new(now: Instant, config: Config, seed: u64, lease: &Lease) -> Self {
        let mut client = Client::new(config, seed);
        client.handle(now, Input::Resume(Box::new(lease.clone())));
        Self {
            client,
            gateway: lease.gateway(),
            stage: Stage::Asking,
            offers_wait_until: Some(now.saturating_add(PATIENCE)),
        }
    }

    /// Returns the hardware address in the messages.
    pub(super) fn mac(&self) -> MacAddress {
        self.client.mac()
    }

    /// Returns true while answers of servers are expected.
    pub(super) fn is_asking(&self) -> bool {
        self.stage == Stage::Asking
    }

    pub(super) fn packet(&mut self, now: Instant, payload: &[u8]) {
        if self.is_asking() {
            self.client.handle(now, Input::Packet(payload));
        }
    }

    pub(super) fn is_due_again(&self, now: Instant) -> bool {
        match self.stage {
            Stage::Asking | Stage::Confirmed => false,
            Stage::Denied { again_at } | Stage::Silent { again_at } => again_at <= now,
        }
    }

    /// Processes an event of the client. Returns it if it has to be reported.
    pub(super) fn event(&mut self, now: Instant, event: Event) -> Option<Event> {
        let again_at = now.saturating_add(RETRY);
        match event {
            Event::Renewed(_) => self.stage = Stage::Confirmed,
            Event::Lost { .. } => self.stage = Stage::Denied { again_at },
            Event::Unconfirmed(_) => self.stage = Stage::Silent { again_at },
            Event::Refused { .. } => return Some(event),
            Event::Offered { .. } | Event::RequestFailed { .. } | Event::Bound(_) => {}
        }
        None
    }

    pub(super) fn timeout(&mut self, now: Instant) {
        let _ = self.offers_wait_until.take_if(|until| *until <= now);
        if self.is_asking() && self.client.deadline().is_some_and(|at| at <= now) {
            self.client.handle(now, Input::Timeout);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let next = match self.stage {
            Stage::Asking => self.client.deadline(),
            Stage::Confirmed => None,
            Stage::Denied { again_at } | Stage::Silent { again_at } => Some(again_at),
        };
        next.into_iter().chain(self.offers_wait_until).min()
    }
}

/// Returns true for the hardware addresses of VRRP (RFC 9568, section 7.3) and HSRP (RFC 2281,
/// section 5.2).
pub(super) fn is_virtual_router(MacAddress(mac): MacAddress) -> bool {
    matches!(
        mac,
        [0x00, 0x00, 0x5e, 0x00, 0x01 | 0x02, _]
            | [0x00, 0x00, 0x0c, 0x07, 0xac, _]
            | [0x00, 0x00, 0x0c, 0x9f, 0xf0..=0xff, _]
    )
}
