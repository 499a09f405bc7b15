//! Derives volumes from their labels, and finds their mounts.

use buildos_updated::volume::mount;
use buildos_volumes::choice::Purpose;
use buildos_volumes::device::Device;
use buildos_volumes::mounts::{self, Mount};
use buildos_volumes::{STATE, STATE_LABEL};

/// A volume that a label names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) label: String,
    pub(super) purpose: Purpose,
    /// Name of a machine volume, or empty.
    pub(super) name: String,
}

impl Volume {
    /// Returns the volume of a label, or [`None`] if no volume has such a label.
    pub(super) fn of_label(label: &str) -> Option<Self> {
        let (purpose, name) = match label {
            STATE_LABEL => (Purpose::State, String::new()),
            _ => (Purpose::Machines, mount::volume(label)?),
        };
        Some(Self {
            label: label.to_owned(),
            purpose,
            name,
        })
    }

    /// Returns a volume that does not have to exist.
    pub(super) fn new(purpose: Purpose, name: Option<&str>) -> Self {
        let label = match (purpose, name) {
            (Purpose::State, _) => STATE_LABEL.to_owned(),
            (Purpose::Machines, name) => mount::label(name.unwrap_or("default")),
        };
        let name = match purpose {
            Purpose::State => String::new(),
            Purpose::Machines => name.unwrap_or("default").to_owned(),
        };
        Self {
            label,
            purpose,
            name,
        }
    }

    /// Returns the directory where the file system is mounted.
    pub(super) fn target(&self) -> String {
        match self.purpose {
            Purpose::State => STATE.to_owned(),
            Purpose::Machines => format!("/run/buildos/machine-volumes/{}", self.name),
        }
    }

    /// Returns the directory where programs find the volume.
    pub(super) fn place(&self) -> String {
        match self.purpose {
            Purpose::State => STATE.to_owned(),
            Purpose::Machines => format!("/build/machines/{}", self.name),
        }
    }

    /// Returns the unit that mounts the volume.
    pub(super) const fn unit(&self) -> &'static str {
        match self.purpose {
            Purpose::State => "buildos-volumes",
            Purpose::Machines => "buildos-machine-volumes",
        }
    }
}

/// Returns the mount of a volume if a device with its label, or another disk of the same btrfs, is
/// mounted.
pub(super) fn mount_of<'a>(
    volume: &Volume,
    devices: &[Device],
    mounts: &'a [Mount],
) -> Option<&'a Mount> {
    let mount = mounts::at(mounts, &volume.target())?;
    let is_source =
        |device: &Device| device.label == volume.label && is_node(device, &mount.source);
    devices.iter().any(is_source).then_some(mount)
}

pub(super) fn is_node(device: &Device, source: &str) -> bool {
    device.node().to_str() == Some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_and_its_label_name_each_other() {
        for (purpose, name, label) in [
            (Purpose::State, None, "buildos.state"),
            (Purpose::Machines, None, "buildos.machines"),
            (Purpose::Machines, Some("default"), "buildos.machines"),
            (Purpose::Machines, Some("fast"), "buildos.machines.fast"),
        ] {
            let volume = Volume::new(purpose, name);
            assert_eq!(volume.label, label);
            assert_eq!(Volume::of_label(label), Some(volume));
        }
        assert_eq!(Volume::of_label("buildos.other"), None);
    }
}
