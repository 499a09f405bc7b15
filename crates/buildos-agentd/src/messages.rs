//! Journal messages: the identifiers that `units/systemd/catalog` explains.
//!
//! Every message about an agent carries `BUILDOS_AGENT=` and, as agentd has
//! uid 0, `OBJECT_SYSTEMD_UNIT=`: `journalctl -u buildos-bbot@default` shows
//! what agentd decided between the lines of the agent itself (journalctl(1)).

use buildos_dbus_api::agent1::InstanceState;

use crate::agent::Id;
use crate::instance::Instance;

/// An agent waits for something that it needs.
const WAITING: &str = "a5b7471c640e43188c3c75afdf7fde8a";
/// An agent runs.
const RUNNING: &str = "90e2c0b5eff647a1b868032e525afbb3";
/// An agent ended by itself, or could not be started.
const ENDED: &str = "ec9c4b3fb8cd43fda4dd27d5c44c9d35";
/// An agent was stopped by somebody.
const STOPPED: &str = "ab1c791e2a7041a2be0ab0679223a2ef";
/// The configuration of an agent makes no command.
const INVALID: &str = "be308baf30dc47e6a2669ebdb21cf211";
/// An agent is no longer configured.
const REMOVED: &str = "afad5dfeeb2147b3b3e3b18e64ecfe21";
/// An agent has another command line.
const CHANGED: &str = "13a580ec491c4bbab220eb8753c21cac";

/// Tells in what state an agent is now.
pub(crate) fn state(id: &Id, instance: &Instance) {
    let (unit, reason) = (id.unit(), instance.reason());
    let (buildos_agent, object_systemd_unit) = (id.to_string(), unit.as_str());
    match instance.state() {
        InstanceState::Waiting => tracing::info!(
            message_id = WAITING,
            buildos_agent,
            object_systemd_unit,
            "{id} {reason}"
        ),
        InstanceState::Starting => {
            tracing::debug!(buildos_agent, object_systemd_unit, "{id} {reason}")
        }
        InstanceState::Running => tracing::info!(
            message_id = RUNNING,
            buildos_agent,
            object_systemd_unit,
            "{id} {reason}"
        ),
        InstanceState::Delayed => tracing::warn!(
            message_id = ENDED,
            buildos_agent,
            object_systemd_unit,
            buildos_exit = instance.last_exit(),
            "{id} {reason}"
        ),
        InstanceState::Stopped | InstanceState::Drained => tracing::info!(
            message_id = STOPPED,
            buildos_agent,
            object_systemd_unit,
            "{id} {reason}"
        ),
        InstanceState::Invalid => tracing::error!(
            message_id = INVALID,
            buildos_agent,
            object_systemd_unit,
            "{id} {reason}"
        ),
    }
}

/// Tells that an agent is stopped because it is not configured any more.
pub(crate) fn removed(id: &Id) {
    tracing::info!(
        message_id = REMOVED,
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        "{id} is no longer configured and is stopped"
    );
}

/// Tells that an agent would be stopped, were the configuration sound.
pub(crate) fn kept(id: &Id) {
    tracing::warn!(
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        "{id} is no longer configured; it is left alone while the configuration has errors"
    );
}

/// Tells that an agent has another command line than before.
pub(crate) fn changed(id: &Id) {
    tracing::info!(
        message_id = CHANGED,
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        "{id} has a new command line, in force from its next start"
    );
}
