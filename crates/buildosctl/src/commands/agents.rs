//! `buildosctl agents`: lists the agents, each with its missing requirements below.

use serde::Serialize;

use crate::snapshot::model::{Agent, Host, SCHEMA};
use crate::term::{columns, row};

/// Renders the agents.
pub(crate) fn render(agents: &[Agent]) -> String {
    if agents.is_empty() {
        return "no agents configured\n".to_owned();
    }
    let mut rows = Vec::new();
    for agent in agents {
        let instance = &agent.instance;
        rows.push(row(&[&agent.id(), &instance.state, &instance.reason]));
        // The reason of a waiting agent already names the first requirement.
        let waits = instance.state == "waiting";
        let verb = if waits { "waits" } else { "lacks" };
        for (_, text) in instance.needs.iter().skip(usize::from(waits)) {
            rows.push(row(&["", "", &format!("{verb}: {text}")]));
        }
        if let Some(fingerprint) = &agent.auth_key {
            rows.push(row(&["", "", &format!("key: {fingerprint}")]));
        }
        for command in agent.refused_commands.iter().flatten() {
            rows.push(row(&["", "", &format!("sudo refused: {command}")]));
        }
    }
    columns(&rows)
}

/// buildosctl agents --json
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "agents"))]
pub(crate) struct Json<'a> {
    /// Version of this format, as in status
    schema: u32,
    /// All agents, by kind and name
    agents: &'a [Agent],
}

impl<'a> Json<'a> {
    /// Returns the JSON form of the agents of a host.
    pub(crate) fn of(host: &'a Host) -> Self {
        Self {
            schema: SCHEMA,
            agents: &host.agents,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::agent;

    #[test]
    fn agents_are_listed_with_missing_requirements() {
        let mut first = agent("bbot@a", "running", &[("private-network", "NAT: gone")]);
        first.instance.reason = "runs as process 7".into();
        let needs = [
            ("network", "no carrier"),
            ("private-network", "NAT: no br1"),
        ];
        let second = agent("bbot@second", "waiting", &needs);
        first.auth_key = Some("ab12".into());
        first.refused_commands = Some(vec!["/usr/sbin/ip netns add x".into()]);
        assert_eq!(
            render(&[first, second]),
            "bbot@a       running  runs as process 7\n\
             \x20                     lacks: NAT: gone\n\
             \x20                     key: ab12\n\
             \x20                     sudo refused: /usr/sbin/ip netns add x\n\
             bbot@second  waiting  waits: no carrier\n\
             \x20                     waits: NAT: no br1\n"
        );
        assert_eq!(render(&[]), "no agents configured\n");
    }
}
