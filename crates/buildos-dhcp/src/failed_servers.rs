//! Remembers servers whose OFFER led to no lease.

use core::time::Duration;
use std::net::Ipv4Addr;

use crate::time::Instant;

/// Maximum number of servers remembered.
const MAXIMUM_SERVERS: usize = 16;
/// Time for which other servers are preferred after a failure.
const AVOID_FOR: Duration = Duration::from_secs(60);
/// Time after which the server is accepted if no other server has made an OFFER: it
/// might only be slow. Other servers answer within this time, also after a ping check.
const ACCEPT_ALONE_AFTER: Duration = Duration::from_secs(5);
/// REQUESTs sent per OFFER; twice as many to a server that failed before.
const REQUESTS: u32 = 2;

#[derive(Debug, Clone)]
struct FailedServer {
    server: Ipv4Addr,
    last_failure: Instant,
    failures: u32,
}

/// Servers whose last OFFER led to no lease, in the order of their last failure.
#[derive(Debug, Clone, Default)]
pub(crate) struct FailedServers(Vec<FailedServer>);

impl FailedServers {
    pub(crate) fn add(&mut self, server: Ipv4Addr, now: Instant) {
        let failures = match self.0.iter().position(|failed| failed.server == server) {
            Some(index) => self.0.remove(index).failures,
            None => 0,
        };
        if self.0.len() == MAXIMUM_SERVERS {
            self.0.remove(0);
        }
        self.0.push(FailedServer {
            server,
            last_failure: now,
            failures: failures.saturating_add(1),
        });
    }

    pub(crate) fn remove(&mut self, server: Ipv4Addr) {
        self.0.retain(|failed| failed.server != server);
    }

    /// Returns true if an OFFER of the server may be held. `has_other` is true if the
    /// client holds an OFFER already.
    pub(crate) fn permits(&self, server: Ipv4Addr, has_other: bool, now: Instant) -> bool {
        self.get(server).is_none_or(|failed| {
            let elapsed = now.saturating_sub(failed.last_failure);
            elapsed >= AVOID_FOR || (elapsed >= ACCEPT_ALONE_AFTER && !has_other)
        })
    }

    /// Returns the number of REQUESTs to send to this server.
    pub(crate) fn requests(&self, server: Ipv4Addr) -> u32 {
        let failures = self.get(server).map_or(0, |failed| failed.failures);
        REQUESTS << failures.min(1)
    }

    fn get(&self, server: Ipv4Addr) -> Option<&FailedServer> {
        self.0.iter().find(|failed| failed.server == server)
    }
}
