//! Delays READY=1 on the first start after boot.
//!
//! Units ordered after agentd therefore take no CPU from the agents while these start. In
//! the image, most units are ordered after agentd. The delay ends early if the agents wait
//! for the rest of the boot (KVM, a disk). It has a limit for other requirements (a
//! network).

use std::time::{Duration, Instant};

use buildos_dbus_api::agent1::{InstanceState, Need};

/// Limit of the delay.
const LIMIT: Duration = Duration::from_secs(10);
/// Limit of the delay once only start jobs are pending. systemd may start an agent after
/// units that are ordered after agentd: a file system on a disk waits for udev.
const START_LIMIT: Duration = Duration::from_secs(2);

/// Requirements that every boot meets without the units ordered after agentd.
const MET_EARLY: [Need; 4] = [
    Need::Network,
    Need::Hostname,
    Need::PrivateNetwork,
    Need::Clock,
];

/// The delay of READY=1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyDelay {
    until: Instant,
    /// True once only start jobs were pending.
    only_starts: bool,
}

impl ReadyDelay {
    /// Begins the delay.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            until: now + LIMIT,
            only_starts: false,
        }
    }

    /// Returns true if READY=1 is due. `agents`: state and unmet requirements of each.
    pub fn is_over(
        &mut self,
        agents: impl IntoIterator<Item = (InstanceState, Vec<Need>)>,
        now: Instant,
    ) -> bool {
        let mut starting = false;
        let mut waiting = false;
        for (state, unmet) in agents {
            starting |= state == InstanceState::Starting;
            waiting |= state == InstanceState::Waiting
                && unmet.iter().all(|need| MET_EARLY.contains(need));
        }
        if starting && !waiting && !self.only_starts {
            self.only_starts = true;
            self.until = self.until.min(now + START_LIMIT);
        }
        !(starting || waiting) || now >= self.until
    }

    /// Returns the latest time of READY=1.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: InstanceState = InstanceState::Waiting;
    const STARTING: InstanceState = InstanceState::Starting;

    fn over(agents: &[(InstanceState, &[Need])]) -> bool {
        let now = Instant::now();
        let agents = agents.iter().map(|(state, needs)| (*state, needs.to_vec()));
        ReadyDelay::new(now).is_over(agents, now)
    }

    #[test]
    fn delay_waits_only_for_agents_without_late_requirements() {
        assert!(over(&[]));
        for &state in InstanceState::ALL {
            let waited_for = [WAITS, STARTING].contains(&state);
            assert_eq!(over(&[(state, &[])]), !waited_for, "{state}");
        }
        for &need in Need::ALL {
            let waited_for = MET_EARLY.contains(&need);
            assert_eq!(over(&[(WAITS, &[need])]), !waited_for, "{need}");
        }
        assert!(over(&[(WAITS, &[Need::Network, Need::Kvm])]));
        // An agent that cannot start does not end the wait for the others.
        assert!(!over(&[(WAITS, &[Need::Kvm]), (WAITS, &MET_EARLY)]));
    }

    #[test]
    fn delay_has_limit() {
        let begin = Instant::now();
        let mut delay = ReadyDelay::new(begin);
        let waits = (WAITS, vec![Need::Network]);
        let late = begin + LIMIT - Duration::from_millis(1);
        assert!(!delay.is_over([waits.clone()], late));
        assert!(delay.is_over([waits], begin + LIMIT));
    }

    #[test]
    fn delay_is_shorter_when_only_start_jobs_are_pending() {
        let begin = Instant::now();
        let mut delay = ReadyDelay::new(begin);
        let starts = (STARTING, vec![]);
        let waits = (WAITS, vec![Need::Clock]);
        let at = |seconds| begin + Duration::from_secs(seconds);
        // The full limit applies while another agent waits for a requirement.
        assert!(!delay.is_over([starts.clone(), waits.clone()], at(1)));
        assert!(!delay.is_over([starts.clone(), waits], at(4)));
        assert!(!delay.is_over([starts.clone()], at(5)));
        assert_eq!(delay.deadline(), at(5) + START_LIMIT);
        assert!(!delay.is_over([starts.clone()], at(6)));
        assert!(delay.is_over([starts], at(7)));
    }
}
