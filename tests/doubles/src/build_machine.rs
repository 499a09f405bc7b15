//! The build machine of one task: a virtual one where this host has what that takes,
//! a container otherwise.

use crate::container::{Container, ContainerError};
use crate::log::{Log, chain};
use crate::virtual_machine::{Hypervisor, HypervisorError, VirtualMachine, VirtualMachineError};
use std::path::Path;
use std::process::ExitStatus;
use std::str::FromStr;

/// What build machines are to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// Virtual machines where they can be, containers otherwise (`auto`).
    #[default]
    Auto,
    /// Virtual machines or nothing (`vm`).
    Virtual,
    /// Containers (`container`).
    Container,
}

/// A word is no [`Choice`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no kind of build machine: auto, vm and container are")]
pub struct ChoiceError(String);

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "auto" => Ok(Self::Auto),
            "vm" => Ok(Self::Virtual),
            "container" => Ok(Self::Container),
            _ => Err(ChoiceError(word.to_owned())),
        }
    }
}

impl Choice {
    /// What runs virtual machines, if there are to be any, with this kernel or the
    /// host's newest.
    ///
    /// # Errors
    ///
    /// There have to be virtual machines and there cannot.
    pub fn hypervisor(
        self,
        kernel: Option<&Path>,
        log: Log,
    ) -> Result<Option<Hypervisor>, HypervisorError> {
        match self {
            Self::Container => Ok(None),
            Self::Virtual => Hypervisor::find(kernel).map(Some),
            Self::Auto => Ok(Hypervisor::find(kernel)
                .inspect_err(|why| log.info(format_args!("builds in containers: {}", chain(why))))
                .ok()),
        }
    }
}

/// A build machine in which a worker runs. It goes with this.
#[derive(Debug)]
pub enum Guest {
    /// In QEMU.
    Virtual(VirtualMachine),
    /// A process with namespaces of its own.
    Container(Container),
}

/// A build machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A virtual one.
    #[error(transparent)]
    Virtual(#[from] VirtualMachineError),
    /// A container.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

impl Guest {
    /// Starts a machine called `name` on a bridge, in which `bbot-worker` runs with
    /// these arguments.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn start(
        hypervisor: Option<&Hypervisor>,
        name: &str,
        bridge: &str,
        arguments: &[&str],
    ) -> Result<Self, GuestError> {
        Ok(match hypervisor {
            Some(hypervisor) => Self::Virtual(hypervisor.start(name, bridge, arguments)?),
            None => {
                let program = [&["bbot-worker"], arguments].concat();
                Self::Container(Container::start(name, bridge, &program)?)
            }
        })
    }

    /// Name of its link on the host.
    #[must_use]
    pub fn link(&self) -> &str {
        match self {
            Self::Virtual(machine) => machine.link(),
            Self::Container(container) => container.name(),
        }
    }

    /// How it ended, if it has.
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
    fn words() {
        for (word, choice) in [
            ("auto", Choice::Auto),
            ("vm", Choice::Virtual),
            ("container", Choice::Container),
        ] {
            assert_eq!(word.parse(), Ok(choice));
        }
        assert_eq!("kvm".parse::<Choice>(), Err(ChoiceError("kvm".into())));
    }

    #[test]
    fn only_who_insists_on_a_virtual_machine_is_refused() {
        let choose = |choice: Choice| {
            choice.hypervisor(Some(Path::new("/nonexistent/vmlinuz")), Log::Journal)
        };
        assert_eq!(choose(Choice::Auto).unwrap(), None);
        assert_eq!(choose(Choice::Container).unwrap(), None);
        let error = choose(Choice::Virtual).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/vmlinuz"));
    }
}
