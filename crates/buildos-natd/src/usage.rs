//! Observes what machines use of shared resources, and removes what gone machines leave.
//!
//! | observed | for |
//! |---|---|
//! | dnsmasq's lease file, if it changed | shortage of addresses |
//! | `nf_conntrack_count`, `nf_conntrack_max` | shortage of connections |
//! | counters of the table | machines at their limits |
//!
//! None of these has a notification that a machine could not make arrive a thousand times
//! a second, so they are read every two seconds.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use crate::conntrack;
use crate::dnsmasq::{config, machines, paths};
use crate::firewall::{client, policy};
use crate::messages;
use crate::shortage::{Monitor, Readings, Shortages, Use};
use crate::uplink_network::UplinkNetwork;

/// Time between two observations.
const INTERVAL: Duration = Duration::from_secs(2);
/// Addresses whose connections are removed in one interval. For each the kernel walks
/// through all connections, which takes some milliseconds.
const REMOVALS: usize = 16;

/// Observes machines.
#[derive(Debug)]
pub struct UsageMonitor {
    root: PathBuf,
    next: Instant,
    shortages: Monitor,
    /// Time and size of the lease file that was read last.
    read: Option<(SystemTime, u64)>,
    leases: Option<u32>,
    /// Addresses whose connections are to be removed.
    gone: VecDeque<Ipv4Addr>,
    /// True once the kernel refused to remove connections.
    refused: bool,
}

impl UsageMonitor {
    /// Creates a monitor for the host below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            next: Instant::now(),
            shortages: Monitor::default(),
            read: None,
            leases: None,
            gone: VecDeque::new(),
            refused: false,
        }
    }

    /// Returns the shortages.
    #[must_use]
    pub fn shortages(&self) -> Shortages {
        self.shortages.shortages()
    }

    /// Queues the connections of machines that are gone for removal.
    pub fn remove_connections_of(&mut self, departed: Vec<Ipv4Addr>) {
        self.gone.extend(departed);
    }

    /// Observes in intervals until the shortages change. Cancel-safe.
    pub async fn changed(&mut self, network: Option<&UplinkNetwork>) {
        loop {
            sleep_until(self.next).await;
            self.next = Instant::now() + INTERVAL;
            if let Some(network) = network {
                self.remove_connections().await;
                if self.observe(network).await {
                    return;
                }
            }
        }
    }

    async fn observe(&mut self, network: &UplinkNetwork) -> bool {
        self.read_leases();
        let (dropped_connections, dropped_names) = dropped().await.unzip();
        let readings = Readings {
            addresses: self.leases.map(|used| Use {
                used,
                limit: config::machines(network.private_network),
            }),
            connections: self.connections(),
            dropped_connections,
            dropped_names,
        };
        let changes = self.shortages.update(readings, Instant::now());
        for change in changes.iter().filter(|change| change.is_logged) {
            messages::shortage(change);
        }
        !changes.is_empty()
    }

    /// Reads the lease file if it changed.
    fn read_leases(&mut self) {
        let path = self.root.join(paths::LEASES);
        let stamp = std::fs::metadata(&path).and_then(|data| Ok((data.modified()?, data.len())));
        let stamp = stamp.ok();
        if stamp == self.read {
            return;
        }
        self.read = stamp;
        let leases = machines::read(&path).ok();
        self.leases = leases.map(|leases| leases.len().try_into().unwrap_or(u32::MAX));
    }

    async fn remove_connections(&mut self) {
        for _ in 0..REMOVALS {
            // An address stays in the queue until its connections are removed.
            let Some(address) = self.gone.front().copied() else {
                return;
            };
            let removed = conntrack::remove(address).await;
            self.gone.pop_front();
            match removed {
                Ok(()) => tracing::debug!("removed the connections of {address}, which is gone"),
                Err(error) if !self.refused => {
                    self.refused = true;
                    tracing::warn!("cannot remove connections of {address}: {error}");
                }
                Err(_) => {}
            }
        }
    }

    fn connections(&self) -> Option<Use> {
        let number = |name: &str| {
            let path = self.root.join("proc/sys/net/netfilter").join(name);
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        Some(Use {
            used: number("nf_conntrack_count")?,
            limit: number("nf_conntrack_max")?,
        })
    }
}

/// Returns the packets dropped because a machine had too many connections, and because one
/// asked for too many names.
async fn dropped() -> Option<(u64, u64)> {
    let counts = client::counts(policy::TABLE).await.ok()?;
    let sum = |comments: &[&str]| {
        let counts = counts
            .iter()
            .filter(|(comment, _)| comments.contains(&comment.as_str()));
        counts.map(|(_, count)| count.packets).sum()
    };
    Some((
        sum(&policy::DROPPED_CONNECTIONS),
        sum(&policy::DROPPED_NAMES),
    ))
}
