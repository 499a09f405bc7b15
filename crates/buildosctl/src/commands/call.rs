//! Prepares method calls to the daemons, and describes their errors.

use buildos_dbus_api::agent1::ManagerProxy;
use buildos_service::text;
use zbus::Connection;
use zbus::proxy::CacheProperties;

/// Returns a proxy of agentd's manager that reads each property from agentd.
pub(crate) async fn agentd(bus: &Connection) -> Result<ManagerProxy<'static>, String> {
    ManagerProxy::builder(bus)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(agentd_error)
}

/// Returns the message for an error of a call to agentd.
pub(crate) fn agentd_error(error: zbus::Error) -> String {
    error_message("buildos-agentd", &error)
}

/// Returns the message for an error of a call to a daemon.
pub(crate) fn error_message(daemon: &str, error: &zbus::Error) -> String {
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
