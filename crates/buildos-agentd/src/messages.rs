//! Journal messages: the identifiers that `units/systemd/catalog` explains.
//!
//! Every message about an agent carries `BUILDOS_AGENT=` and, as agentd has
//! uid 0, `OBJECT_SYSTEMD_UNIT=`: `journalctl -u buildos-bbot@default` shows
//! what agentd decided between the lines of the agent itself (journalctl(1)).

use std::time::Duration;

use buildos_dbus_api::agent1::InstanceState;

use crate::agent::id::Id;
use crate::lifecycle::instance::Instance;

/// An agent waits for something that it needs.
const WAITING: &str = "a5b7471c640e43188c3c75afdf7fde8a";
/// An agent runs.
const RUNNING: &str = "90e2c0b5eff647a1b868032e525afbb3";
/// An agent ended by itself, or could not be started.
const ENDED: &str = "ec9c4b3fb8cd43fda4dd27d5c44c9d35";
/// An agent was stopped by somebody.
const STOPPED: &str = "ab1c791e2a7041a2be0ab0679223a2ef";
/// The tasks of an agent may end, then it is stopped.
const DRAINING: &str = "0f8939e4b0f943e8b4c0a5538658791c";
/// An agent was stopped because it is drained.
const DRAINED: &str = "8ac9b05729db4ada8ec71df0cbe1cf35";
/// An agent ends again and again.
const CRASH_LOOP: &str = "3f895cd92a28480eacf6520d9a71439f";
/// Agents start although nobody has set the clock.
const CLOCK: &str = "dff2e49b009c4d95a8660a36e3eee045";
/// An agent left something behind, which is removed.
const LEAKED: &str = "755d46fb7eea44a8ab52bd32aaaf47b7";
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
        InstanceState::Delayed if instance.crash_loop() => tracing::error!(
            message_id = CRASH_LOOP,
            buildos_agent,
            object_systemd_unit,
            buildos_exit = instance.last_exit(),
            buildos_failures = instance.failures(),
            "{id} {reason}"
        ),
        InstanceState::Delayed => tracing::warn!(
            message_id = ENDED,
            buildos_agent,
            object_systemd_unit,
            buildos_exit = instance.last_exit(),
            "{id} {reason}"
        ),
        InstanceState::Draining => tracing::info!(
            message_id = DRAINING,
            buildos_agent,
            object_systemd_unit,
            "{id} {reason}"
        ),
        InstanceState::Drained => tracing::info!(
            message_id = DRAINED,
            buildos_agent,
            object_systemd_unit,
            "{id} {reason}"
        ),
        InstanceState::Stopped => tracing::info!(
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

/// Tells that agents no longer wait for a synchronised clock.
pub(crate) fn clock_given_up(waited: Duration) {
    tracing::warn!(
        message_id = CLOCK,
        "the clock is not synchronised after {} s with a network; agents start with it as it is",
        waited.as_secs()
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

/// Tells that a process was left in the unit.
pub(crate) fn leaked_process(pid: u32, name: &str) {
    tracing::warn!(
        message_id = LEAKED,
        object_pid = pid,
        "the agent left process {name}, which is killed"
    );
}

/// Tells that a tap was left.
pub(crate) fn leaked_link(name: &str) {
    tracing::warn!(
        message_id = LEAKED,
        interface = name,
        "the agent left tap {name}, which is removed"
    );
}

/// Tells that a rule of iptables was left.
pub(crate) fn leaked_rule(rule: &str) {
    tracing::warn!(
        message_id = LEAKED,
        "the agent left a rule in table nat, which is removed: {}",
        buildos_service::text::escape(rule)
    );
}

/// Tells that the file of a network namespace was left.
pub(crate) fn leaked_namespace(name: &str) {
    tracing::warn!(
        message_id = LEAKED,
        "the agent left network namespace {}, which is removed",
        buildos_service::text::escape(name)
    );
}
