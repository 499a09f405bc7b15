//! Describes all agents in one line, for `STATUS=` and the D-Bus property `Reason`.

use buildos_dbus_api::agent1::InstanceState;

use crate::agent::id::Id;
use crate::lifecycle::instance::Instance;

/// Returns the number of running agents and the reasons of the others. `disabled`: agents
/// with `enabled = false`. `notes`: texts that concern all agents.
#[must_use]
pub fn summary<'a>(
    agents: impl Iterator<Item = (&'a Id, &'a Instance)>,
    disabled: &[&Id],
    notes: &[&str],
) -> String {
    let (mut running, mut total) = (0, 0);
    let mut parts = Vec::new();
    for (id, instance) in agents {
        total += 1;
        if instance.state() == InstanceState::Running {
            running += 1;
        }
        if instance.state() != InstanceState::Running || instance.crash_loop() {
            parts.push(format!("{id} {}", instance.reason()));
        }
    }
    let mut line = match total {
        0 => "no agents configured".to_owned(),
        _ => format!("{running} of {total} agents run"),
    };
    parts.extend(disabled.iter().map(|id| format!("{id} is disabled")));
    parts.extend(notes.iter().map(ToString::to_string));
    for part in parts {
        line.push_str("; ");
        line.push_str(&part);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::instance::{Event, Remembered};
    use crate::lifecycle::table::Now;
    use crate::requirements::check::Unmet;
    use crate::unit::exit::Exit;
    use crate::unit::phase::{Phase, Unit};
    use buildos_dbus_api::agent1::Need;
    use std::time::{Duration, Instant};

    fn instance(phase: Phase, failures: u32) -> Instance {
        let now = Now {
            instant: Instant::now(),
            realtime_usec: 0,
            uptime: Duration::ZERO,
        };
        let remembered = Remembered {
            failures,
            last_failure: Exit::new(1, 1, "exit-code").unwrap().to_string(),
            ..Remembered::default()
        };
        let reason = "program /usr/bin/bslave is not installed".to_owned();
        let need = Need::Program;
        let mut instance = Instance::new(remembered, vec![Unmet { need, reason }], now);
        let unit = Unit {
            phase,
            changed_usec: 1,
            changed_realtime_usec: 1,
            main_pid: 7,
            exit: None,
            restarts: 0,
        };
        instance.handle(Event::Seen(unit), now, 0);
        instance
    }

    #[test]
    fn summary_counts_running_agents_and_explains_waiting_agents() {
        let [a, b, c]: [Id; 3] =
            ["bbot@default", "bslave@x", "bbot@old"].map(|id| id.parse().unwrap());
        let (running, waiting) = (instance(Phase::Running, 0), instance(Phase::Down, 0));
        fn line(agents: &[(&Id, &Instance)], disabled: &[&Id]) -> String {
            summary(agents.iter().copied(), disabled, &[])
        }
        assert_eq!(line(&[], &[]), "no agents configured");
        assert_eq!(
            line(&[], &[&c]),
            "no agents configured; bbot@old is disabled"
        );
        assert_eq!(line(&[(&a, &running)], &[]), "1 of 1 agents run");
        assert_eq!(
            line(&[(&a, &running), (&b, &waiting)], &[&c]),
            "1 of 2 agents run; bslave@x waits: program /usr/bin/bslave is not installed; bbot@old is disabled"
        );
        let crashing = instance(Phase::Running, 4);
        assert_eq!(
            summary([(&a, &crashing)].into_iter(), &[], &["a note"]),
            "1 of 1 agents run; bbot@default runs as process 7, in a crash loop: exit code 1, 4 times in a row; a note"
        );
    }
}
