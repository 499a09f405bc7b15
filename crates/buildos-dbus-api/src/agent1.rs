//! `org.build2.buildos.agent1` of buildos-agentd: the agents of the host.

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
/// (`buildos-bbot@default`), encoded as by systemd.
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
        /// A configuration that yields a command.
        Configuration = "configuration",
        /// The program, installed and executable.
        Program = "program",
        /// The credentials of the agent.
        Credentials = "credentials",
        /// `/dev/kvm`, unless it is waived.
        Kvm = "kvm",
        /// Enough RAM for its tasks.
        Memory = "memory",
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
        /// It ended; it starts again at `NextStartUSec`.
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

/// All agents of the host.
#[zbus::proxy(
    interface = "org.build2.buildos.agent1.Manager",
    default_service = "org.build2.buildos.agent1",
    default_path = "/org/build2/buildos/agent1",
    gen_blocking = false
)]
pub trait Manager {
    /// Starts the instance (`bbot@default`) again now, whatever its state.
    fn restart(&self, instance: &str) -> zbus::Result<()>;
    /// Lets the tasks of these instances end, then stops them; no instances
    /// stand for all. `budget_usec` is the time that tasks have, microseconds;
    /// 0 for the configured one.
    fn drain(&self, instances: &[&str], budget_usec: u64) -> zbus::Result<()>;
    /// Takes [`Self::drain`] back; no instances stand for all.
    fn resume(&self, instances: &[&str]) -> zbus::Result<()>;

    /// One line for people: how many agents run, and what the others wait for.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// Objects of the instances, see [`InstanceProxy`].
    #[zbus(property)]
    fn instances(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
    /// Errors in the configuration, one line each; empty when it is sound.
    #[zbus(property)]
    fn configuration_problems(&self) -> zbus::Result<Vec<String>>;
}

/// One agent.
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
    /// True if it starts as soon as no requirement is missing: neither an operator
    /// stopped it nor is it drained.
    #[zbus(property)]
    fn wanted(&self) -> zbus::Result<bool>;
    /// An [`InstanceState`].
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// When it came into this state, CLOCK_REALTIME microseconds.
    #[zbus(property, name = "SinceUSec")]
    fn since_usec(&self) -> zbus::Result<u64>;
    /// One line for people: why it is in this state.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// Needs that are not met: a [`Need`], and a line for people on what is missing.
    #[zbus(property)]
    fn needs(&self) -> zbus::Result<Vec<(String, String)>>;
    /// Starts by agentd after the agent had ended by itself.
    #[zbus(property)]
    fn restarts(&self) -> zbus::Result<u32>;
    /// Ends by itself and failed starts since it was last in order.
    #[zbus(property)]
    fn failures(&self) -> zbus::Result<u32>;
    /// Whether it ends again and again.
    #[zbus(property)]
    fn crash_loop(&self) -> zbus::Result<bool>;
    /// How it last ended (`exit code 1`, `signal SEGV`), or empty.
    #[zbus(property)]
    fn last_exit(&self) -> zbus::Result<String>;
    /// Main process, or 0.
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    /// When it will be started again, CLOCK_REALTIME microseconds, or 0.
    #[zbus(property, name = "NextStartUSec")]
    fn next_start_usec(&self) -> zbus::Result<u64>;
    /// Until when its tasks may end while it drains, CLOCK_REALTIME
    /// microseconds, or 0.
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
    /// One line for people.
    #[serde(with = "as_value")]
    pub reason: String,
    /// Needs that are not met.
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
