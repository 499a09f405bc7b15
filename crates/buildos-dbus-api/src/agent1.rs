//! `org.build2.buildos.agent1`, served by buildos-agentd: the agents of the
//! host.

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

/// Path of an instance: the last element is the unit name without `.service`
/// (`buildos-bbot@default`), escaped as systemd does it.
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
    /// Something without which an instance is not started.
    Need("agent1 need") {
        /// A configuration that makes a command.
        Configuration = "configuration",
        /// The program, installed and executable.
        Program = "program",
        /// The credentials that are passed to it.
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
        /// A synchronised clock, or the end of the time that one is waited for.
        Clock = "clock",
    }
}

string_enum! {
    /// Where an instance is in its life.
    InstanceState("agent1 instance state") {
        /// A need is not met; `Needs` says which.
        Waiting = "waiting",
        /// systemd starts the unit.
        Starting = "starting",
        /// The agent runs.
        Running = "running",
        /// It ended; it starts again at `NextStartUSec`.
        Delayed = "delayed",
        /// Stopped by an operator (`systemctl stop`); stays so until asked for.
        Stopped = "stopped",
        /// Its tasks may end until `DrainDeadlineUSec`; then it is stopped.
        Draining = "draining",
        /// Its tasks have ended or had their time; it stays down until `Resume`.
        Drained = "drained",
        /// Its configuration cannot work; the reason says why.
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
    /// Whether it is to run as soon as its needs are met: neither stopped by
    /// somebody nor drained.
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

/// The properties of [`InstanceProxy`], read at once. What an older or newer
/// agentd does not send has the value of "not known".
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
