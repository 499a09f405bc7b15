//! Tests the count of failures, the backoff and the crash loop.

use buildos_agentd::lifecycle::backoff::{self, HEALTHY};
use buildos_agentd::lifecycle::instance::Event;
use buildos_agentd::lifecycle::table::Command;
use buildos_agentd::unit::phase::Phase;
use buildos_dbus_api::agent1::InstanceState as S;

use crate::life::*;

#[test]
fn crash_loop_survives_restart_of_agentd_and_ends_after_healthy_run() {
    let mut life = running();
    for _ in 0..3 {
        life.see(Phase::Ended);
        life.pass(backoff::LONGEST);
        assert_eq!(life.handle(Event::Due), Some(Command::Start));
        life.see(Phase::Running);
    }
    assert!(life.instance.crash_loop());
    assert_eq!(
        life.instance.reason(),
        "runs as process 7, in a crash loop: exit code 1, 3 times in a row"
    );
    life.see(Phase::Ended);
    let reason = "is in a crash loop: exit code 1, 4 times in a row; starts again after 8.0 s";
    assert_eq!(life.instance.reason(), reason);
    // agentd does not count the same end again.
    let (mut life, _) = life.restarted_with(Phase::Ended);
    assert_eq!(life.instance.reason(), reason);
    assert_eq!(life.instance.last_exit(), "exit code 1");
    // agentd counts the next end.
    life.pass(backoff::LONGEST);
    life.handle(Event::Due);
    life.see(Phase::Running);
    life.see(Phase::Ended);
    assert_eq!(life.instance.failures(), 5);
    // A healthy run resets the count while the agent still runs.
    life.pass(backoff::LONGEST);
    life.handle(Event::Due);
    life.see(Phase::Running);
    life.pass(HEALTHY);
    assert!(life.instance.deadline().unwrap() <= life.now.instant);
    life.handle(Event::Due);
    assert_eq!(life.instance.reason(), "runs as process 7");
    assert_eq!(life.instance.deadline(), None);
}

#[test]
fn backoff_grows_and_is_reset_by_healthy_run() {
    let mut life = running();
    let mut waits = Vec::new();
    for _ in 0..3 {
        life.see(Phase::Ended);
        let wait = life.instance.deadline().unwrap() - life.now.instant;
        waits.push(wait.as_secs());
        life.pass(wait);
        assert_eq!(life.handle(Event::Due), Some(Command::Start));
        life.see(Phase::Running);
    }
    assert_eq!(waits, [1, 2, 4]);
    life.see(Phase::Ended);
    assert_eq!(
        life.instance.reason(),
        "is in a crash loop: exit code 1, 4 times in a row; starts again after 8.0 s"
    );
    assert_eq!(
        life.instance.next_start_usec(),
        life.now.realtime_usec + 8_000_000
    );
    life.pass(backoff::LONGEST);
    life.handle(Event::Due);
    life.see(Phase::Running);
    life.pass(HEALTHY);
    life.see(Phase::Ended);
    assert_eq!(
        life.instance.reason(),
        "ended: exit code 1; starts again after 1.0 s"
    );
}

#[test]
fn failed_start_is_counted_once() {
    let mut life = starting();
    life.handle(Event::Failed("its start job ended with \"failed\"".into()));
    life.see(Phase::Ended);
    let reason = "ended: exit code 1; starts again after 1.0 s";
    assert_eq!(life.instance.reason(), reason);
    // Reports in the other order.
    let mut life = starting();
    life.see(Phase::Ended);
    life.handle(Event::Failed("its start job ended with \"failed\"".into()));
    assert_eq!(life.instance.reason(), reason);
}

#[test]
fn refused_restart_leaves_agent_running() {
    let mut life = running();
    life.handle(Event::Restart);
    life.handle(Event::Failed("no".into()));
    assert_eq!(life.instance.state(), S::Running);
}
