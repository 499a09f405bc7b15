//! How long agentd, when it is first started in a boot, is not ready yet.
//!
//! What is ordered after agentd, in the image much of the boot, takes no CPU from the
//! agents until they are started. But that must not become a wait for what comes with
//! the rest of the boot, like KVM or a disk, or with nobody knows when, like a network.

use std::time::{Duration, Instant};

use buildos_dbus_api::agent1::{InstanceState, Need};

/// How long for what every boot brings.
const ALL: Duration = Duration::from_secs(10);
/// How long for systemd, which may start an agent only after something that is itself
/// ordered after agentd: a file system on a disk, which waits for udev.
const STARTS: Duration = Duration::from_secs(2);

/// What every boot brings, without the rest of it.
const BROUGHT: [Need; 4] = [
    Need::Network,
    Need::Hostname,
    Need::PrivateNetwork,
    Need::Clock,
];

/// Whether agentd is ready, and until when it may not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstStarts {
    until: Instant,
    /// Whether nothing but systemd is waited for.
    asked: bool,
}

impl FirstStarts {
    /// For an agentd that begins at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            until: now + ALL,
            asked: false,
        }
    }

    /// Whether they are over, from every agent's state and what it waits for.
    pub fn over(
        &mut self,
        agents: impl IntoIterator<Item = (InstanceState, Vec<Need>)>,
        now: Instant,
    ) -> bool {
        let mut starting = false;
        let mut waiting = false;
        for (state, needs) in agents {
            starting |= state == InstanceState::Starting;
            waiting |=
                state == InstanceState::Waiting && needs.iter().all(|need| BROUGHT.contains(need));
        }
        if starting && !waiting && !self.asked {
            self.asked = true;
            self.until = self.until.min(now + STARTS);
        }
        !(starting || waiting) || now >= self.until
    }

    /// When they are over in any case.
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
        FirstStarts::new(now).over(agents, now)
    }

    #[test]
    fn only_agents_that_come_with_the_boot_are_waited_for() {
        assert!(over(&[]));
        for &state in InstanceState::ALL {
            let waited_for = [WAITS, STARTING].contains(&state);
            assert_eq!(over(&[(state, &[])]), !waited_for, "{state}");
        }
        for &need in Need::ALL {
            let waited_for = BROUGHT.contains(&need);
            assert_eq!(over(&[(WAITS, &[need])]), !waited_for, "{need}");
        }
        assert!(over(&[(WAITS, &[Need::Network, Need::Kvm])]));
        // One that cannot start keeps none from being waited for that can.
        assert!(!over(&[(WAITS, &[Need::Kvm]), (WAITS, &BROUGHT)]));
    }

    #[test]
    fn the_wait_has_an_end() {
        let begin = Instant::now();
        let mut first = FirstStarts::new(begin);
        let waits = (WAITS, vec![Need::Network]);
        let late = begin + ALL - Duration::from_millis(1);
        assert!(!first.over([waits.clone()], late));
        assert!(first.over([waits], begin + ALL));
    }

    #[test]
    fn systemd_is_waited_for_less_long() {
        let begin = Instant::now();
        let mut first = FirstStarts::new(begin);
        let starts = (STARTING, vec![]);
        let waits = (WAITS, vec![Need::Clock]);
        let at = |seconds| begin + Duration::from_secs(seconds);
        // As long as another one waits for the boot, so may this one.
        assert!(!first.over([starts.clone(), waits.clone()], at(1)));
        assert!(!first.over([starts.clone(), waits], at(4)));
        assert!(!first.over([starts.clone()], at(5)));
        assert_eq!(first.deadline(), at(5) + STARTS);
        assert!(!first.over([starts.clone()], at(6)));
        assert!(first.over([starts], at(7)));
    }
}
