//! Logs messages about volumes, with the `MESSAGE_ID`s that `journalctl -x` explains.

use buildos_service::text;

use crate::report::Report;

/// The state volume is mounted.
const MOUNTED: &str = "ad7f4a91e7ac4509abfd08c092ade3b5";
/// Devices have the label of the state volume, and none is used.
const REFUSED: &str = "993cc62d93214d45ba2871b1026e706f";
/// The state volume cannot be mounted.
const FAILED: &str = "7ed19653842a43bfbcdcb3f30aaec78f";
/// State of an earlier boot was taken over.
const RESTORED: &str = "3c9d4175983d4256b498ad77f525cc8a";
/// State is no longer saved.
const FAULT: &str = "80263578774d42deb42e73cadd0235a2";
/// State is saved again.
const FAULT_OVER: &str = "2c625795167f477dbf524aeaf0848b2d";

pub(crate) fn mounted(device: &str, reason: &str) {
    tracing::info!(message_id = MOUNTED, buildos_device = device, "{reason}");
}

pub(crate) fn second(device: &str, reason: &str) {
    tracing::warn!(message_id = REFUSED, buildos_device = device, "{reason}");
}

pub(crate) fn refused(reason: &str) {
    tracing::warn!(message_id = REFUSED, "{reason}");
}

pub(crate) fn failed(device: &str, reason: &str) {
    tracing::error!(message_id = FAILED, buildos_device = device, "{reason}");
}

pub(crate) fn restored(restored: &str) {
    tracing::info!(
        message_id = RESTORED,
        "took over from the state volume: {restored}"
    );
}

pub(crate) fn fault(report: &Report) {
    tracing::error!(
        message_id = FAULT,
        buildos_device = report.device,
        buildos_volume_state = report.state.as_str(),
        "state is not saved: {}",
        report.reason
    );
}

pub(crate) fn fault_over(report: &Report) {
    tracing::info!(
        message_id = FAULT_OVER,
        buildos_device = report.device,
        "state is saved again on {}",
        report.device
    );
}

pub(crate) fn not_reported(error: &dyn std::error::Error) {
    tracing::error!("{}", text::chain(error));
}
