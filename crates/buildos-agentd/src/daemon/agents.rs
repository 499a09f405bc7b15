//! Holds the configured agents: each with its requirements, instance and supervisor.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use buildos_dbus_api::agent1::{InstanceState, Need};
use buildos_service::random;

use super::time::now;
use crate::agent::drain::DrainMethod;
use crate::agent::id::Id;
use crate::dbus::Targets;
use crate::lifecycle::instance::{Event, Instance, Remembered};
use crate::messages;
use crate::requirements::check::{Requirements, unmet};
use crate::requirements::host::Host;
use crate::systemd::supervisor::SupervisorHandle;

/// The configured agents.
#[derive(Default)]
pub(super) struct Agents(BTreeMap<Id, Agent>);

/// One agent.
pub(super) struct Agent {
    pub(super) requirements: Requirements,
    pub(super) drain_method: DrainMethod,
    instance: Instance,
    supervisor: SupervisorHandle,
    /// State and unmet requirements that were logged last.
    logged: Option<(InstanceState, Vec<Need>)>,
}

impl Agent {
    pub(super) fn new(
        requirements: Requirements,
        drain_method: DrainMethod,
        remembered: Remembered,
        host: &Host,
        supervisor: SupervisorHandle,
    ) -> Self {
        let unmet = unmet(&requirements, host);
        Self {
            requirements,
            drain_method,
            instance: Instance::new(remembered, unmet, now()),
            supervisor,
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
    pub(super) fn check(&mut self, host: &Host) {
        for (id, agent) in &mut self.0 {
            agent.handle(Event::Requirements(unmet(&agent.requirements, host)));
            agent.handle(Event::Due);
            agent.log(id);
        }
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
