//! Drains the agents for an update of the operating system, and ends the drain.
//!
//! The user of the daemon may call `Drain` and `Resume` of buildos-agentd, and nothing else. The
//! names of the agents that an update has drained are in a file: a run after a crash ends their
//! drain, and only theirs.

use std::fs;
use std::future::Future;
use std::io;
use std::time::Duration;

use buildos_dbus_api::agent1::{Agent, InstanceState, ManagerProxy, NAME};
use buildos_dbus_api::{system_bus, watch};
use buildos_service::file::overwrite;
use buildos_service::text::chain;
use tokio::time::sleep;
use zbus::Connection;

use crate::paths::Paths;

/// Interval between two looks at agents that drain.
const LOOK: Duration = Duration::from_secs(1);
/// Time that tasks have if nothing stops them: a month.
const NO_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Permissions of the file.
const READABLE: u32 = 0o644;

/// An agent of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// For example `bbot@default`.
    pub name: String,
    /// State on D-Bus.
    pub state: String,
    /// True while its main process runs, also while systemd stops it.
    pub is_up: bool,
}

impl Found {
    /// Returns true if an operator or a requirement has drained or stopped it.
    #[must_use]
    pub fn is_out_of_service(&self) -> bool {
        let states = [
            InstanceState::Draining,
            InstanceState::Drained,
            InstanceState::Stopped,
        ];
        states.iter().any(|state| state.as_str() == self.state)
    }

    /// Returns true if it takes tasks.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == InstanceState::Running.as_str()
    }

    /// Returns true if it runs no task and takes none.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let states = [
            InstanceState::Drained,
            InstanceState::Stopped,
            InstanceState::Invalid,
        ];
        !self.is_up && states.iter().any(|state| state.as_str() == self.state)
    }
}

/// Runs something on the bus, from a thread without a runtime.
fn on_bus<T, F: Future<Output = zbus::Result<T>>>(
    work: impl FnOnce(Connection) -> F,
) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    let done = runtime.block_on(async { work(system_bus().await?).await });
    done.map_err(|error| format!("buildos-agentd: {}", chain(&error)))
}

/// Returns the agents of this host.
///
/// # Errors
///
/// buildos-agentd is not on the bus: its agents can run tasks.
pub fn list() -> Result<Vec<Found>, String> {
    on_bus(|bus| async move { read(&bus).await })
}

async fn read(bus: &Connection) -> zbus::Result<Vec<Found>> {
    let manager = ManagerProxy::new(bus).await?;
    let mut found = Vec::new();
    for path in manager.instances().await? {
        // An agent that was removed meanwhile has no object.
        if let Some(agent) = watch::read::<Agent>(bus, NAME, path.as_str()).await? {
            found.push(Found {
                name: format!("{}@{}", agent.kind, agent.name),
                state: agent.state,
                is_up: agent.main_pid != 0,
            });
        }
    }
    Ok(found)
}

/// Drains the agents. After `force` seconds their tasks are stopped, or never (0).
///
/// # Errors
///
/// buildos-agentd refuses it.
pub fn drain(paths: &Paths, agents: &[Found], force: u32) -> Result<(), String> {
    let names: Vec<&str> = agents
        .iter()
        .filter(|agent| !agent.is_out_of_service())
        .map(|agent| agent.name.as_str())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    // First the file: after a crash between both, a Resume too many does no harm.
    let text = names.join("\n") + "\n";
    overwrite(&paths.os_drain(), text.as_bytes(), READABLE).map_err(|error| chain(&error))?;
    let budget = match force {
        0 => NO_LIMIT,
        force => Duration::from_secs(force.into()),
    };
    let budget = u64::try_from(budget.as_micros()).unwrap_or(u64::MAX);
    on_bus(|bus| async move { ManagerProxy::new(&bus).await?.drain(&names, budget).await })
}

/// Waits until no agent runs a task. `stop` is asked each second, and ends it with a value.
///
/// # Errors
///
/// buildos-agentd left the bus.
pub fn wait<T>(mut stop: impl FnMut(&[Found]) -> Option<T>) -> Result<Option<T>, String> {
    on_bus(|bus| async move {
        loop {
            let agents = read(&bus).await?;
            if agents.iter().all(Found::is_quiet) {
                return Ok(None);
            }
            if let Some(reason) = stop(&agents) {
                return Ok(Some(reason));
            }
            sleep(LOOK).await;
        }
    })
}

/// Ends the drain of the agents that an update has drained.
///
/// # Errors
///
/// buildos-agentd does not answer; the next run repeats it.
pub fn resume(paths: &Paths) -> Result<(), String> {
    let text = match fs::read_to_string(paths.os_drain()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => {
            text.map_err(|error| format!("cannot read {}: {error}", paths.os_drain().display()))?
        }
    };
    let names: Vec<&str> = text.lines().collect();
    on_bus(|bus| async move {
        let manager = ManagerProxy::new(&bus).await?;
        for name in names {
            match manager.resume(&[name]).await {
                // It is no longer configured.
                Err(zbus::Error::MethodError(error, ..))
                    if error.as_str() == "org.freedesktop.DBus.Error.InvalidArgs" => {}
                resumed => resumed?,
            }
        }
        Ok(())
    })?;
    fs::remove_file(paths.os_drain())
        .map_err(|error| format!("cannot remove {}: {error}", paths.os_drain().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_an_agent_is_judged() {
        for state in InstanceState::ALL {
            let agent = Found {
                name: "bbot@x".to_owned(),
                state: state.to_string(),
                is_up: false,
            };
            assert!(
                !Found {
                    is_up: true,
                    ..agent.clone()
                }
                .is_quiet()
            );
            let judged = (
                agent.is_out_of_service(),
                agent.is_quiet(),
                agent.is_running(),
            );
            let expected = match state {
                InstanceState::Waiting | InstanceState::Starting | InstanceState::Delayed => {
                    (false, false, false)
                }
                InstanceState::Running => (false, false, true),
                InstanceState::Draining => (true, false, false),
                InstanceState::Drained | InstanceState::Stopped => (true, true, false),
                InstanceState::Invalid => (false, true, false),
            };
            assert_eq!(judged, expected, "{state}");
        }
    }
}
