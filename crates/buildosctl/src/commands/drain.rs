//! `buildosctl drain` and `buildosctl resume`.

use std::time::Duration;

use buildos_dbus_api::agent1::{Agent, InstanceState, watch_instance};
use buildos_dbus_api::system::unit_state;
use buildos_dbus_api::watch::Watch;
use tokio::time::{Instant, sleep, timeout};
use zbus::Connection;

use super::call::{agentd, agentd_error};
use crate::snapshot::model::Daemon;

/// Limit for agentd's absence during `--wait`. A restart of agentd takes a tenth of a
/// second.
const ABSENCE_LIMIT: Duration = Duration::from_secs(10);
/// Delay before agentd is called again while it restarts.
const RETRY: Duration = Duration::from_millis(50);

/// The arguments of `drain`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Names such as `bbot@default`; empty for all agents.
    pub(crate) agents: Vec<String>,
    /// Time that the tasks have to end; `None` for the configured time.
    pub(crate) budget: Option<Duration>,
    /// Waits until no task runs.
    pub(crate) wait: bool,
}

/// Drains agents, and with `wait` returns once no task runs.
pub(crate) async fn drain(bus: &Connection, request: &Request) -> Result<(), String> {
    let micros = request.budget.map_or(0, |budget| budget.as_micros());
    let budget = u64::try_from(micros).unwrap_or(u64::MAX);
    let names: Vec<&str> = request.agents.iter().map(String::as_str).collect();
    call_drain(bus, &names, budget).await?;
    if request.wait {
        let paths = agentd(bus).await?.instances().await.map_err(agentd_error)?;
        for path in paths {
            let watch = watch_instance(bus, path.as_str()).await;
            let mut watch = watch.map_err(agentd_error)?;
            until_drained(&mut watch, &request.agents).await?;
        }
    }
    Ok(())
}

/// Calls agentd, and again if agentd is absent because it restarts. Does not start agentd:
/// buildos-drain.service calls this when systemd stops it, also after agentd was stopped.
async fn call_drain(bus: &Connection, names: &[&str], budget: u64) -> Result<(), String> {
    let agentd = agentd(bus).await?;
    let deadline = Instant::now() + ABSENCE_LIMIT;
    loop {
        match agentd.drain(names, budget).await {
            Err(error) if is_absent(&error) => {
                if Instant::now() >= deadline || !is_starting(bus).await {
                    return Err("buildos-agentd is not running".to_owned());
                }
                sleep(RETRY).await;
            }
            drained => return drained.map_err(agentd_error),
        }
    }
}

/// Returns true if no process has the bus name of the called daemon.
fn is_absent(error: &zbus::Error) -> bool {
    let zbus::Error::MethodError(name, ..) = error else {
        return false;
    };
    matches!(
        name.as_str(),
        "org.freedesktop.DBus.Error.NameHasNoOwner" | "org.freedesktop.DBus.Error.ServiceUnknown"
    )
}

/// Returns true if systemd has started agentd or is about to.
async fn is_starting(bus: &Connection) -> bool {
    let unit = format!("{}.service", Daemon::Agentd.unit());
    let state = unit_state(bus, &unit).await;
    state.is_some_and(|state| {
        matches!(
            state.active_state.as_str(),
            "active" | "activating" | "reloading"
        )
    })
}

/// Lets drained agents start again.
pub(crate) async fn resume(bus: &Connection, agents: &[String]) -> Result<(), String> {
    let names: Vec<&str> = agents.iter().map(String::as_str).collect();
    let resumed = agentd(bus).await?.resume(&names).await;
    resumed.map_err(agentd_error)
}

/// Waits until the agent runs no task. Returns at once for an agent that is not in `names`,
/// unless `names` is empty.
async fn until_drained(watch: &mut Watch<Agent>, names: &[String]) -> Result<(), String> {
    let mut absent = false;
    loop {
        let snapshot = if absent {
            let reply = timeout(ABSENCE_LIMIT, watch.next()).await;
            reply.map_err(|_elapsed| "buildos-agentd did not come back".to_owned())?
        } else {
            watch.next().await
        };
        let Some(agent) = snapshot.map_err(|lost| lost.to_string())? else {
            absent = true;
            continue;
        };
        absent = false;
        let name = format!("{}@{}", agent.kind, agent.name);
        let selected = names.is_empty() || names.contains(&name);
        if !selected || is_quiet(&agent) {
            return Ok(());
        }
    }
}

/// Returns true if the agent runs no task and takes none.
fn is_quiet(agent: &Agent) -> bool {
    [InstanceState::Drained, InstanceState::Stopped]
        .iter()
        .any(|quiet| agent.state == quiet.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_is_quiet_only_if_drained_or_stopped() {
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
