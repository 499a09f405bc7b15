//! `org.build2.buildos.agent1` of buildos-agentd: the agents of the host.

use std::collections::HashMap;

use serde::Deserialize;
use zbus::zvariant::{OwnedObjectPath, Type, as_value};

use crate::path;
use crate::string_enum::string_enum;
use crate::watch::{Snapshot, Watch};

/// Bus name of buildos-agentd.
pub const NAME: &str = "org.build2.buildos.agent1";
/// Object that serves [`ManagerProxy`].
pub const PATH: &str = "/org/build2/buildos/agent1";
/// Parent of the instance objects, see [`instance_path`].
pub const INSTANCE_PREFIX: &str = "/org/build2/buildos/agent1/instance";

/// Returns the path of an instance. The last element is the unit name without `.service`
/// (`buildos-bbot@default`), encoded as systemd does.
#[must_use]
pub fn instance_path(unit: &str) -> String {
    format!("{INSTANCE_PREFIX}/{}", path::element(unit))
}

string_enum! {
    /// The two kinds of agent.
    Kind("agent kind") {
        /// The build bot, normally on br1.
        Bbot = "bbot",
        /// The build slave, normally on br0.
        Bslave = "bslave",
    }
}

string_enum! {
    /// A requirement for the start of an instance.
    Need("agent1 need") {
        /// A configuration that is sufficient for a command line.
        Configuration = "configuration",
        /// The program, installed and executable.
        Program = "program",
        /// The programs that the agent calls.
        Tools = "tools",
        /// The credentials of the agent.
        Credentials = "credentials",
        /// `/dev/kvm`, unless it is waived.
        Kvm = "kvm",
        /// Enough RAM for its tasks.
        Memory = "memory",
        /// Room on the disks of builds. A running agent that lacks it is drained.
        Disk = "disk",
        /// A lease on br0.
        Network = "network",
        /// The host's name.
        Hostname = "hostname",
        /// NAT, DHCP and DNS for machines on br1.
        PrivateNetwork = "private-network",
        /// A synchronised clock, or the end of the time limit for it.
        Clock = "clock",
    }
}

string_enum! {
    /// State of an instance.
    InstanceState("agent1 instance state") {
        /// A requirement is missing; `Needs` names it.
        Waiting = "waiting",
        /// systemd is starting the unit.
        Starting = "starting",
        /// The agent runs.
        Running = "running",
        /// The agent ended; agentd starts it again at `NextStartUSec`.
        Delayed = "delayed",
        /// An operator stopped it (`systemctl stop`); it starts on request only.
        Stopped = "stopped",
        /// Its tasks may end until `DrainDeadlineUSec`; then agentd stops it.
        Draining = "draining",
        /// Its tasks ended or reached the deadline; it stays stopped until `Resume`.
        Drained = "drained",
        /// Its configuration is invalid; the reason names the error.
        Invalid = "invalid",
    }
}

/// Agents of the host.
#[zbus::proxy(
    interface = "org.build2.buildos.agent1.Manager",
    default_service = "org.build2.buildos.agent1",
    default_path = "/org/build2/buildos/agent1",
    gen_blocking = false
)]
pub trait Manager {
    /// Restarts the instance (`bbot@default`) now, in any state.
    fn restart(&self, instance: &str) -> zbus::Result<()>;
    /// Waits for the tasks of these instances to end, then stops the instances. An empty
    /// list means all. `budget_usec` limits the wait, microseconds; 0 means the
    /// configured limit. Does not start agentd: an operator may have stopped it.
    #[zbus(no_autostart)]
    fn drain(&self, instances: &[&str], budget_usec: u64) -> zbus::Result<()>;
    /// Reverts [`Self::drain`]. An empty list means all.
    fn resume(&self, instances: &[&str]) -> zbus::Result<()>;

    /// One line for operators: number of running agents, and what the others wait for.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// Objects of the instances, see [`InstanceProxy`].
    #[zbus(property)]
    fn instances(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
    /// Errors in the configuration, one line each; empty if there are none.
    #[zbus(property)]
    fn configuration_problems(&self) -> zbus::Result<Vec<String>>;
}

/// An agent.
#[zbus::proxy(
    interface = "org.build2.buildos.agent1.Instance",
    default_service = "org.build2.buildos.agent1",
    gen_blocking = false
)]
pub trait Instance {
    /// Name of the instance, for example `default`.
    #[zbus(property)]
    fn name(&self) -> zbus::Result<String>;
    /// A [`Kind`].
    #[zbus(property)]
    fn kind(&self) -> zbus::Result<String>;
    /// Unit that runs it, for example `buildos-bbot@default.service`.
    #[zbus(property)]
    fn unit(&self) -> zbus::Result<String>;
    /// True if it starts as soon as its requirements are met: it is neither stopped by an
    /// operator nor drained.
    #[zbus(property)]
    fn wanted(&self) -> zbus::Result<bool>;
    /// An [`InstanceState`].
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// Time of the last change of state, CLOCK_REALTIME microseconds.
    #[zbus(property, name = "SinceUSec")]
    fn since_usec(&self) -> zbus::Result<u64>;
    /// One line for operators: the reason for this state.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// Missing requirements: a [`Need`], and a line for people.
    #[zbus(property)]
    fn needs(&self) -> zbus::Result<Vec<(String, String)>>;
    /// Number of automatic restarts.
    #[zbus(property)]
    fn restarts(&self) -> zbus::Result<u32>;
    /// Number of unexpected ends and failed starts since it last ran normally.
    #[zbus(property)]
    fn failures(&self) -> zbus::Result<u32>;
    /// True if it ends repeatedly.
    #[zbus(property)]
    fn crash_loop(&self) -> zbus::Result<bool>;
    /// Result of its last run (`exit code 1`, `signal SEGV`), or empty.
    #[zbus(property)]
    fn last_exit(&self) -> zbus::Result<String>;
    /// Main process, or 0.
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    /// Time of the next start, CLOCK_REALTIME microseconds, or 0.
    #[zbus(property, name = "NextStartUSec")]
    fn next_start_usec(&self) -> zbus::Result<u64>;
    /// Virtual machines: process of QEMU, taps, start, and time since which it got no CPU time
    /// or 0, CLOCK_REALTIME microseconds.
    #[zbus(property)]
    fn machines(&self) -> zbus::Result<Vec<(u32, Vec<String>, u64, u64)>>;
    /// Sums over the machines that have ended.
    #[zbus(property)]
    fn machine_totals(&self) -> zbus::Result<HashMap<String, u64>>;
    /// Deadline for its tasks while it drains, CLOCK_REALTIME microseconds, or 0.
    #[zbus(property, name = "DrainDeadlineUSec")]
    fn drain_deadline_usec(&self) -> zbus::Result<u64>;
}

/// Properties of [`InstanceProxy`], read in one call. A property that
/// another version of agentd does not send has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
pub struct Agent {
    /// Name of the instance.
    #[serde(with = "as_value")]
    pub name: String,
    /// A [`Kind`].
    #[serde(with = "as_value")]
    pub kind: String,
    /// An [`InstanceState`].
    #[serde(with = "as_value")]
    pub state: String,
    /// CLOCK_REALTIME microseconds.
    #[serde(rename = "SinceUSec", with = "as_value")]
    pub since_usec: u64,
    /// One line for operators.
    #[serde(with = "as_value")]
    pub reason: String,
    /// Missing requirements.
    #[serde(with = "as_value")]
    pub needs: Vec<(String, String)>,
    /// Main process, or 0.
    #[serde(rename = "MainPID", with = "as_value")]
    pub main_pid: u32,
}

impl Snapshot for Agent {
    const INTERFACE: &'static str = "org.build2.buildos.agent1.Instance";
}

/// Follows the instance of this object path.
///
/// # Errors
///
/// As [`Watch::new`].
pub async fn watch_instance(
    connection: &zbus::Connection,
    path: &str,
) -> zbus::Result<Watch<Agent>> {
    Watch::new(connection, NAME, path).await
}
