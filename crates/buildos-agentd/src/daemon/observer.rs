//! Polls programs, credentials, KVM, disks and the clock, for which no event exists.

use std::path::Path;
use std::time::{Duration, Instant};

use buildos_dbus_api::agent1::Need;
use buildos_service::clock::is_synchronised;

use super::agents::Agents;
use crate::messages;
use crate::requirements::clock::{Clock, Wait};
use crate::requirements::disk;
use crate::requirements::host::{self, Host};

/// Interval of polls while an agent waits for a file, a device or the clock.
const INTERVAL: Duration = Duration::from_secs(2);
/// Interval of polls of disks without room. Otherwise they are looked at with the machines of
/// running agents.
const DISK_INTERVAL: Duration = Duration::from_secs(5);
/// Interval while an agent waits only for the clock: a longer one would delay its start.
const CLOCK_INTERVAL: Duration = Duration::from_millis(100);

/// Observes the host.
#[derive(Default)]
pub(super) struct Observer {
    clock: Wait,
    /// Limit of the wait for a synchronised clock.
    pub(super) clock_deadline: Duration,
    /// Share of each disk that must be free, percent.
    pub(super) disk_reserve: u8,
}

impl Observer {
    /// Updates `host` with everything that the agents require.
    pub(super) fn observe(&mut self, host: &mut Host, agents: &Agents) {
        let root = Path::new("/");
        let programs = agents
            .requirements()
            .flat_map(|r| r.tools.iter().chain([&r.program]).cloned());
        let credentials = agents
            .requirements()
            .flat_map(|r| r.credentials.iter().cloned());
        host.programs = host::programs(root, programs.collect());
        host.credentials = host::credentials(root, credentials.collect());
        host.kvm = host::has_kvm(root);
        host.disks.update(disk::rooms(root), self.disk_reserve);
        self.observe_clock(is_synchronised(root), host, agents);
    }

    fn observe_clock(&mut self, synchronised: bool, host: &mut Host, agents: &Agents) {
        let online = host.network.as_ref().is_some_and(|network| network.online);
        let clock = self
            .clock
            .update(synchronised, online, self.clock_deadline, Instant::now());
        if clock == Clock::GivenUp && host.clock != clock && !agents.is_empty() {
            messages::clock_given_up(self.clock_deadline);
        }
        host.clock = clock;
    }

    /// Returns the time to the next poll; [`None`] if no agent waits for a polled
    /// requirement.
    pub(super) fn next_poll(&self, agents: &Agents) -> Option<Duration> {
        // The clock cannot become synchronised while the host has never been online.
        let clock = self.clock.is_running() && agents.any_awaits(&[Need::Clock]);
        let files = agents.any_awaits(&[Need::Program, Need::Tools, Need::Credentials, Need::Kvm]);
        if clock && agents.any_awaits_only(Need::Clock) {
            Some(CLOCK_INTERVAL)
        } else if clock || files {
            Some(INTERVAL)
        } else {
            agents.any_lacks(Need::Disk).then_some(DISK_INTERVAL)
        }
    }
}
