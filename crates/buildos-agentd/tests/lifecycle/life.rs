//! Provides an agent with a clock that the test advances, in each of its states.

use std::time::{Duration, Instant};

use buildos_agentd::lifecycle::backoff;
use buildos_agentd::lifecycle::instance::{Event, Instance, Remembered};
use buildos_agentd::lifecycle::table::{Command, Now};
use buildos_agentd::requirements::check::Unmet;
use buildos_agentd::unit::exit::Exit;
use buildos_agentd::unit::phase::{Phase, Unit};
use buildos_dbus_api::agent1::Need;

/// Time that tasks have to end in these tests.
pub(crate) const BUDGET: Duration = Duration::from_secs(3600);

/// Instance with a clock that the test advances.
pub(crate) struct Life {
    pub(crate) instance: Instance,
    pub(crate) now: Now,
    stamp: u64,
}

impl Life {
    pub(crate) fn new(launched: bool) -> Self {
        Self::remembered(Remembered {
            launched,
            ..Remembered::default()
        })
    }

    pub(crate) fn remembered(remembered: Remembered) -> Self {
        let now = Now {
            instant: Instant::now(),
            realtime_usec: 1_000_000,
            uptime: Duration::from_secs(1000),
        };
        Self {
            instance: Instance::new(remembered, Vec::new(), now),
            now,
            stamp: 0,
        }
    }

    /// Restarts agentd; systemd has not reported the unit yet.
    pub(crate) fn restarted(self) -> Self {
        Self {
            instance: Instance::new(self.instance.remember(), Vec::new(), self.now),
            ..self
        }
    }

    /// Restarts agentd; systemd reports the unit in this phase, unchanged.
    pub(crate) fn restarted_with(self, phase: Phase) -> (Self, Option<Command>) {
        let mut life = self.restarted();
        let command = life.see_unchanged(phase);
        (life, command)
    }

    pub(crate) fn handle(&mut self, event: Event) -> Option<Command> {
        self.instance.handle(event, self.now, u32::MAX)
    }

    /// Reports the unit in a new phase.
    pub(crate) fn see(&mut self, phase: Phase) -> Option<Command> {
        self.stamp += 1;
        self.see_unchanged(phase)
    }

    /// Reports the unit without a change.
    pub(crate) fn see_unchanged(&mut self, phase: Phase) -> Option<Command> {
        let unit = Unit {
            phase,
            changed_usec: self.stamp,
            changed_realtime_usec: self.now.realtime_usec,
            main_pid: 7,
            exit: Exit::new(1, 1, "exit-code").filter(|_| phase == Phase::Ended),
            restarts: 0,
        };
        self.handle(Event::Seen(unit))
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.realtime_usec += u64::try_from(time.as_micros()).unwrap();
        self.now.uptime += time;
    }

    pub(crate) fn passed(mut self, time: Duration) -> Self {
        self.pass(time);
        self
    }
}

pub(crate) fn unmet(need: Need) -> Event {
    let reason = "something is missing".to_owned();
    Event::Requirements(vec![Unmet { need, reason }], BUDGET)
}

pub(crate) fn met() -> Event {
    Event::Requirements(Vec::new(), BUDGET)
}

/// systemd has not reported the unit; all requirements are met.
pub(crate) fn unknown() -> Life {
    Life::new(false)
}

pub(crate) fn waiting() -> Life {
    let mut life = Life::new(false);
    life.handle(unmet(Need::Network));
    life.see_unchanged(Phase::Down);
    life
}

pub(crate) fn starting() -> Life {
    let mut life = unknown();
    assert_eq!(life.see_unchanged(Phase::Down), Some(Command::Start));
    life
}

pub(crate) fn running() -> Life {
    let mut life = starting();
    life.see(Phase::Starting);
    life.see(Phase::Running);
    life
}

/// The agent ended by itself.
pub(crate) fn delayed() -> Life {
    let mut life = running();
    life.see(Phase::Ended);
    life
}

/// systemd refused the start.
pub(crate) fn refused() -> Life {
    let mut life = starting();
    life.handle(Event::Failed("bad unit file".into()));
    life
}

/// The agent ended, the delay is over, and a requirement is not met.
pub(crate) fn ended_and_waiting() -> Life {
    let mut life = delayed();
    life.handle(unmet(Need::Network));
    life.pass(backoff::FIRST);
    life.handle(Event::Due);
    life
}

pub(crate) fn stopped() -> Life {
    let mut life = running();
    life.see(Phase::Down);
    life
}

/// The tasks have time to end.
pub(crate) fn draining() -> Life {
    let mut life = running();
    assert_eq!(life.handle(Event::Drain(BUDGET)), Some(Command::Drain));
    life
}

/// The tasks have ended; systemd stops the unit.
pub(crate) fn stopping_after_drain() -> Life {
    let mut life = draining();
    assert_eq!(life.handle(Event::Idle), Some(Command::Stop));
    life
}

/// The unit is down after the drain.
pub(crate) fn drained() -> Life {
    let mut life = stopping_after_drain();
    life.see(Phase::Down);
    life
}
