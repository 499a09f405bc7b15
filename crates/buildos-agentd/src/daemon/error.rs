//! Lists the reasons why agentd ends.

use buildos_dbus_api::watch::BusLost;

use crate::systemd::manager::SystemdError;
use crate::unit::directory::UnitDirectoryError;

/// Reason why agentd ends. systemd restarts it; the agents continue to run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system bus is missing, or refuses the name or the objects of agentd.
    #[error("cannot serve on the system bus")]
    Bus(#[from] zbus::Error),
    /// The connection to the bus was lost.
    #[error(transparent)]
    BusLost(#[from] BusLost),
    /// A call to systemd failed.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// The drop-ins could not be read or changed.
    #[error(transparent)]
    Units(#[from] UnitDirectoryError),
}
