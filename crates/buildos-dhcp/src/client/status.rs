//! Describes the state in one line.

use super::machine::Client;
use super::phase::Phase;
use crate::offers::Offer;

impl Client {
    /// Returns one line with the state of the client, or the message that it waits for.
    /// Text from the network is escaped.
    pub fn status(&self) -> String {
        let requests = plural(self.exchange.sent, "REQUEST");
        let with_last_failure = |line: String| match &self.last_failure {
            Some(failure) => format!("{line} ({failure})"),
            None => line,
        };
        match &self.phase {
            Phase::Init { search_at: None } => "stopped".to_owned(),
            Phase::Init { search_at: Some(_) } => {
                with_last_failure("waits before the next DISCOVER".to_owned())
            }
            Phase::Selecting { .. } => with_last_failure(match self.offers.first() {
                Some(Offer { lease, .. }) => {
                    format!("holds an OFFER of {} from {}", lease.address, lease.server)
                }
                None => self.without_offer(),
            }),
            Phase::Requesting {
                offer: Offer { lease, .. },
                ..
            } => with_last_failure(format!(
                "{requests} for {} to {}",
                lease.address, lease.server
            )),
            Phase::InitReboot { lease } => {
                format!("keeps {} of {}, unconfirmed", lease.address, lease.server)
            }
            Phase::Rebooting { lease, .. } => {
                format!("{requests} to confirm {} unanswered", lease.address)
            }
            Phase::Bound { lease } => {
                with_last_failure(format!("{} from {}", lease.address, lease.server))
            }
            Phase::Renewing { lease, .. } => with_last_failure(format!(
                "{requests} to {} to extend {} unanswered",
                lease.server, lease.address
            )),
            Phase::Rebinding { lease, .. } => with_last_failure(format!(
                "{requests} to any server to extend {} unanswered",
                lease.address
            )),
        }
    }
}

impl Client {
    fn without_offer(&self) -> String {
        let Some((server, refusal)) = &self.last_refusal else {
            return format!("{} unanswered", plural(self.counters.discovers, "DISCOVER"));
        };
        let from = server.map(|server| format!(" from {server}"));
        format!("refused the OFFER{}: {refusal}", from.unwrap_or_default())
    }
}

fn plural(count: u32, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
