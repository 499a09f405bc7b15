//! `org.build2.buildos.update1` of buildos-updated: the channel of a host, its machines, and the
//! choices of the operator.
//!
//! buildos-updated runs for a moment only. A method starts it; [`crate::watch::read`] does not.

use serde::{Deserialize, Serialize};
use zbus::zvariant::{Type, as_value};

use crate::string_enum::string_enum;
use crate::watch::Snapshot;

/// Bus name of buildos-updated.
pub const NAME: &str = "org.build2.buildos.update1";
/// Object that serves [`ManagerProxy`].
pub const PATH: &str = "/org/build2/buildos/update1";

string_enum! {
    /// What buildos-updated does now.
    #[derive(Default)]
    Phase("update1 phase") {
        /// No run takes place.
        #[default]
        Idle = "idle",
        /// The channel is fetched and verified.
        Channel = "channel",
        /// A machine is fetched.
        Fetching = "fetching",
        /// buildos-machine-place works.
        Placing = "placing",
        /// The operating system is fetched, or agents are drained for it.
        Updating = "updating",
    }
}

string_enum! {
    /// State of a machine on the volume.
    #[derive(Default)]
    MachineState("update1 machine state") {
        /// Agents use the revision of the channel.
        Current = "current",
        /// The revision of the channel is not on the volume yet.
        #[default]
        Waiting = "waiting",
        /// An operator has pinned the machine at its current revision.
        Pinned = "pinned",
        /// The revision at which the machine is pinned is not on the volume.
        PinMissing = "pin-missing",
        /// The link is gone or goes; revisions go once no process uses them.
        Leaving = "leaving",
        /// The channel has the machine, but this host does not take it.
        NotTaken = "not-taken",
    }
}

string_enum! {
    /// State of the update of the operating system.
    #[derive(Default)]
    OsState("update1 os state") {
        /// The host runs what the channel has, or the channel has no operating system.
        #[default]
        Idle = "idle",
        /// The channel has a pair that does not run here.
        Offered = "offered",
        /// Something holds the update; the reason names it.
        Held = "held",
        /// The new pair and the one that runs are fetched.
        Fetching = "fetching",
        /// Both pairs are in the spool.
        Fetched = "fetched",
        /// The tasks of agents have time to end.
        Draining = "draining",
        /// buildos-os-handover was asked to start the new pair.
        HandedOver = "handed-over",
        /// The pair that runs is on trial.
        Trial = "trial",
        /// The pair that runs has passed its trial.
        Proven = "proven",
        /// The host came back from the new pair.
        Returned = "returned",
        /// The channel has a pair from which the host came back; it is not taken again.
        Bad = "bad",
    }
}

string_enum! {
    /// Cause of a hold of an OS update.
    Cause("update1 cause of a hold") {
        /// No window is open.
        Window = "window",
        /// The FleetLock server has no slot for this host.
        Lock = "lock",
        /// The configuration, the rollout, or an earlier attempt.
        Policy = "policy",
        /// An operator holds updates, or has drained an agent.
        Operator = "operator",
        /// The pair that runs is not known, or the server no longer has it.
        NoWayBack = "no-way-back",
        /// The host has too little RAM for both pairs.
        Memory = "memory",
        /// Tasks did not end in time.
        Tasks = "tasks",
        /// A step failed.
        Fault = "fault",
    }
}

/// A machine on D-Bus: name, revision of the channel, current revision, its content id, revision
/// at which it is pinned, choice of the operator, [`MachineState`]. A revision can be 0: none.
pub type MachineEntry = (String, u64, u64, String, u64, String, String);

/// A machine of the channel or of the volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    #[allow(missing_docs)]
    pub name: String,
    /// Revision of the channel, or 0.
    pub wanted: u64,
    /// Revision that agents use, or 0.
    pub current: u64,
    /// Content id of the current revision, or empty.
    pub id: String,
    /// Revision at which an operator has pinned the machine, or 0.
    pub pinned: u64,
    /// `added` or `removed` by an operator, or empty.
    pub choice: String,
    #[allow(missing_docs)]
    pub state: MachineState,
}

impl Machine {
    /// Returns the form on D-Bus.
    #[must_use]
    pub fn entry(&self) -> MachineEntry {
        (
            self.name.clone(),
            self.wanted,
            self.current,
            self.id.clone(),
            self.pinned,
            self.choice.clone(),
            self.state.to_string(),
        )
    }
}

/// The channel, the last run and the choices.
#[zbus::proxy(
    interface = "org.build2.buildos.update1.Manager",
    default_service = "org.build2.buildos.update1",
    default_path = "/org/build2/buildos/update1",
    gen_blocking = false
)]
pub trait Manager {
    /// Starts a run now.
    fn check(&self) -> zbus::Result<()>;
    /// Holds updates for a reason, or without one.
    fn hold(&self, reason: &str) -> zbus::Result<bool>;
    /// Ends the hold.
    fn resume(&self) -> zbus::Result<bool>;
    /// Takes the operating system of the channel now.
    fn update_now(&self) -> zbus::Result<()>;
    /// Keeps a machine at a revision, or at the current one (0).
    fn pin_machine(&self, name: &str, revision: u64) -> zbus::Result<bool>;
    /// Lets a machine follow the channel.
    fn unpin_machine(&self, name: &str) -> zbus::Result<bool>;
    /// Takes a machine of the channel.
    fn add_machine(&self, name: &str) -> zbus::Result<bool>;
    /// Removes a machine.
    fn remove_machine(&self, name: &str) -> zbus::Result<bool>;
}

/// Properties that buildosctl follows while a run takes place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
pub struct Update {
    /// A [`Phase`].
    #[serde(with = "as_value")]
    pub phase: String,
    /// What the run does, or what the last one did.
    #[serde(with = "as_value")]
    pub activity: String,
    /// End of the last run, microseconds since 1970; 0 during a run.
    #[serde(with = "as_value")]
    pub last_run: u64,
}

impl Snapshot for Update {
    const INTERFACE: &'static str = "org.build2.buildos.update1.Manager";
    const CACHED: bool = true;
}

/// Follows buildos-updated while it is on the bus, and never starts it.
///
/// # Errors
///
/// As [`crate::watch::Watch::new`].
pub async fn watch(connection: &zbus::Connection) -> zbus::Result<crate::watch::Watch<Update>> {
    crate::watch::Watch::new(connection, NAME, PATH).await
}
