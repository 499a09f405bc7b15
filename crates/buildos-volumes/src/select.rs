//! Implements buildos-volumes, which chooses the state volume and lets systemd mount it.
//!
//! A rule of udev starts it for each device with a label of buildos. It runs without
//! privileges and opens no device: systemd mounts (`state.mount`), the kernel decides.
//!
//! It waits until udev has processed the devices that the kernel has found: a second volume
//! with the same label must be noticed before the first one is mounted, as mounting writes.
//!
//! # Limits
//!
//! A second volume that the kernel finds later is reported, and the first stays in use.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use buildos_service::file::WriteError;
use buildos_service::log_to_journal;
use buildos_service::text;
use lexopt::Parser;

use crate::choice::{Choice, Purpose, choose};
use crate::device::Device;
use crate::report::{self, Report, VolumeState};
use crate::{STATE, STATE_LABEL, messages, mounts, program};

const NAME: &str = "buildos-volumes";
/// The link from which `state.mount` mounts.
const LINK: &str = "/run/buildos/volumes/state";
/// The unit that mounts.
const UNIT: &str = "state.mount";

/// Runs buildos-volumes.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal(NAME);
    let accept_virtual = match program::accept_virtual(Parser::from_env()) {
        Ok(accept_virtual) => accept_virtual,
        Err(code) => return code,
    };
    let root = Path::new("/");
    let published = program::for_devices(root, |devices| {
        publish(root, &mount(root, devices, accept_virtual))
    });
    if let Err(error) = published {
        messages::not_reported(&error);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Mounts the chosen device unless it is mounted.
fn mount(root: &Path, devices: &[Device], accept_virtual: bool) -> Report {
    let choice = choose(devices, STATE_LABEL, Purpose::State, accept_virtual);
    let mounts = mounts::read(root);
    let mounted = mounts::at(&mounts, STATE);
    if let Some(report) = judge(&choice, mounted.map(|mount| mount.source.as_str()), devices) {
        return report;
    }
    let Choice::Device(device) = choice else {
        return Report::default();
    };
    let node = device.node();
    let failed = |reason: String| Report {
        state: VolumeState::Failed,
        device: node.display().to_string(),
        reason,
        ..Report::default()
    };
    if let Err(error) = link(&node) {
        return failed(format!("cannot write {LINK}: {error}"));
    }
    let start = Command::new("systemctl")
        .args(["start", UNIT])
        .stderr(Stdio::null())
        .status();
    match start {
        Ok(status) if status.success() => mounted_report(&device),
        Ok(_) => failed(format!(
            "{} cannot be mounted; systemctl status {UNIT} has the reason",
            device.name
        )),
        Err(error) => failed(format!("cannot run systemctl: {error}")),
    }
}

fn mounted_report(device: &Device) -> Report {
    Report {
        state: VolumeState::Mounted,
        device: device.node().display().to_string(),
        reason: format!("{} is the state volume", device.name),
        size: device.bytes,
        ..Report::default()
    }
}

/// Returns the report if nothing has to be mounted.
fn judge(choice: &Choice, mounted: Option<&str>, devices: &[Device]) -> Option<Report> {
    let is_mounted =
        |device: &&Device| device.label == STATE_LABEL && mounted == device.node().to_str();
    if let Some(device) = devices.iter().find(is_mounted) {
        let mut report = mounted_report(device);
        if let Choice::Refused(refusal) = choice {
            let name = &device.name;
            report.warning = format!("{name} stays the state volume, although {refusal}");
        }
        return Some(report);
    }
    match (choice, mounted) {
        (Choice::Absent, _) => Some(Report {
            reason: format!("no disk has the label {STATE_LABEL}"),
            ..Report::default()
        }),
        (Choice::Refused(refusal), _) => Some(Report {
            state: VolumeState::Refused,
            reason: format!("there is no state volume, as {refusal}"),
            ..Report::default()
        }),
        (Choice::Device(device), Some(source)) => Some(Report {
            state: VolumeState::Failed,
            device: device.node().display().to_string(),
            reason: format!("{} is not mounted, as {source} is at {STATE}", device.name),
            ..Report::default()
        }),
        (Choice::Device(_), None) => None,
    }
}

fn link(node: &Path) -> io::Result<()> {
    let new = format!("{LINK}.new");
    let _ = fs::remove_file(&new);
    symlink(node, &new)?;
    fs::rename(&new, LINK)
}

/// Writes the report, and logs it if it differs from the one before.
fn publish(root: &Path, report: &Report) -> Result<(), WriteError> {
    let former = report::selected(root);
    let differs = former.as_ref() != Some(report);
    report::write_selected(root, report)?;
    if !differs {
        return Ok(());
    }
    let Report { device, reason, .. } = report;
    match report.state {
        VolumeState::Mounted if !report.warning.is_empty() => {
            messages::second(device, &report.warning);
        }
        VolumeState::Mounted => messages::mounted(device, reason),
        VolumeState::Failed => messages::failed(device, reason),
        VolumeState::Refused => messages::refused(reason),
        VolumeState::Absent
        | VolumeState::Active
        | VolumeState::Full
        | VolumeState::ReadOnly
        | VolumeState::Slow
        | VolumeState::Failing
        | VolumeState::Gone => tracing::info!("{}", text::Escaped::received(reason)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Refusal;

    fn device(name: &str) -> Device {
        Device {
            name: name.into(),
            label: STATE_LABEL.into(),
            kind: "btrfs".into(),
            ..Device::default()
        }
    }

    #[test]
    fn chosen_device_is_mounted_once() {
        let devices = [device("vda")];
        let choice = choose(&devices, STATE_LABEL, Purpose::State, false);
        assert_eq!(judge(&choice, None, &devices), None);
        let report = judge(&choice, Some("/dev/vda"), &devices).unwrap();
        assert_eq!(report.state, VolumeState::Mounted);
        let report = judge(&choice, Some("/dev/sdz"), &devices).unwrap();
        assert_eq!(report.state, VolumeState::Failed);
        assert_eq!(
            report.reason,
            "vda is not mounted, as /dev/sdz is at /state"
        );
    }

    #[test]
    fn second_volume_is_reported_and_first_stays() {
        let devices = [device("vda"), device("vdb")];
        let choice = choose(&devices, STATE_LABEL, Purpose::State, false);
        let refusal = Refusal::Several(vec!["vda".into(), "vdb".into()]);
        assert_eq!(choice, Choice::Refused(refusal));
        let report = judge(&choice, None, &devices).unwrap();
        assert_eq!(report.state, VolumeState::Refused);
        assert_eq!(
            report.reason,
            "there is no state volume, as vda and vdb have the same label"
        );
        let report = judge(&choice, Some("/dev/vda"), &devices).unwrap();
        assert_eq!(report.state, VolumeState::Mounted);
        assert_eq!(
            report.warning,
            "vda stays the state volume, although vda and vdb have the same label"
        );
    }
}
