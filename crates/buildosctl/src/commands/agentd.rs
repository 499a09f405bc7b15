//! agentd, whom drains and resumes are asked of.

use buildos_dbus_api::agent1::ManagerProxy;
use buildos_service::text;
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
    refusal("buildos-agentd", &error)
}

/// Why a daemon did not do what it was asked for.
pub(crate) fn refusal(daemon: &str, error: &zbus::Error) -> String {
    if let zbus::Error::MethodError(name, sentence, _) = error {
        match (name.as_str(), sentence) {
            ("org.freedesktop.DBus.Error.InvalidArgs", Some(sentence)) => return sentence.clone(),
            ("org.freedesktop.DBus.Error.AccessDenied", _) => {
                return "only root and members of buildos-admin may do that".to_owned();
            }
            _ => {}
        }
    }
    format!("{daemon} does not answer: {}", text::chain(error))
}
