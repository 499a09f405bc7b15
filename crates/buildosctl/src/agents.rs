//! What each agent does, one line each, with what it waits for below.

use buildos_dbus_api::METHOD_TIMEOUT;
use buildos_dbus_api::agent1::{Agent, ManagerProxy, watch_instance};
use buildos_service::text;
use tokio::time::timeout;
use zbus::Connection;
use zbus::proxy::CacheProperties;

/// Objects of all agents, as agentd has them.
pub(crate) async fn paths(bus: &Connection) -> Result<Vec<String>, String> {
    let manager = manager(bus).await?;
    let paths = manager.instances().await.map_err(silent)?;
    Ok(paths.iter().map(ToString::to_string).collect())
}

/// agentd's manager, asked every time.
pub(crate) async fn manager(bus: &Connection) -> Result<ManagerProxy<'static>, String> {
    ManagerProxy::builder(bus)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(silent)
}

/// Why agentd did not do what it was asked for.
pub(crate) fn silent(error: zbus::Error) -> String {
    if let zbus::Error::MethodError(name, sentence, _) = &error {
        match (name.as_str(), sentence) {
            ("org.freedesktop.DBus.Error.InvalidArgs", Some(sentence)) => return sentence.clone(),
            ("org.freedesktop.DBus.Error.AccessDenied", _) => {
                return "only root and members of buildos-admin may do that".to_owned();
            }
            _ => {}
        }
    }
    format!("buildos-agentd does not answer: {}", text::chain(&error))
}

/// Reads every agent.
pub(crate) async fn read(bus: &Connection) -> Result<Vec<Agent>, String> {
    let mut agents = Vec::new();
    for path in paths(bus).await? {
        let mut watch = watch_instance(bus, &path).await.map_err(silent)?;
        match timeout(METHOD_TIMEOUT, watch.next()).await {
            Ok(Ok(Some(agent))) => agents.push(agent),
            Ok(Ok(None)) => return Err(format!("buildos-agentd does not tell about {path}")),
            Ok(Err(lost)) => return Err(lost.to_string()),
            Err(_elapsed) => return Err("buildos-agentd does not answer in time".to_owned()),
        }
    }
    Ok(agents)
}

/// The agents in columns.
pub(crate) fn render(agents: &[Agent]) -> String {
    if agents.is_empty() {
        return "no agents configured\n".to_owned();
    }
    let width = |column: fn(&Agent) -> usize| agents.iter().map(column).max().unwrap_or(0);
    let name = width(|agent| agent.kind.len() + 1 + agent.name.len());
    let state = width(|agent| agent.state.len());
    let mut out = String::new();
    for agent in agents {
        let id = format!("{}@{}", agent.kind, agent.name);
        let reason = text::escape(&agent.reason);
        out.push_str(&format!("{id:<name$}  {:<state$}  {reason}\n", agent.state));
        // The reason of one that waits begins with the first.
        let told = usize::from(agent.state == "waiting");
        for (_, what) in agent.needs.iter().skip(told) {
            let verb = if agent.state == "waiting" {
                "waits"
            } else {
                "lacks"
            };
            let what = text::escape(what);
            out.push_str(&format!("{:<name$}  {:<state$}  {verb}: {what}\n", "", ""));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_and_what_they_wait_for() {
        let agent = |name: &str, state: &str, reason: &str, needs: &[&str]| Agent {
            kind: "bbot".into(),
            name: name.into(),
            state: state.into(),
            reason: reason.into(),
            needs: needs
                .iter()
                .map(|what| ("x".to_owned(), (*what).to_owned()))
                .collect(),
            ..Agent::default()
        };
        let agents = [
            agent("a", "running", "runs as process 7", &["NAT: gone"]),
            agent(
                "second",
                "waiting",
                "waits: no carrier (and 1 more)",
                &["no carrier", "NAT: no br1"],
            ),
        ];
        assert_eq!(
            render(&agents),
            "bbot@a       running  runs as process 7\n\
             \x20                     lacks: NAT: gone\n\
             bbot@second  waiting  waits: no carrier (and 1 more)\n\
             \x20                     waits: NAT: no br1\n"
        );
        assert_eq!(render(&[]), "no agents configured\n");
    }
}
