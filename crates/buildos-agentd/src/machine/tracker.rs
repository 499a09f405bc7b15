//! Follows the machines of one agent: their start, use of CPU, suspension and end. Does no I/O.
//!
//! # Suspension
//!
//! A paused QEMU runs no CPU of its machine. An idle machine runs at least its timer interrupts,
//! some tenths of a percent of a CPU. A machine that got at most [`ALLOWANCE`] of CPU time for
//! the configured time therefore counts as suspended. It runs again once it got more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use buildos_types::InterfaceName;

use super::group::{Process, Traffic};
use crate::lifecycle::table::Now;

/// CPU time that a suspended machine may get: one clock tick, the unit of `/proc/PID/stat`.
pub const ALLOWANCE: Duration = Duration::from_millis(10);

/// A machine, for D-Bus and operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Process of QEMU.
    pub pid: u32,
    /// Taps on its command line.
    pub taps: Vec<InterfaceName>,
    /// Start, CLOCK_REALTIME microseconds.
    pub since_usec: u64,
    /// Time since which it got no CPU time, CLOCK_REALTIME microseconds, or 0 if it runs.
    pub suspended_usec: u64,
}

impl Machine {
    /// Returns `tap0 (process 7)`, or `process 7` without a tap.
    #[must_use]
    pub fn name(&self) -> String {
        match self.taps.first() {
            Some(tap) => format!("{tap} (process {})", self.pid),
            None => format!("process {}", self.pid),
        }
    }

    /// Returns true if it is suspended.
    #[must_use]
    pub const fn is_suspended(&self) -> bool {
        self.suspended_usec != 0
    }
}

/// What a machine used until its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// Time from start to end.
    pub time: Duration,
    /// CPU time of QEMU.
    pub cpu: Duration,
    /// Most RAM of QEMU, in bytes.
    pub memory_peak: u64,
    /// Bytes that passed its taps.
    pub traffic: Traffic,
}

/// Sums over the machines of an agent that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of machines.
    pub ended: u64,
    /// Sums; for RAM the largest peak.
    pub used: Use,
}

impl Totals {
    fn add(&mut self, used: &Use) {
        let sum = &mut self.used;
        self.ended = self.ended.saturating_add(1);
        sum.time = sum.time.saturating_add(used.time);
        sum.cpu = sum.cpu.saturating_add(used.cpu);
        sum.memory_peak = sum.memory_peak.max(used.memory_peak);
        let (traffic, more) = (&mut sum.traffic, used.traffic);
        traffic.received = traffic.received.saturating_add(more.received);
        traffic.sent = traffic.sent.saturating_add(more.sent);
    }
}

/// A change of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It got no CPU time for the configured time.
    Suspended(Machine),
    /// It got CPU time again.
    Resumed(Machine),
    /// Its process is gone.
    Ended(Machine, Use),
}

/// Follows the processes of the unit of one agent.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    processes: BTreeMap<u32, Tracked>,
    totals: Totals,
}

#[derive(Debug, Clone)]
struct Tracked {
    start: Duration,
    parent: u32,
    cpu: Duration,
    /// CPU time, and the time at which it had grown by more than [`ALLOWANCE`].
    active: (Duration, Now),
    machine: Option<(Machine, Use)>,
}

impl Tracked {
    fn is_quiet(&self, now: Instant, after: Duration) -> bool {
        now.saturating_duration_since(self.active.1.instant) >= after
    }
}

impl Tracker {
    /// Takes an observation of all processes of the unit. `after`: time without CPU time after
    /// which a machine is suspended.
    pub fn update(&mut self, seen: Vec<Process>, now: Now, after: Duration) -> Vec<Change> {
        let mut before = std::mem::take(&mut self.processes);
        let mut changes = Vec::new();
        for process in seen {
            let stat = process.stat;
            // The kernel uses numbers of processes again.
            let is_same = |tracked: &Tracked| tracked.start == stat.start;
            let known = before.get(&process.pid).is_some_and(is_same);
            let tracked = known.then(|| before.remove(&process.pid)).flatten();
            let mut tracked = tracked.unwrap_or(Tracked {
                start: stat.start,
                parent: stat.parent,
                cpu: stat.cpu,
                active: (stat.cpu, now),
                machine: None,
            });
            tracked.parent = stat.parent;
            tracked.cpu = stat.cpu;
            if stat.cpu.saturating_sub(tracked.active.0) > ALLOWANCE {
                tracked.active = (stat.cpu, now);
            }
            tracked.observe(&process, now, after, &mut changes);
            self.processes.insert(process.pid, tracked);
        }
        for (machine, used) in before.into_values().filter_map(|tracked| tracked.machine) {
            self.totals.add(&used);
            changes.push(Change::Ended(machine, used));
        }
        changes
    }

    /// Returns the machines, by process.
    #[must_use]
    pub fn machines(&self) -> Vec<Machine> {
        let machines = self.processes.values().filter_map(|t| t.machine.as_ref());
        machines.map(|(machine, _)| machine.clone()).collect()
    }

    /// Returns the sums over machines that have ended.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns true if no process was observed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Returns the processes that serve suspended machines only. They are the children of the
    /// main process, with their descendants, among which is a suspended machine, and of which
    /// not one got CPU time for `after`.
    #[must_use]
    pub fn suspended(&self, main: u32, now: Now, after: Duration) -> BTreeSet<u32> {
        let mut busy = BTreeSet::new();
        let mut suspended = BTreeSet::new();
        for (pid, tracked) in &self.processes {
            let family = self.family(*pid, main);
            if !tracked.is_quiet(now.instant, after) {
                busy.insert(family);
            }
            if tracked
                .machine
                .as_ref()
                .is_some_and(|(m, _)| m.is_suspended())
            {
                suspended.insert(family);
            }
        }
        let pids = self.processes.keys().copied();
        pids.filter(|pid| {
            let family = self.family(*pid, main);
            *pid != main && suspended.contains(&family) && !busy.contains(&family)
        })
        .collect()
    }

    /// Returns the eldest ancestor of a process in the unit below the main process.
    fn family(&self, pid: u32, main: u32) -> u32 {
        let mut eldest = pid;
        // Parents that changed between two readings can form a circle.
        for _ in 0..self.processes.len() {
            match self.processes.get(&eldest).map(|tracked| tracked.parent) {
                Some(parent) if parent != main && self.processes.contains_key(&parent) => {
                    eldest = parent;
                }
                Some(_) | None => break,
            }
        }
        eldest
    }
}

impl Tracked {
    /// Takes what was read of the process as a machine.
    fn observe(&mut self, process: &Process, now: Now, after: Duration, changes: &mut Vec<Change>) {
        // A wrapper such as nice(1) becomes QEMU later.
        let Some(observed) = &process.machine else {
            return;
        };
        let age = now.uptime.saturating_sub(self.start);
        let quiet = self.is_quiet(now.instant, after);
        let active_usec = self.active.1.realtime_usec;
        let (machine, used) = self.machine.get_or_insert_with(|| {
            let age_usec = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
            let machine = Machine {
                pid: process.pid,
                taps: observed.taps.clone(),
                since_usec: now.realtime_usec.saturating_sub(age_usec),
                suspended_usec: 0,
            };
            (machine, Use::default())
        });
        used.time = age;
        used.cpu = self.cpu;
        used.memory_peak = used.memory_peak.max(observed.memory.peak);
        // The counters of a tap that is already gone are zero.
        let traffic = &mut used.traffic;
        traffic.received = traffic.received.max(observed.traffic.received);
        traffic.sent = traffic.sent.max(observed.traffic.sent);
        match (machine.is_suspended(), quiet) {
            (false, true) => {
                // 0 means that it runs.
                machine.suspended_usec = active_usec.max(1);
                changes.push(Change::Suspended(machine.clone()));
            }
            (true, false) => {
                machine.suspended_usec = 0;
                changes.push(Change::Resumed(machine.clone()));
            }
            (true, true) | (false, false) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::Observed;
    use super::super::process::{Memory, Stat};
    use super::*;
    use proptest::prelude::*;

    const AFTER: Duration = Duration::from_secs(60);
    const MAIN: u32 = 10;

    struct Clock(Instant);

    impl Clock {
        fn at(&self, seconds: u64) -> Now {
            let passed = Duration::from_secs(seconds);
            Now {
                instant: self.0 + passed,
                realtime_usec: 1_000_000_000 + seconds * 1_000_000,
                uptime: Duration::from_secs(100) + passed,
            }
        }
    }

    fn clock() -> Clock {
        Clock(Instant::now())
    }

    fn process(pid: u32, parent: u32, cpu_ms: u64) -> Process {
        Process {
            pid,
            stat: Stat {
                parent,
                cpu: Duration::from_millis(cpu_ms),
                start: Duration::from_secs(90),
            },
            machine: None,
        }
    }

    fn machine(pid: u32, parent: u32, cpu_ms: u64) -> Process {
        Process {
            machine: Some(Observed {
                taps: vec![InterfaceName::new(&format!("tap{pid}")).unwrap()],
                memory: Memory {
                    resident: 5,
                    peak: 9,
                },
                traffic: Traffic {
                    received: 3,
                    sent: 4,
                },
            }),
            ..process(pid, parent, cpu_ms)
        }
    }

    #[test]
    fn end_of_machine_reports_its_use() {
        let (mut tracker, clock) = (Tracker::default(), clock());
        assert_eq!(
            tracker.update(vec![machine(20, MAIN, 500)], clock.at(0), AFTER),
            []
        );
        let (only,) = (tracker.machines().remove(0),);
        assert_eq!(only.name(), "tap20 (process 20)");
        assert_eq!(only.since_usec, 990_000_000);
        tracker.update(vec![machine(20, MAIN, 2500)], clock.at(5), AFTER);
        let mut gone = machine(20, MAIN, 2600);
        gone.machine = Some(Observed::default());
        tracker.update(vec![gone], clock.at(6), AFTER);
        let used = Use {
            time: Duration::from_secs(16),
            cpu: Duration::from_millis(2600),
            memory_peak: 9,
            traffic: Traffic {
                received: 3,
                sent: 4,
            },
        };
        let changes = tracker.update(Vec::new(), clock.at(10), AFTER);
        assert_eq!(changes, [Change::Ended(only, used)]);
        assert_eq!(tracker.totals(), Totals { ended: 1, used });
        assert!(tracker.is_empty() && tracker.machines().is_empty());
    }

    #[test]
    fn wrapper_becomes_machine_and_reused_number_is_another() {
        let (mut tracker, clock) = (Tracker::default(), clock());
        tracker.update(vec![process(20, MAIN, 0)], clock.at(0), AFTER);
        assert_eq!(tracker.machines(), []);
        tracker.update(vec![machine(20, MAIN, 0)], clock.at(1), AFTER);
        assert_eq!(tracker.machines().len(), 1);
        let mut other = machine(20, MAIN, 0);
        other.stat.start = Duration::from_secs(95);
        let changes = tracker.update(vec![other], clock.at(2), AFTER);
        assert!(matches!(changes.as_slice(), [Change::Ended(..)]));
        assert_eq!(tracker.machines().len(), 1);
    }

    #[test]
    fn machine_without_cpu_time_is_suspended_until_it_gets_some() {
        let (mut tracker, clock) = (Tracker::default(), clock());
        let mut at = |seconds, cpu| {
            let changes = tracker.update(vec![machine(20, MAIN, cpu)], clock.at(seconds), AFTER);
            (changes, tracker.machines()[0].suspended_usec)
        };
        assert_eq!(at(0, 500), (vec![], 0));
        assert_eq!(at(40, 600), (vec![], 0));
        // One tick is no use of CPU.
        assert_eq!(at(99, 610), (vec![], 0));
        let (changes, since) = at(100, 610);
        assert!(matches!(changes.as_slice(), [Change::Suspended(_)]));
        assert_eq!(since, 1_040_000_000);
        assert_eq!(at(200, 610), (vec![], since));
        let (changes, since) = at(205, 640);
        assert!(matches!(changes.as_slice(), [Change::Resumed(_)]));
        assert_eq!(since, 0);
    }

    #[test]
    fn idle_machine_is_not_suspended() {
        let (mut tracker, clock) = (Tracker::default(), clock());
        // 0.1 % of a CPU.
        for seconds in (0..600).step_by(5) {
            let changes =
                tracker.update(vec![machine(20, MAIN, seconds)], clock.at(seconds), AFTER);
            assert_eq!(changes, [], "{seconds}");
        }
    }

    #[test]
    fn processes_of_suspended_machine_are_its_quiet_family() {
        let (mut tracker, clock) = (Tracker::default(), clock());
        let seen = |busy: u64| {
            vec![
                process(MAIN, 1, busy),
                // An agent's process for one task, with a suspended machine and its server.
                process(20, MAIN, 5),
                machine(21, 20, 5),
                process(22, 20, 5),
                // A second task, whose other machine runs.
                process(30, MAIN, 5),
                machine(31, 30, 5),
                machine(32, 30, busy),
                // A machine in the background, and a program without a machine.
                machine(40, 1, 5),
                process(50, MAIN, 5),
            ]
        };
        tracker.update(seen(0), clock.at(0), AFTER);
        assert!(tracker.suspended(MAIN, clock.at(0), AFTER).is_empty());
        tracker.update(seen(100), clock.at(60), AFTER);
        let suspended = tracker.suspended(MAIN, clock.at(60), AFTER);
        assert_eq!(suspended, [20, 21, 22, 40].into());
    }

    proptest! {
        #[test]
        fn any_parents_end_the_search(parents in prop::collection::vec(0u32..12, 12)) {
            let (mut tracker, clock) = (Tracker::default(), clock());
            let seen = || {
                let processes = parents.iter().zip(0u32..);
                processes.map(|(parent, pid)| machine(pid, *parent, 0)).collect::<Vec<_>>()
            };
            tracker.update(seen(), clock.at(0), AFTER);
            tracker.update(seen(), clock.at(60), AFTER);
            let all = tracker.suspended(99, clock.at(60), AFTER);
            prop_assert_eq!(all.len(), 12);
        }
    }
}
