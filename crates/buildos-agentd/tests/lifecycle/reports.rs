//! Tests what agentd concludes from reports of the unit and from its state file.

use std::time::Duration;

use buildos_agentd::lifecycle::backoff;
use buildos_agentd::lifecycle::instance::Event;
use buildos_agentd::lifecycle::table::Command;
use buildos_agentd::unit::phase::Phase;
use buildos_dbus_api::agent1::{InstanceState as S, Need};

use crate::life::*;

#[test]
fn unit_down_after_launch_was_stopped_by_operator() {
    let mut life = Life::new(true);
    assert_eq!(life.see_unchanged(Phase::Down), None);
    assert_eq!(life.instance.state(), S::Stopped);
    assert!(life.instance.remember().launched);
    assert_eq!(life.handle(Event::Restart), Some(Command::Start));
}

#[test]
fn agent_configured_again_during_stop_starts_again() {
    let mut life = unknown();
    life.see(Phase::Stopping);
    assert_eq!(life.instance.reason(), "waits: its unit is being stopped");
    assert_eq!(life.see(Phase::Down), Some(Command::Start));
}

#[test]
fn launched_is_remembered_per_state() {
    // Stopped, then restarted over D-Bus, while a requirement is not met.
    let mut wanted = stopped();
    wanted.handle(unmet(Need::Network));
    wanted.handle(Event::Restart);
    let mut kept_down = waiting();
    kept_down.handle(Event::StoppedByHand);
    for (life, launched) in [
        (unknown(), false),
        // agentd is restarted twice before systemd answers.
        (Life::new(true), true),
        (waiting(), false),
        (starting(), false),
        (running(), true),
        (delayed(), true),
        (refused(), false),
        (ended_and_waiting(), true),
        (stopped(), true),
        (kept_down, true),
        (wanted, false),
    ] {
        assert_eq!(
            life.instance.remember().launched,
            launched,
            "{:?}",
            life.instance
        );
    }
}

#[test]
fn running_agent_is_adopted_without_command() {
    for launched in [false, true] {
        let mut life = Life::new(launched);
        life.handle(unmet(Need::Network));
        assert_eq!(life.see(Phase::Running), None);
        assert_eq!(life.instance.state(), S::Running);
        assert_eq!(life.instance.reason(), "runs as process 7");
    }
}

#[test]
fn unchanged_unit_triggers_nothing() {
    let mut life = starting();
    // The start job has not begun yet.
    life.see_unchanged(Phase::Down);
    assert_eq!(life.instance.state(), S::Starting);
    let mut life = delayed().passed(backoff::FIRST);
    assert_eq!(life.handle(Event::Due), Some(Command::Start));
    life.see_unchanged(Phase::Ended);
    assert_eq!(life.instance.state(), S::Starting);
}

#[test]
fn invalid_configuration_is_shown_unless_agent_runs() {
    let mut life = waiting();
    life.handle(unmet(Need::Configuration));
    assert_eq!(life.instance.state(), S::Invalid);
    assert_eq!(life.instance.reason(), "waits: something is missing");
    let mut life = running();
    assert_eq!(life.handle(unmet(Need::Configuration)), None);
    assert_eq!(life.instance.state(), S::Running);
}

#[test]
fn since_changes_with_state_only() {
    let mut life = running();
    let since = life.instance.since_usec();
    life.pass(Duration::from_secs(5));
    life.handle(unmet(Need::Network));
    assert_eq!(life.instance.since_usec(), since);
    life.see(Phase::Ended);
    assert_eq!(life.instance.since_usec(), since + 5_000_000);
}
