//! Prints a view of the host, once or after every change.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use buildos_dbus_api::cache::Cache;
use buildos_service::text;
use serde_json::Value;
use zbus::Connection;

use super::{agents, leases, links, machines, metrics, status, why};
use crate::snapshot::model::Host;
use crate::snapshot::watch::Changes;
use crate::snapshot::{auth_keys, collect, complaints, controllers, machines as found, refusals};
use crate::term::{Style, print};

/// Maximum time between two screens of `--watch`. The times on a screen change without a
/// signal on the bus.
const TICK: Duration = Duration::from_secs(1);

/// A command that shows the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum View {
    Status,
    Why,
    Links,
    Leases,
    Agents,
    Machines,
    Metrics,
}

/// A view and how to print it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) view: View,
    /// Prints JSON instead of text.
    pub(crate) json: bool,
    /// Prints again after every change.
    pub(crate) watch: bool,
    /// Agents to consider; empty for all.
    pub(crate) agents: Vec<String>,
}

/// The output of a view.
pub(crate) struct Output {
    /// Complete lines.
    pub(crate) text: String,
    /// The exit status; see buildosctl(1).
    pub(crate) code: u8,
}

/// Prints the host, once or after every change.
pub(crate) async fn show(bus: &Connection, request: &Request) -> Result<ExitCode, String> {
    if !request.watch {
        let output = render(&Cache::new(bus), request).await?;
        return Ok(match print(&output.text) {
            printed if printed == ExitCode::SUCCESS => ExitCode::from(output.code),
            failed => failed,
        });
    }
    let mut changes = Changes::new(bus)
        .await
        .map_err(|error| format!("cannot subscribe to changes: {}", text::chain(&error)))?;
    let screen = std::io::stdout().is_terminal() && !request.json;
    let mut before = String::new();
    loop {
        let output = render(changes.cache(), request).await?;
        if screen {
            // Cursor home, erase the screen (ECMA-48).
            if print(&format!("\x1b[H\x1b[2J{}", output.text)) != ExitCode::SUCCESS {
                return Ok(ExitCode::FAILURE);
            }
        } else if output.text != before && print(&output.text) != ExitCode::SUCCESS {
            return Ok(ExitCode::FAILURE);
        }
        before = output.text;
        if !changes.next(TICK).await {
            return Err("the connection to the system bus was lost".to_owned());
        }
    }
}

/// Reads the host and renders it.
async fn render(cache: &Cache, request: &Request) -> Result<Output, String> {
    let mut host = collect::host(cache).await;
    if request.view == View::Why {
        for name in &request.agents {
            if host.manager.is_some() && !host.agents.iter().any(|agent| agent.id() == *name) {
                return Err(format!("no agent {name:?} is configured"));
            }
        }
        if !request.agents.is_empty() {
            host.agents
                .retain(|agent| request.agents.contains(&agent.id()));
        }
        controllers::try_all(&mut host.agents).await;
        complaints::find(&mut host.agents);
    }
    if matches!(request.view, View::Why | View::Agents) {
        refusals::find(&mut host.agents);
    }
    if request.view == View::Machines {
        found::find(&mut host);
    }
    if request.view == View::Agents {
        auth_keys::find(&mut host.agents);
    }
    if request.json {
        let output = request.view.json(&host);
        output.map_err(|error| format!("cannot write JSON: {error}"))
    } else {
        Ok(request.view.text(&host, Style::of_stdout()))
    }
}

impl View {
    /// Returns the host as text.
    pub(crate) fn text(self, host: &Host, style: Style) -> Output {
        let text = match self {
            Self::Status => status::render(host, style),
            Self::Why => {
                let verdict = why::judge(host);
                return Output {
                    text: verdict.render(style),
                    code: verdict.exit_code(),
                };
            }
            Self::Links => links::render(host),
            Self::Leases => leases::render(host),
            Self::Agents => agents::render(&host.agents),
            Self::Machines => machines::render(host, style),
            Self::Metrics => metrics::render(host),
        };
        let code = self.code(host);
        Output { text, code }
    }

    /// Returns the host as one JSON object on one line; see
    /// `docs/buildosctl.schema.json`.
    pub(crate) fn json(self, host: &Host) -> Result<Output, serde_json::Error> {
        let mut code = self.code(host);
        let value: Value = match self {
            Self::Status | Self::Metrics => serde_json::to_value(host)?,
            Self::Why => {
                let verdict = why::judge(host);
                code = verdict.exit_code();
                serde_json::to_value(verdict)?
            }
            Self::Links => serde_json::to_value(links::Json::of(host))?,
            Self::Leases => serde_json::to_value(leases::Json::of(host))?,
            Self::Agents => serde_json::to_value(agents::Json::of(host))?,
            Self::Machines => serde_json::to_value(machines::Json::of(host))?,
        };
        let text = format!("{value}\n");
        Ok(Output { text, code })
    }

    /// Returns 1 if a daemon that this view needs does not answer, otherwise 0.
    fn code(self, host: &Host) -> u8 {
        let known = match self {
            Self::Status => host.silent.is_empty(),
            Self::Links => host.network.is_some(),
            Self::Machines => host.network.is_some() && host.manager.is_some(),
            Self::Leases => host.network.is_some() && host.nat.is_some(),
            Self::Agents => host.manager.is_some(),
            // `why` has its own exit codes; buildos_up shows which daemons answer.
            Self::Why | Self::Metrics => true,
        };
        u8::from(!known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::ready;

    #[test]
    fn exit_code_of_view_is_1_without_answer_of_daemon() {
        let mut host = ready();
        assert_eq!(View::Agents.text(&host, Style::PLAIN).code, 0);
        host.manager = None;
        assert_eq!(View::Agents.text(&host, Style::PLAIN).code, 1);
        assert_eq!(View::Links.text(&host, Style::PLAIN).code, 0);
    }
}
