//! Letting the tasks of agents end, and taking that back.

use std::time::Duration;

use buildos_dbus_api::agent1::{Agent, InstanceState, watch_instance};
use buildos_dbus_api::watch::Watch;
use tokio::time::timeout;
use zbus::Connection;

use super::agentd::{manager, paths, silent};

/// How long agentd may be away while somebody waits for it. Its own restart
/// takes a tenth of a second.
const AWAY: Duration = Duration::from_secs(10);

/// What is to be drained, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// `bbot@default`; none stands for all.
    pub(crate) agents: Vec<String>,
    /// Time that tasks have; the configured one, if it is not given.
    pub(crate) budget: Option<Duration>,
    /// Whether to wait until no task runs.
    pub(crate) wait: bool,
}

/// Drains, and waits if that is asked for.
pub(crate) async fn drain(bus: &Connection, request: &Request) -> Result<(), String> {
    let micros = request.budget.map_or(0, |budget| budget.as_micros());
    let budget = u64::try_from(micros).unwrap_or(u64::MAX);
    let names: Vec<&str> = request.agents.iter().map(String::as_str).collect();
    let drained = manager(bus).await?.drain(&names, budget).await;
    drained.map_err(silent)?;
    if request.wait {
        for path in paths(bus).await? {
            let mut watch = watch_instance(bus, &path).await.map_err(silent)?;
            until_drained(&mut watch, &request.agents).await?;
        }
    }
    Ok(())
}

/// Takes a drain back.
pub(crate) async fn resume(bus: &Connection, agents: &[String]) -> Result<(), String> {
    let names: Vec<&str> = agents.iter().map(String::as_str).collect();
    manager(bus).await?.resume(&names).await.map_err(silent)
}

/// Waits until the agent, if it is one of those asked for, runs no task.
async fn until_drained(watch: &mut Watch<Agent>, asked: &[String]) -> Result<(), String> {
    let mut away = false;
    loop {
        let look = if away {
            let back = timeout(AWAY, watch.next()).await;
            back.map_err(|_elapsed| "buildos-agentd is gone".to_owned())?
        } else {
            watch.next().await
        };
        let Some(agent) = look.map_err(|lost| lost.to_string())? else {
            away = true;
            continue;
        };
        away = false;
        let name = format!("{}@{}", agent.kind, agent.name);
        let concerned = asked.is_empty() || asked.contains(&name);
        if !concerned || is_quiet(&agent) {
            return Ok(());
        }
    }
}

/// Whether it neither runs tasks nor will take any.
fn is_quiet(agent: &Agent) -> bool {
    [InstanceState::Drained, InstanceState::Stopped]
        .iter()
        .any(|quiet| agent.state == quiet.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_ended_is_quiet() {
        for state in InstanceState::ALL {
            let agent = Agent {
                state: state.to_string(),
                ..Agent::default()
            };
            let quiet = matches!(state, InstanceState::Drained | InstanceState::Stopped);
            assert_eq!(is_quiet(&agent), quiet, "{state}");
        }
    }
}
