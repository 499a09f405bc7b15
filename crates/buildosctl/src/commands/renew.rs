//! `buildosctl renew`: asks netd to extend the lease, and waits for the server's answer.

use std::time::Duration;

use buildos_dbus_api::network1;
use buildos_dbus_api::watch::read;
use tokio::time::{Instant, sleep};
use zbus::Connection;

use super::call;
use crate::snapshot::collect::now;
use crate::snapshot::model::Network;
use crate::term::relative;

/// Limit for the answer of the DHCP server, which takes milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(9);
/// Delay between two looks at the lease.
const INTERVAL: Duration = Duration::from_millis(50);
/// Resolution of the time at which netd acquired a lease.
const RESOLUTION_USEC: u64 = 1_000_000;

/// Asks netd to extend the lease now.
///
/// # Errors
///
/// There is no lease, the server does not answer, or the lease ends.
pub(crate) async fn renew(bus: &Connection) -> Result<(), String> {
    let message = |error: zbus::Error| call::error_message("buildos-netd", &error);
    let netd = network1::ManagerProxy::new(bus).await.map_err(message)?;
    let before = network(bus).await.map_or(0, |n| n.lease.acquired_usec);
    // A renewal within the same second could not be recognised.
    let age = now().saturating_sub(before);
    if age < RESOLUTION_USEC {
        sleep(Duration::from_micros(RESOLUTION_USEC - age)).await;
    }
    netd.renew().await.map_err(message)?;
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        let Some(network) = network(bus).await else {
            return Err("buildos-netd does not answer".to_owned());
        };
        if network.address.is_empty() {
            return Err(format!("the lease has ended: {}", network.reason));
        }
        if network.lease.acquired_usec > before {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(unanswered(now(), &network));
        }
        sleep(INTERVAL).await;
    }
}

async fn network(bus: &Connection) -> Option<Network> {
    let read = read(bus, network1::NAME, network1::PATH).await;
    read.ok().flatten()
}

/// Returns the message for a server that did not answer.
fn unanswered(now: u64, network: &Network) -> String {
    let lease = &network.lease;
    let end = match lease.expires_usec {
        0 => String::new(),
        end => format!(", and ends {}", relative(now, end)),
    };
    format!(
        "{} has not answered within {} s; the lease of {} stays{end}; buildos-netd asks again",
        lease.server,
        ANSWER_LIMIT.as_secs(),
        network.address,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::{NOW, ready};

    #[test]
    fn silence_of_server_is_described() {
        let mut network = ready().network.unwrap();
        let begin = "192.0.2.1 has not answered within 9 s; the lease of 192.0.2.7/24 stays";
        assert_eq!(
            unanswered(NOW, &network),
            format!("{begin}, and ends in 59 min 0 s; buildos-netd asks again")
        );
        network.lease.expires_usec = 0;
        assert_eq!(
            unanswered(NOW, &network),
            format!("{begin}; buildos-netd asks again")
        );
    }
}
