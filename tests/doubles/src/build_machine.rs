//! Starts the build machine of a task: a virtual machine or a container.

use crate::container::{Container, ContainerError};
use crate::log::{Log, chain};
use crate::virtual_machine::{Hypervisor, HypervisorError, VirtualMachine, VirtualMachineError};
use std::path::Path;
use std::process::ExitStatus;
use std::str::FromStr;

/// The kind of the build machines (`BBOT_DOUBLE_MACHINE`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MachineKind {
    /// Virtual machines if the host has the requirements, otherwise containers (`auto`).
    #[default]
    Auto,
    /// Virtual machines (`vm`).
    Virtual,
    /// Containers (`container`).
    Container,
}

/// A text is not a [`MachineKind`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a kind of build machine: auto, vm or container is expected")]
pub struct MachineKindError(String);

impl FromStr for MachineKind {
    type Err = MachineKindError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "auto" => Ok(Self::Auto),
            "vm" => Ok(Self::Virtual),
            "container" => Ok(Self::Container),
            _ => Err(MachineKindError(word.to_owned())),
        }
    }
}

impl MachineKind {
    /// Returns the hypervisor for virtual machines with this kernel, or the newest of
    /// the host. `None` means containers.
    ///
    /// # Errors
    ///
    /// The kind is [`MachineKind::Virtual`] and the host lacks a requirement.
    pub fn hypervisor(
        self,
        kernel: Option<&Path>,
        log: Log,
    ) -> Result<Option<Hypervisor>, HypervisorError> {
        match self {
            Self::Container => Ok(None),
            Self::Virtual => Hypervisor::find(kernel).map(Some),
            Self::Auto => Ok(Hypervisor::find(kernel)
                .inspect_err(|error| {
                    log.info(format_args!("builds in containers: {}", chain(error)))
                })
                .ok()),
        }
    }
}

/// A build machine with a worker. Dropping it stops the machine.
#[derive(Debug)]
pub enum BuildMachine {
    /// A virtual machine in QEMU.
    Virtual(VirtualMachine),
    /// A container.
    Container(Container),
}

/// A build machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BuildMachineError {
    /// The virtual machine could not be started.
    #[error(transparent)]
    Virtual(#[from] VirtualMachineError),
    /// The container could not be started.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

impl BuildMachine {
    /// Starts a machine called `name` on a bridge that runs `bbot-worker` with these
    /// arguments.
    ///
    /// # Errors
    ///
    /// The machine cannot be started.
    pub fn start(
        hypervisor: Option<&Hypervisor>,
        name: &str,
        bridge: &str,
        arguments: &[&str],
    ) -> Result<Self, BuildMachineError> {
        Ok(match hypervisor {
            Some(hypervisor) => Self::Virtual(hypervisor.start(name, bridge, arguments)?),
            None => {
                let program = [&["bbot-worker"], arguments].concat();
                Self::Container(Container::start(name, bridge, &program)?)
            }
        })
    }

    /// Starts a paused virtual machine, see [`VirtualMachine::suspended`].
    ///
    /// # Errors
    ///
    /// The machine cannot be started.
    pub fn suspended(name: &str, bridge: &str) -> Result<Self, BuildMachineError> {
        Ok(Self::Virtual(VirtualMachine::suspended(name, bridge)?))
    }

    /// Returns the name of the machine's link on the host.
    #[must_use]
    pub fn link(&self) -> &str {
        match self {
            Self::Virtual(machine) => machine.link(),
            Self::Container(container) => container.name(),
        }
    }

    /// Returns the exit status if the machine has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Virtual(machine) => machine.ended(),
            Self::Container(container) => container.ended(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_parsed_from_name() {
        for (word, kind) in [
            ("auto", MachineKind::Auto),
            ("vm", MachineKind::Virtual),
            ("container", MachineKind::Container),
        ] {
            assert_eq!(word.parse(), Ok(kind));
        }
        assert_eq!(
            "kvm".parse::<MachineKind>(),
            Err(MachineKindError("kvm".into()))
        );
    }

    #[test]
    fn missing_kernel_is_an_error_for_virtual_machines_only() {
        let choose = |kind: MachineKind| {
            kind.hypervisor(Some(Path::new("/nonexistent/vmlinuz")), Log::Journal)
        };
        assert_eq!(choose(MachineKind::Auto).unwrap(), None);
        assert_eq!(choose(MachineKind::Container).unwrap(), None);
        let error = choose(MachineKind::Virtual).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/vmlinuz"));
    }
}
