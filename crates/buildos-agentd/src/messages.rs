//! Logs the messages that `units/systemd/catalog` explains.
//!
//! Every message about an agent has the fields `BUILDOS_AGENT=` and
//! `OBJECT_SYSTEMD_UNIT=`, which journald accepts from uid 0. `journalctl -u
//! buildos-bbot@default` therefore shows the decisions of agentd between the lines of the
//! agent (journalctl(1)).

use std::time::Duration;

use buildos_dbus_api::agent1::InstanceState;
use buildos_service::file::WriteError;
use buildos_service::text::{Escaped, chain, size};

use crate::agent::id::Id;
use crate::lifecycle::instance::Instance;
use crate::machine::tracker::Change;

/// An agent waits for a requirement.
const WAITING: &str = "a5b7471c640e43188c3c75afdf7fde8a";
/// An agent runs.
const RUNNING: &str = "90e2c0b5eff647a1b868032e525afbb3";
/// An agent ended by itself, or could not be started.
const ENDED: &str = "ec9c4b3fb8cd43fda4dd27d5c44c9d35";
/// An operator stopped an agent.
const STOPPED: &str = "ab1c791e2a7041a2be0ab0679223a2ef";
/// An agent drains.
const DRAINING: &str = "0f8939e4b0f943e8b4c0a5538658791c";
/// An agent is drained and stopped.
const DRAINED: &str = "8ac9b05729db4ada8ec71df0cbe1cf35";
/// An agent is in a crash loop.
const CRASH_LOOP: &str = "3f895cd92a28480eacf6520d9a71439f";
/// Agents start with a clock that is not synchronised.
const CLOCK: &str = "dff2e49b009c4d95a8660a36e3eee045";
/// A leftover of an agent is removed.
const LEAKED: &str = "755d46fb7eea44a8ab52bd32aaaf47b7";
/// A machine is suspended.
const MACHINE_SUSPENDED: &str = "b54ba12a3be54dfc9b37a826e744240a";
/// A suspended machine runs again.
const MACHINE_RESUMED: &str = "411f1cbb54784c5cb6f882d1772908f1";
/// A machine has ended.
const MACHINE_ENDED: &str = "86c419d73c6a4059ba7b9b9012934b21";
/// The settings of an agent yield no command line.
const INVALID: &str = "be308baf30dc47e6a2669ebdb21cf211";
/// An agent is no longer configured.
const REMOVED: &str = "afad5dfeeb2147b3b3e3b18e64ecfe21";
/// The command line of an agent changed.
const CHANGED: &str = "13a580ec491c4bbab220eb8753c21cac";

/// Logs the state of an agent.
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

/// Logs that agentd stops an agent that is no longer configured.
pub(crate) fn removed(id: &Id) {
    tracing::info!(
        message_id = REMOVED,
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        "{id} is no longer configured and is stopped"
    );
}

/// Logs a change of a machine. `after`: time without CPU time after which it is suspended.
pub(crate) fn machine(id: &Id, change: &Change, after: Duration) {
    let (buildos_agent, object_systemd_unit) = (id.to_string(), id.unit());
    let (Change::Suspended(machine) | Change::Resumed(machine) | Change::Ended(machine, _)) =
        change;
    let (name, buildos_pid) = (machine.name(), machine.pid);
    let interface = machine.taps.first().map(ToString::to_string);
    match change {
        Change::Suspended(_) => tracing::info!(
            message_id = MACHINE_SUSPENDED,
            buildos_agent,
            object_systemd_unit,
            interface,
            buildos_pid,
            "machine {name} of {id} is suspended: it got no CPU time for {} s",
            after.as_secs()
        ),
        Change::Resumed(_) => tracing::info!(
            message_id = MACHINE_RESUMED,
            buildos_agent,
            object_systemd_unit,
            interface,
            buildos_pid,
            "machine {name} of {id} runs again"
        ),
        Change::Ended(_, used) => tracing::info!(
            message_id = MACHINE_ENDED,
            buildos_agent,
            object_systemd_unit,
            interface,
            buildos_pid,
            buildos_time_ms = milliseconds(used.time),
            buildos_cpu_ms = milliseconds(used.cpu),
            buildos_memory_peak = used.memory_peak,
            buildos_received = used.traffic.received,
            buildos_sent = used.traffic.sent,
            "machine {name} of {id} has ended after {:.0} s: {:.1} s of CPU, up to {} of RAM, \
             {} received, {} sent",
            used.time.as_secs_f64(),
            used.cpu.as_secs_f64(),
            size(used.memory_peak),
            size(used.traffic.received),
            size(used.traffic.sent)
        ),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Logs that an agent is not stopped because the configuration has errors.
pub(crate) fn kept(id: &Id) {
    tracing::warn!(
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        "{id} is no longer configured; it keeps running while the configuration has errors"
    );
}

/// Logs that agents no longer wait for a synchronised clock.
pub(crate) fn clock_given_up(waited: Duration) {
    tracing::warn!(
        message_id = CLOCK,
        "the clock is not synchronised after {} s online; agents start anyway",
        waited.as_secs()
    );
}

/// Logs that the command line of an agent changed.
pub(crate) fn changed(id: &Id) {
    tracing::info!(
        message_id = CHANGED,
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        "{id} has a new command line, which applies from its next start"
    );
}

/// Logs the first error of the state file, and the end of the errors. Returns the reason for
/// the status of agentd. `before`: reason after the last save.
pub(crate) fn state_unsaved(
    saved: Result<(), WriteError>,
    before: Option<String>,
) -> Option<String> {
    let now = saved.err().map(|error| chain(&error));
    match (&before, &now) {
        (None, Some(reason)) => tracing::warn!(
            "{reason}; after a restart, agentd would not know drained and stopped agents"
        ),
        (Some(_), None) => tracing::info!("the state of the agents is saved again"),
        (None, None) | (Some(_), Some(_)) => {}
    }
    now
}

/// Logs the removal of a tap.
pub(crate) fn leaked_link(id: &Id, name: &str) {
    tracing::warn!(
        message_id = LEAKED,
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        interface = name,
        "removing tap {name}, which {id} left behind"
    );
}

/// Logs the removal of an iptables rule.
pub(crate) fn leaked_rule(id: &Id, rule: &str) {
    tracing::warn!(
        message_id = LEAKED,
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        "removing a rule of table nat, which {id} left behind: {}",
        Escaped::new(rule)
    );
}

/// Logs the removal of the file of a network namespace.
pub(crate) fn leaked_namespace(id: &Id, name: &str) {
    tracing::warn!(
        message_id = LEAKED,
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        "removing network namespace {}, which {id} left behind",
        Escaped::new(name)
    );
}

/// Logs that leftovers of an agent could not be found or removed.
pub(crate) fn not_cleaned_up(id: &Id, error: &str) {
    tracing::error!(
        buildos_agent = id.to_string(),
        object_systemd_unit = id.unit(),
        "leftovers of {id} are not removed: {}",
        Escaped::received(error)
    );
}
