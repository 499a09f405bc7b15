//! Derives the desired state from the settings.

use std::collections::{BTreeMap, BTreeSet};

use crate::agent::bbot_value::Interactive;
use crate::agent::drain::DrainMethod;
use crate::agent::id::Id;
use crate::requirements::check::Requirements;
use crate::resources::hardware::Hardware;
use crate::resources::{resources, usable_memory};
use crate::settings::Settings;
use crate::unit::command::Command;
use crate::unit::dropin;

/// Desired state of the agents.
pub(super) struct Configured {
    pub(super) agents: BTreeMap<Id, ConfiguredAgent>,
    /// Agents with `enabled = false`.
    pub(super) disabled: Vec<Id>,
    /// RAM of all agents together, MiB.
    pub(super) memory: u64,
    /// False if the configuration has errors.
    pub(super) valid: bool,
}

/// Desired state of one agent.
pub(super) struct ConfiguredAgent {
    pub(super) requirements: Requirements,
    pub(super) drain_method: DrainMethod,
    /// True if it accepts builds to which a person logs in.
    pub(super) interactive: bool,
    /// Text of the drop-in; [`None`] if the settings yield no command.
    dropin: Option<String>,
}

impl Configured {
    pub(super) fn new(settings: &Settings, valid: bool, hardware: Hardware) -> Self {
        let (enabled, disabled): (Vec<_>, Vec<_>) =
            settings.agents.iter().partition(|(_, agent)| agent.enabled);
        let agents = enabled.into_iter().map(|(id, agent)| {
            let resources = resources(id, settings, hardware);
            let command = Command::new(id, agent, &settings.options, resources);
            let configured = ConfiguredAgent {
                requirements: Requirements::new(
                    agent,
                    settings.tools(id.kind),
                    &command,
                    resources,
                ),
                drain_method: agent.drain,
                interactive: matches!(
                    agent.interactive,
                    Some(Interactive::True | Interactive::Both)
                ),
                dropin: command.as_ref().ok().map(dropin::text),
            };
            (id.clone(), configured)
        });
        Self {
            agents: agents.collect(),
            disabled: disabled.into_iter().map(|(id, _)| id.clone()).collect(),
            memory: usable_memory(settings, hardware),
            valid,
        }
    }

    pub(super) fn ids(&self) -> BTreeSet<Id> {
        self.agents.keys().cloned().collect()
    }

    /// Returns the desired drop-ins.
    pub(super) fn dropins(&self) -> BTreeMap<Id, String> {
        let agents = self.agents.iter();
        agents
            .filter_map(|(id, agent)| Some((id.clone(), agent.dropin.clone()?)))
            .collect()
    }
}
