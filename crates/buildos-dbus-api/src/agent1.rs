//! `org.build2.buildos.agent1`, served by buildos-agentd: the agents of the
//! host.

use zbus::zvariant::OwnedObjectPath;

use crate::path;
use crate::words::words;

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

words! {
    /// The two kinds of agent.
    Kind("agent kind") {
        /// The build bot, normally on br1.
        Bbot = "bbot",
        /// The build slave, normally on br0.
        Bslave = "bslave",
    }
}

words! {
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
        /// Draining or drained: takes no new work.
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
    /// An [`InstanceState`].
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// When it came into this state, CLOCK_REALTIME microseconds.
    #[zbus(property, name = "SinceUSec")]
    fn since_usec(&self) -> zbus::Result<u64>;
    /// One line for people: why it is in this state.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// Needs that are not met, one line each.
    #[zbus(property)]
    fn needs(&self) -> zbus::Result<Vec<String>>;
    /// Starts by agentd after the agent had ended by itself.
    #[zbus(property)]
    fn restarts(&self) -> zbus::Result<u32>;
    /// How it last ended (`exit code 1`, `signal SEGV`), or empty.
    #[zbus(property)]
    fn last_exit(&self) -> zbus::Result<String>;
    /// Main process, or 0.
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    /// When it will be started again, CLOCK_REALTIME microseconds, or 0.
    #[zbus(property, name = "NextStartUSec")]
    fn next_start_usec(&self) -> zbus::Result<u64>;
}
