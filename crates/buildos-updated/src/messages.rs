//! Logs the messages that `units/systemd/catalog` explains.

use buildos_channel::{Channel, Name};
use buildos_service::text::Escaped;

/// A channel was accepted.
const ACCEPTED: &str = "7f0ce8b3a8f94f1f9a4bf1f1cb5ce2d6";
/// Nothing was fetched, or a channel was refused.
const REFUSED: &str = "3a4b2cf8d7e5463c9d1f6a0e5b7c8d91";
/// A machine was placed.
const PLACED: &str = "b1c6a7d85f0e4e3b8c2d9f4a6e1b0c73";
/// A machine was not placed.
const NOT_PLACED: &str = "5d9e0f1a2b3c4d5e8f7a6b9c8d7e6f50";
/// A machine was removed.
const REMOVED: &str = "c8e1f7a94b2d4d6f9e3a5c7b1d0f8e24";
/// A volume is mounted.
const MOUNTED: &str = "e2a9d4c7b5f84a1c8d6e3f0b9a7c5d18";
/// A volume is not used.
const NOT_MOUNTED: &str = "94d7c1e6f3a24b8d9c5e7f1a0b6d8c32";
/// A helper cannot do its work.
const HELPER: &str = "0b8f6d2e9c7a4f5d8e1b3c6a9d4f7e05";

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

/// Logs a revision that was removed.
pub(crate) fn removed(name: &Name, revision: u64, reason: &str) {
    tracing::info!(
        message_id = REMOVED,
        buildos_machine = name.as_str(),
        buildos_revision = revision,
        "removed machine {name} revision {revision}: {reason}"
    );
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

/// Logs why a helper ends.
pub(crate) fn helper_failed(reason: &str) {
    tracing::error!(message_id = HELPER, "{}", Escaped::received(reason));
}
