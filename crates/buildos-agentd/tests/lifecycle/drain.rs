//! Tests draining.

use std::time::Duration;

use buildos_agentd::lifecycle::instance::{Drain, Event, Machines};
use buildos_agentd::lifecycle::table::Command;
use buildos_agentd::machine::tracker::Machine;
use buildos_agentd::unit::phase::Phase;
use buildos_dbus_api::agent1::{InstanceState as S, Need};

use crate::life::*;

#[test]
fn wanted_excludes_stopped_and_drained() {
    for (life, wanted) in [
        (waiting(), true),
        (running(), true),
        (delayed(), true),
        (stopped(), false),
        (draining(), false),
        (stopping_after_drain(), false),
        (drained(), false),
    ] {
        assert_eq!(life.instance.wanted(), wanted, "{:?}", life.instance);
    }
}

#[test]
fn drain_ends_at_deadline_and_can_be_shortened() {
    let mut life = draining();
    assert_eq!(
        life.instance.drain_deadline_usec(),
        life.now.realtime_usec + 3_600_000_000
    );
    assert_eq!(
        life.instance.reason(),
        "drains: its tasks have up to 3600 s to end; remaining tasks are then stopped"
    );
    // A second drain shortens the time.
    life.handle(Event::Drain(Duration::from_secs(60)));
    life.pass(Duration::from_secs(60));
    assert_eq!(life.handle(Event::Due), Some(Command::Stop));
    assert_eq!(
        life.instance.reason(),
        "did not end its tasks in time; its unit is being stopped"
    );
    life.see(Phase::Stopping);
    life.see(Phase::Down);
    assert_eq!(
        life.instance.reason(),
        "is drained; buildosctl resume starts it again"
    );
}

#[test]
fn drain_names_its_machines() {
    let machine = |pid: u32, suspended_usec| Machine {
        pid,
        taps: vec![format!("tap{pid}").parse().unwrap()],
        since_usec: 1,
        suspended_usec,
    };
    let mut machines = Machines {
        list: vec![machine(8, 0), machine(9, 5)],
        interactive: true,
        ..Machines::default()
    };
    let mut life = draining();
    let mut reason = |machines: &Machines| {
        life.handle(Event::Machines(machines.clone()));
        let reason = life.instance.reason();
        let names = reason.split_once("then stopped").unwrap().1;
        names.to_owned()
    };
    assert_eq!(
        reason(&machines),
        "; waits for tap8 (process 8) (a person can be logged in); waits for suspended tap9 (process 9)"
    );
    machines.leaves_suspended = true;
    machines.list.remove(0);
    assert_eq!(
        reason(&machines),
        "; does not wait for suspended tap9 (process 9)"
    );
    assert_eq!(life.handle(Event::Idle), Some(Command::Stop));
    assert_eq!(
        life.instance.reason(),
        "is drained; its unit is being stopped, and with it suspended tap9 (process 9)"
    );
}

#[test]
fn drain_survives_restart_of_agentd() {
    // The tasks keep the rest of their time.
    let mut life = draining();
    life.pass(BUDGET / 4);
    let (mut life, command) = life.restarted_with(Phase::Running);
    assert_eq!(command, Some(Command::Watch));
    assert_eq!(life.instance.state(), S::Draining);
    assert_eq!(
        life.instance.deadline().unwrap() - life.now.instant,
        BUDGET * 3 / 4
    );
    life.pass(BUDGET);
    assert_eq!(life.handle(Event::Due), Some(Command::Stop));

    // The unit has not stopped yet.
    let (life, command) = stopping_after_drain().restarted_with(Phase::Running);
    assert_eq!(
        (life.instance.state(), command),
        (S::Draining, Some(Command::Watch))
    );

    // The agent ended while agentd did not run.
    for phase in [Phase::Down, Phase::Ended] {
        let (life, command) = draining().restarted_with(phase);
        assert_eq!(life.instance.state(), S::Drained);
        let stop = (phase == Phase::Ended).then_some(Command::Stop);
        assert_eq!(command, stop);
    }

    // A drained agent stays down although its requirements are met.
    let (mut life, command) = drained().restarted_with(Phase::Down);
    assert_eq!((life.instance.state(), command), (S::Drained, None));
    assert_eq!(life.handle(met()), None);
    assert_eq!(life.handle(Event::Resume), Some(Command::Start));
    assert_eq!(life.instance.remember().drain, None);

    // A start by an operator meanwhile ends the drain.
    let (life, command) = drained().restarted_with(Phase::Running);
    assert_eq!((life.instance.state(), command), (S::Running, None));

    assert_eq!(
        draining().instance.remember().drain,
        Some(Drain::Until(Duration::from_secs(1000) + BUDGET))
    );
    assert_eq!(
        drained().restarted().instance.remember().drain,
        Some(Drain::Done)
    );
}

#[test]
fn drain_before_first_report_is_carried_out() {
    for (phase, command) in [
        (Phase::Down, None),
        (Phase::Running, Some(Command::Watch)),
        (Phase::Ended, Some(Command::Stop)),
    ] {
        let mut life = unknown();
        life.handle(Event::Drain(BUDGET));
        assert_eq!(life.see_unchanged(phase), command);
        assert!(!life.instance.wanted());
    }
    let mut life = unknown();
    life.handle(Event::Drain(BUDGET));
    life.handle(Event::Resume);
    assert_eq!(life.see_unchanged(Phase::Down), Some(Command::Start));
}

#[test]
fn agents_drain_while_disks_lack_room() {
    let short = || unmet(Need::Disk);
    let mut life = running();
    assert_eq!(life.handle(short()), Some(Command::Drain));
    assert_eq!(life.handle(short()), None);
    assert_eq!(
        life.instance.reason(),
        "drains (something is missing): its tasks have up to 3600 s to end; remaining tasks are then stopped"
    );
    assert!(life.instance.wanted());
    assert_eq!(life.handle(Event::Idle), Some(Command::Stop));
    life.see(Phase::Stopping);
    life.see(Phase::Down);
    let reason = "is drained (something is missing); starts again when there is room";
    assert_eq!(life.instance.reason(), reason);
    let (mut life, command) = life.restarted_with(Phase::Down);
    assert_eq!(command, None);
    assert_eq!(life.handle(short()), None);
    assert_eq!(life.instance.reason(), reason);
    assert_eq!(life.handle(met()), Some(Command::Start));
    assert_eq!(life.instance.state(), S::Starting);
}

#[test]
fn room_ends_a_drain_whose_tasks_still_run() {
    let mut life = running();
    life.handle(unmet(Need::Disk));
    assert_eq!(life.handle(met()), Some(Command::Unwatch));
    assert_eq!(life.instance.state(), S::Running);
}

#[test]
fn drain_of_operator_outlasts_the_shortage() {
    let mut life = running();
    life.handle(unmet(Need::Disk));
    life.handle(Event::Drain(BUDGET));
    assert!(!life.instance.wanted());
    life.handle(met());
    assert_eq!(life.instance.state(), S::Draining);
    // Nor does a shortage take over a drain of an operator.
    let mut life = draining();
    life.handle(unmet(Need::Disk));
    life.handle(met());
    assert_eq!(life.instance.state(), S::Draining);
}

#[test]
fn operator_can_keep_an_agent_up_without_room() {
    let mut life = running();
    life.handle(unmet(Need::Disk));
    assert_eq!(life.handle(Event::Resume), Some(Command::Unwatch));
    assert_eq!(life.handle(unmet(Need::Disk)), None);
    assert_eq!(life.instance.state(), S::Running);
    // The next shortage drains it again.
    life.handle(met());
    assert_eq!(life.handle(unmet(Need::Disk)), Some(Command::Drain));
}

#[test]
fn stop_of_operator_outlasts_the_shortage() {
    let mut life = running();
    life.handle(unmet(Need::Disk));
    life.see(Phase::Stopping);
    life.see(Phase::Down);
    life.handle(Event::StoppedByHand);
    assert_eq!(life.handle(met()), None);
    assert!(!life.instance.wanted());
}

#[test]
fn resume_after_a_drain_of_an_operator_keeps_an_agent_up_without_room() {
    let mut life = draining();
    life.handle(unmet(Need::Disk));
    assert_eq!(life.handle(Event::Resume), Some(Command::Unwatch));
    assert_eq!(life.handle(unmet(Need::Disk)), None);
    assert_eq!(life.instance.state(), S::Running);
}
