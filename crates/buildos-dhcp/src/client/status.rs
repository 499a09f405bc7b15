//! The state in words.

use super::{Client, Phase};
use crate::offers::Offer;

impl Client {
    /// One line for people: what the client has, or what it waits for. Text from
    /// the network in it is escaped.
    pub fn reason(&self) -> String {
        let requests = plural(self.exchange.sent, "REQUEST");
        let setback = |line: String| match &self.setback {
            Some(setback) => format!("{line} ({setback})"),
            None => line,
        };
        match &self.phase {
            Phase::Init { wake: None } => "stopped".to_owned(),
            Phase::Init { wake: Some(_) } => setback("waits before the next DISCOVER".to_owned()),
            Phase::Selecting { .. } => setback(match self.offers.first() {
                Some(Offer { lease, .. }) => {
                    format!("holds an OFFER of {} from {}", lease.address, lease.server)
                }
                None => format!("{} unanswered", plural(self.counters.discovers, "DISCOVER")),
            }),
            Phase::Requesting {
                offer: Offer { lease, .. },
                ..
            } => setback(format!(
                "{requests} for {} to {}",
                lease.address, lease.server
            )),
            Phase::InitReboot { lease } => {
                format!("keeps {} of {}, unconfirmed", lease.address, lease.server)
            }
            Phase::Rebooting { lease, .. } => {
                format!("{requests} to confirm {} unanswered", lease.address)
            }
            Phase::Bound { lease } => setback(format!("{} from {}", lease.address, lease.server)),
            Phase::Renewing { lease, .. } => setback(format!(
                "{requests} to {} to extend {} unanswered",
                lease.server, lease.address
            )),
            Phase::Rebinding { lease, .. } => setback(format!(
                "{requests} to any server to extend {} unanswered",
                lease.address
            )),
        }
    }
}

fn plural(count: u32, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
