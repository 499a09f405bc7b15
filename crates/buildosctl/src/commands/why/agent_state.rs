//! Evaluates states and missing requirements of agents.

use buildos_dbus_api::agent1::{InstanceState, Need};

use crate::snapshot::model::{Agent, Host};

/// Returns the state of an agent, or [`None`] if a newer agentd reports an unknown one.
pub(super) fn state(agent: &Agent) -> Option<InstanceState> {
    agent.instance.state.parse().ok()
}

/// Returns true if a wanted agent lacks the requirement, whether it waits or runs, or if
/// there are no agents.
pub(super) fn is_needed(host: &Host, need: Need) -> bool {
    let lacks_it = |agent: &Agent| agent.instance.wanted && lacks(agent, need);
    host.agents.is_empty() || host.agents.iter().any(lacks_it)
}

/// Returns true if the agent waits for the requirement.
pub(super) fn waits_for(agent: &Agent, need: Need) -> bool {
    state(agent) == Some(InstanceState::Waiting) && lacks(agent, need)
}

/// Returns true if the agent is drained until disks have room again.
pub(super) fn drains_for_room(agent: &Agent) -> bool {
    let drains = matches!(
        state(agent),
        Some(InstanceState::Drained | InstanceState::Draining)
    );
    drains && agent.instance.wanted && lacks(agent, Need::Disk)
}

fn lacks(agent: &Agent, need: Need) -> bool {
    let mut needs = agent.instance.needs.iter();
    needs.any(|(key, _)| key == need.as_str())
}

/// Returns true if the agent runs tasks.
pub(super) fn is_building(agent: &Agent) -> bool {
    let up = matches!(
        state(agent),
        Some(InstanceState::Running | InstanceState::Draining)
    );
    up && agent.task_processes > 0
}

/// Returns the names of the running agents.
pub(super) fn running(host: &Host) -> Vec<String> {
    let up = host
        .agents
        .iter()
        .filter(|agent| state(agent) == Some(InstanceState::Running));
    up.map(Agent::id).collect()
}
