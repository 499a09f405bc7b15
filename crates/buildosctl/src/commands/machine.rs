//! `buildosctl machine`: acts on one machine, which its port of a bridge names.

use buildos_agentd::machine::qemu::ConsoleKind;

pub(crate) mod attach;
pub(crate) mod forward;
mod lookup;
mod relay;
mod terminal;

/// A request for one machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Brings a console of this kind, or the only one.
    Attach(String, Option<ConsoleKind>),
    Forward(forward::Request),
}
