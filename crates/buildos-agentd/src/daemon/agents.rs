//! Holds the configured agents: each with its requirements, instance and supervisor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use buildos_dbus_api::agent1::{InstanceState, Need};
use buildos_service::random;

use super::time::now;
use crate::agent::drain::{DrainMethod, Suspended};
use crate::agent::id::Id;
use crate::dbus::Targets;
use crate::lifecycle::instance::{Event, Instance, Machines, Remembered};
use crate::machine::group;
use crate::machine::tracker::Tracker;
use crate::messages;
use crate::requirements::check::{Requirements, unmet};
use crate::requirements::host::Host;
use crate::systemd::supervisor::SupervisorHandle;

/// Interval of observations of machines.
const MACHINES_INTERVAL: Duration = Duration::from_secs(5);
/// Interval while an agent drains or has ended: a machine that runs again must hold the drain.
const MACHINES_INTERVAL_IN_DRAIN: Duration = Duration::from_secs(1);

/// When a machine is suspended, and what a drain does with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspension {
    pub(super) policy: Suspended,
    /// Time without CPU time.
    pub(super) after: Duration,
}

/// The configured agents.
#[derive(Default)]
pub(super) struct Agents(BTreeMap<Id, Agent>);

/// One agent.
pub(super) struct Agent {
    pub(super) requirements: Requirements,
    pub(super) drain_method: DrainMethod,
    /// True if it accepts builds to which a person logs in.
    pub(super) interactive: bool,
    instance: Instance,
    supervisor: SupervisorHandle,
    tracker: Tracker,
    /// Control group of the unit, while processes were observed there.
    group: Option<PathBuf>,
    /// State and unmet requirements that were logged last.
    logged: Option<(InstanceState, Vec<Need>)>,
}

impl Agent {
    pub(super) fn new(
        requirements: Requirements,
        drain_method: DrainMethod,
        interactive: bool,
        remembered: Remembered,
        host: &Host,
        supervisor: SupervisorHandle,
    ) -> Self {
        let unmet = unmet(&requirements, host);
        Self {
            requirements,
            drain_method,
            interactive,
            instance: Instance::new(remembered, unmet, now()),
            supervisor,
            tracker: Tracker::default(),
            group: None,
            logged: None,
        }
    }

    fn handle(&mut self, event: Event) {
        // The upper half of the seed.
        let jitter = u32::try_from(random::seed() >> 32).unwrap_or(u32::MAX);
        if let Some(command) = self.instance.handle(event, now(), jitter) {
            self.supervisor.command(command, self.drain_method);
        }
    }

    /// Observes the machines in the unit, and logs what changed.
    fn observe_machines(&mut self, id: &Id, root: &Path, suspension: Suspension) {
        let main = self.instance.main_pid();
        if main != 0 {
            let directory = group::directory(root, main);
            let unit = id.unit();
            // The agent may have moved itself to a group below.
            let of_unit = directory.as_deref().and_then(|directory| {
                let mut groups = directory.ancestors();
                groups.find(|group| group.ends_with(&unit))
            });
            self.group = of_unit.map(Path::to_owned).or(self.group.take());
        }
        let Some(directory) = &self.group else {
            return;
        };
        let (now, after) = (now(), suspension.after);
        let processes = group::processes(root, directory);
        for change in self.tracker.update(processes, now, after) {
            messages::machine(id, &change, after);
        }
        if main == 0 && self.tracker.is_empty() {
            self.group = None;
        }
        let leaves_suspended = suspension.policy == Suspended::Leave;
        let ignored = match leaves_suspended {
            true => self.tracker.suspended(main, now, after),
            false => BTreeSet::new(),
        };
        self.supervisor.ignore(ignored);
        self.handle(Event::Machines(Machines {
            list: self.tracker.machines(),
            totals: self.tracker.totals(),
            leaves_suspended,
            interactive: self.interactive,
        }));
    }

    /// Returns true if the unit has, or had at the last observation, processes.
    fn is_up(&self) -> bool {
        self.instance.main_pid() != 0 || self.group.is_some()
    }

    /// Returns the unmet requirements that the agent waits for.
    fn awaited(&self) -> impl Iterator<Item = Need> {
        let waits = self.instance.state() == InstanceState::Waiting;
        let unmet = self.instance.unmet().iter().filter(move |_| waits);
        unmet.map(|unmet| unmet.need)
    }

    fn awaits(&self, needs: &[Need]) -> bool {
        self.awaited().any(|need| needs.contains(&need))
    }

    /// Logs a changed state or set of unmet requirements. The reasons of other daemons
    /// change too often for the journal.
    fn log(&mut self, id: &Id) {
        if !self.instance.seen() {
            return;
        }
        let current = Some((self.instance.state(), self.awaited().collect()));
        if self.logged != current {
            messages::state(id, &self.instance);
            self.logged = current;
        }
    }
}

impl Agents {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get_mut(&mut self, id: &Id) -> Option<&mut Agent> {
        self.0.get_mut(id)
    }

    pub(super) fn insert(&mut self, id: Id, agent: Agent) {
        self.0.insert(id, agent);
    }

    pub(super) fn retain(&mut self, ids: &BTreeSet<Id>) {
        self.0.retain(|id, _| ids.contains(id));
    }

    /// Passes an event to one agent. A report may be older than the configuration that
    /// removed its agent.
    pub(super) fn handle(&mut self, id: &Id, event: Event) {
        if let Some(agent) = self.0.get_mut(id) {
            agent.handle(event);
        }
    }

    /// Passes an event to each target.
    pub(super) fn handle_all(&mut self, targets: &Targets, event: &Event) {
        for (id, agent) in &mut self.0 {
            if targets.contain(id) {
                agent.handle(event.clone());
            }
        }
    }

    /// Checks the requirements and deadlines of all agents, and logs their changes.
    /// `budget`: time of tasks to end if disks have too little room.
    pub(super) fn check(&mut self, host: &Host, budget: Duration) {
        for (id, agent) in &mut self.0 {
            let unmet = unmet(&agent.requirements, host);
            agent.handle(Event::Requirements(unmet, budget));
            agent.handle(Event::Due);
            agent.log(id);
        }
    }

    /// Observes the machines of all agents.
    pub(super) fn observe_machines(&mut self, root: &Path, suspension: Suspension) {
        for (id, agent) in &mut self.0 {
            agent.observe_machines(id, root, suspension);
        }
    }

    /// Returns the time from one observation of the machines to the next; [`None`] if there can
    /// be no machines.
    pub(super) fn machines_interval(&self) -> Option<Duration> {
        let mut up = self.0.values().filter(|agent| agent.is_up()).peekable();
        up.peek()?;
        let hurry = up.any(|agent| {
            let has_ended = agent.instance.main_pid() == 0;
            has_ended || agent.instance.state() == InstanceState::Draining
        });
        Some(if hurry {
            MACHINES_INTERVAL_IN_DRAIN
        } else {
            MACHINES_INTERVAL
        })
    }

    pub(super) fn requirements(&self) -> impl Iterator<Item = &Requirements> {
        self.0.values().map(|agent| &agent.requirements)
    }

    pub(super) fn instances(&self) -> BTreeMap<&Id, &Instance> {
        self.0.iter().map(|(id, a)| (id, &a.instance)).collect()
    }

    /// Returns true if systemd has reported every unit.
    pub(super) fn all_seen(&self) -> bool {
        self.0.values().all(|agent| agent.instance.seen())
    }

    /// Returns the state and the awaited requirements of each agent.
    pub(super) fn states(&self) -> impl Iterator<Item = (InstanceState, Vec<Need>)> {
        self.0
            .values()
            .map(|agent| (agent.instance.state(), agent.awaited().collect()))
    }

    /// Returns true if an agent lacks the requirement, whatever its state.
    pub(super) fn any_lacks(&self, need: Need) -> bool {
        let mut unmet = self.0.values().flat_map(|agent| agent.instance.unmet());
        unmet.any(|unmet| unmet.need == need)
    }

    /// Returns true if an agent waits for one of these requirements.
    pub(super) fn any_awaits(&self, needs: &[Need]) -> bool {
        self.0.values().any(|agent| agent.awaits(needs))
    }

    /// Returns true if an agent waits for this requirement only.
    pub(super) fn any_awaits_only(&self, need: Need) -> bool {
        self.0
            .values()
            .any(|agent| agent.awaits(&[need]) && agent.awaited().count() == 1)
    }

    /// Returns the first deadline of the agents.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadlines = self.0.values().filter_map(|a| a.instance.deadline());
        deadlines.min()
    }
}
