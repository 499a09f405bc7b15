//! Logs the messages that `units/systemd/catalog` explains.

use buildos_channel::{Channel, Digest, Name};
use buildos_service::text::Escaped;

use crate::choices::change::Change;

/// A channel was accepted.
const ACCEPTED: &str = "7f0ce8b3a8f94f1f9a4bf1f1cb5ce2d6";
/// Nothing was fetched, or a channel was refused.
const REFUSED: &str = "3a4b2cf8d7e5463c9d1f6a0e5b7c8d91";
/// A machine was placed.
const PLACED: &str = "b1c6a7d85f0e4e3b8c2d9f4a6e1b0c73";
/// A machine was not placed.
const NOT_PLACED: &str = "5d9e0f1a2b3c4d5e8f7a6b9c8d7e6f50";
/// An agent was placed.
const AGENT_PLACED: &str = "356a751d83894da2a63652433d5f6384";
/// An agent was not placed.
const AGENT_NOT_PLACED: &str = "bee9506127b44384a7ee7aacbc28d25b";
/// A machine was removed.
const REMOVED: &str = "c8e1f7a94b2d4d6f9e3a5c7b1d0f8e24";
/// A peer sent something else than a piece.
const BAD_PEER: &str = "8fa163bac47a4a0d88a0e455ca9ac58c";
/// An operator made a choice.
const CHOSEN: &str = "58ef558289224588912723b560a3ae99";
/// The daemon works without D-Bus.
const NO_BUS: &str = "ba0334b3666a474caa7a7d3f4534fd48";
/// An update of the operating system is held.
const OS_HELD: &str = "786505ce63df4f40b0dbe0dee4cb1d37";
/// Agents are drained for an update of the operating system.
const OS_DRAINING: &str = "07c2bf0c32c54ffab6de9a8ca39b765c";
/// Tasks are stopped for an update of the operating system.
const OS_FORCED: &str = "9df6510bd4e14bf8b789734adcabc90a";
/// Another operating system is started.
const OS_HANDED_OVER: &str = "4231c2ea9b724d3b86f1e8b39c9dc4b3";
/// An operating system has passed its trial.
const OS_PROVEN: &str = "ad110e1ba22741ca8aa9853897825e7a";
/// The host came back from an operating system.
const OS_RETURNED: &str = "43ceb4a81605476e821257257897f115";
/// The FleetLock server did not take a slot back.
const OS_LOCK_KEPT: &str = "45dda1394e3a4cafbcdbb22e8b349ad0";
/// A volume is mounted.
const MOUNTED: &str = "e2a9d4c7b5f84a1c8d6e3f0b9a7c5d18";
/// A volume is not used.
const NOT_MOUNTED: &str = "94d7c1e6f3a24b8d9c5e7f1a0b6d8c32";
/// Containers of the channel are not used.
const WITHOUT_CONTAINERS: &str = "bbfa13c5ae1b44b5bcc4debd88aa82f3";
/// A helper cannot do its work.
const HELPER: &str = "0b8f6d2e9c7a4f5d8e1b3c6a9d4f7e05";
/// A new system is started.
const HANDED_OVER: &str = "ce6e7896e9ee4c4d993c7c44ca347e88";
/// A new system is not started.
const NOT_HANDED_OVER: &str = "e82f7f10855e4d67942a74193329f66a";
/// A new system is proven.
const PROVEN: &str = "0b262924279b45738ec198085232a4ee";
/// The host leaves a new system.
const RETURNING: &str = "8ebbd58c8c7b486da71ec3d1cf4f129b";
/// The host came back to the previous system.
const RETURNED: &str = "d682ac1345634942940affe3ffcad60b";
/// A trial does not work as intended.
const TRIAL_FAILED: &str = "ed1b128776304b20adc45fd06c7b9532";

/// Logs a channel that is newer than the one before.
pub(crate) fn accepted(channel: &Channel) {
    tracing::info!(
        message_id = ACCEPTED,
        buildos_channel = channel.name.as_str(),
        buildos_serial = channel.serial,
        "accepted channel {} with serial {}",
        channel.name,
        channel.serial
    );
}

/// Logs why a run did nothing.
pub(crate) fn refused(reason: &str) {
    tracing::warn!(message_id = REFUSED, "{}", Escaped::received(reason));
}

/// Logs a machine that agents can use from now on.
pub(crate) fn placed(name: &Name, revision: u64, how: &str) {
    tracing::info!(
        message_id = PLACED,
        buildos_machine = name.as_str(),
        buildos_revision = revision,
        "placed machine {name} revision {revision}, {how}"
    );
}

/// Logs a machine that agents cannot use yet.
pub(crate) fn not_placed(name: &Name, revision: u64, reason: &str) {
    tracing::warn!(
        message_id = NOT_PLACED,
        buildos_machine = name.as_str(),
        buildos_revision = revision,
        "machine {name} revision {revision}: {}",
        Escaped::received(reason)
    );
}

/// Logs an agent that is on the host.
pub(crate) fn agent_placed(name: &Name, version: &Name) {
    tracing::info!(
        message_id = AGENT_PLACED,
        buildos_agent_name = name.as_str(),
        buildos_version = version.as_str(),
        "placed agent {name} {version}"
    );
}

/// Logs an agent that is not on the host.
pub(crate) fn agent_not_placed(name: &Name, version: &Name, reason: &str) {
    tracing::warn!(
        message_id = AGENT_NOT_PLACED,
        buildos_agent_name = name.as_str(),
        buildos_version = version.as_str(),
        "agent {name} {version}: {}",
        Escaped::received(reason)
    );
}

/// Logs a revision that was removed.
pub(crate) fn removed(name: &Name, revision: u64, reason: &str) {
    tracing::info!(
        message_id = REMOVED,
        buildos_machine = name.as_str(),
        buildos_revision = revision,
        "removed machine {name} revision {revision}: {reason}"
    );
}

/// Logs a peer that is not used any more in this run.
pub(crate) fn bad_peer(peer: &str, reason: &str) {
    tracing::warn!(
        message_id = BAD_PEER,
        buildos_peer = peer,
        "peer {peer} is not used any more in this run: {}",
        Escaped::received(reason)
    );
}

/// Logs a choice of the operator.
pub(crate) fn chosen(change: &Change) {
    let text = match change {
        Change::Hold(reason) => format!("hold updates: {}", Escaped::new(reason)),
        Change::Resume => "resume updates".to_owned(),
        Change::Pin(name, Some(revision)) => format!("pin machine {name} at revision {revision}"),
        Change::Pin(name, None) => format!("pin machine {name} at its current revision"),
        Change::Unpin(name) => format!("unpin machine {name}"),
        Change::Add(name) => format!("add machine {name}"),
        Change::Remove(name) => format!("remove machine {name}"),
    };
    tracing::info!(message_id = CHOSEN, "an operator asked to {text}");
}

/// Logs what holds an update of the operating system.
pub(crate) fn os_held(version: &str, reason: &str) {
    tracing::info!(
        message_id = OS_HELD,
        buildos_version = version,
        "os {version} is held: {}",
        Escaped::received(reason)
    );
}

/// Logs the begin of a drain.
pub(crate) fn os_draining(version: &str) {
    tracing::info!(
        message_id = OS_DRAINING,
        buildos_version = version,
        "draining the agents to start os {version}"
    );
}

/// Logs tasks that are stopped.
pub(crate) fn os_forced(version: &str, agents: &str) {
    tracing::warn!(
        message_id = OS_FORCED,
        buildos_version = version,
        "stopping the tasks of {agents} to start os {version}: update.force_after_s is over"
    );
}

/// Logs the end of this system.
pub(crate) fn os_handed_over(version: &str) {
    tracing::info!(
        message_id = OS_HANDED_OVER,
        buildos_version = version,
        "os {version} is started"
    );
}

/// Logs a verdict.
pub(crate) fn os_proven(version: &str) {
    tracing::info!(
        message_id = OS_PROVEN,
        buildos_version = version,
        "os {version} has passed its trial"
    );
}

/// Logs a verdict.
pub(crate) fn os_returned(version: &str, reason: &str) {
    tracing::warn!(
        message_id = OS_RETURNED,
        buildos_version = version,
        "this host came back from os {version} and does not take it again: {}",
        Escaped::received(reason)
    );
}

/// Logs why other hosts wait for this one.
pub(crate) fn os_lock_kept(reason: &str) {
    tracing::warn!(
        message_id = OS_LOCK_KEPT,
        "the FleetLock server did not release the slot of this host: {}",
        Escaped::received(reason)
    );
}

/// Logs that the daemon works without D-Bus.
pub(crate) fn no_bus(reason: &str) {
    tracing::warn!(message_id = NO_BUS, "works without D-Bus: {reason}");
}

/// Logs a mounted volume.
pub(crate) fn mounted(volume: &str, device: &str) {
    tracing::info!(
        message_id = MOUNTED,
        buildos_volume = volume,
        "machine volume {volume} of {device} is mounted"
    );
}

/// Logs why a volume is not used.
pub(crate) fn not_mounted(volume: &str, reason: &str) {
    tracing::warn!(
        message_id = NOT_MOUNTED,
        buildos_volume = volume,
        "machine volume {volume} is not used: {}",
        Escaped::received(reason)
    );
}

/// Logs why hosts do not have the containers of the channel.
pub(crate) fn without_containers(reason: &str) {
    tracing::warn!(
        message_id = WITHOUT_CONTAINERS,
        "containers of the channel are not used: {}",
        Escaped::received(reason)
    );
}

/// Logs why a helper ends.
pub(crate) fn helper_failed(reason: &str) {
    tracing::error!(message_id = HELPER, "{}", Escaped::received(reason));
}

/// Logs the start of a new system.
pub(crate) fn handed_over(version: &str, serial: u64) {
    tracing::info!(
        message_id = HANDED_OVER,
        buildos_version = version,
        buildos_serial = serial,
        "starts operating system {version} of serial {serial}"
    );
}

/// Logs why a new system is not started.
pub(crate) fn not_handed_over(reason: &str) {
    tracing::warn!(
        message_id = NOT_HANDED_OVER,
        "the operating system is not replaced: {}",
        Escaped::received(reason)
    );
}

/// Logs a system that stays.
pub(crate) fn proven(version: &str) {
    tracing::info!(
        message_id = PROVEN,
        buildos_version = version,
        "operating system {version} is proven; the previous one is removed from RAM"
    );
}

/// Logs a system that is left.
pub(crate) fn returning(version: &str, reason: &str) {
    tracing::error!(
        message_id = RETURNING,
        buildos_version = version,
        "leaves operating system {version}: {}",
        Escaped::received(reason)
    );
}

/// Logs a return.
pub(crate) fn returned(image: &Digest, initrd: &Digest, reason: &str) {
    tracing::error!(
        message_id = RETURNED,
        buildos_image = %image,
        buildos_initrd = %initrd,
        "returned from an operating system that did not prove itself: {}",
        Escaped::received(reason)
    );
}

/// Logs a fault of a trial.
pub(crate) fn trial_failed(reason: &str) {
    tracing::error!(message_id = TRIAL_FAILED, "{}", Escaped::received(reason));
}
