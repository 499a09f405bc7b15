//! Serves `org.build2.buildos.agent1`: properties of the host and of each agent, and the
//! methods Restart, Drain and Resume.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use buildos_dbus_api::agent1::{NAME, PATH};
use buildos_dbus_api::{request_name, update};
use tokio::sync::mpsc;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, fdo, interface};

use crate::agent::id::Id;
use crate::lifecycle::instance::Instance;

/// Object of the host.
struct Manager {
    reason: String,
    instances: Vec<OwnedObjectPath>,
    problems: Vec<String>,
    calls: mpsc::Sender<MethodCall>,
}

/// Call of a D-Bus method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MethodCall {
    /// Start this agent again now.
    Restart(Id),
    /// Drain these agents within this time; [`None`] is the configured time.
    Drain(Targets, Option<Duration>),
    /// End the drain of these agents.
    Resume(Targets),
}

/// Agents that a [`MethodCall`] concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// All agents that are configured when agentd handles the call.
    All,
    /// The listed agents.
    Some(Vec<Id>),
}

impl Targets {
    /// Returns true if the agent is one of them.
    #[must_use]
    pub fn contain(&self, id: &Id) -> bool {
        match self {
            Self::All => true,
            Self::Some(ids) => ids.contains(id),
        }
    }
}

impl Manager {
    /// Parses the name of an agent, which must be configured.
    fn configured(&self, instance: &str) -> fdo::Result<Id> {
        let id: Id = instance
            .parse()
            .map_err(|error: crate::agent::id::IdError| {
                fdo::Error::InvalidArgs(error.to_string())
            })?;
        let path = id.object_path();
        if self.instances.iter().any(|known| *known.as_str() == path) {
            Ok(id)
        } else {
            Err(fdo::Error::InvalidArgs(format!("{id} is not configured")))
        }
    }

    fn targets(&self, instances: &[&str]) -> fdo::Result<Targets> {
        if instances.is_empty() {
            return Ok(Targets::All);
        }
        let ids = instances.iter().map(|name| self.configured(name));
        ids.collect::<Result<_, _>>().map(Targets::Some)
    }

    async fn call(&self, call: MethodCall) -> fdo::Result<()> {
        let sent = self.calls.send(call).await;
        sent.map_err(|_| fdo::Error::Failed("buildos-agentd is stopping".to_owned()))
    }
}

/// All agents of the host.
#[interface(name = "org.build2.buildos.agent1.Manager")]
impl Manager {
    /// Starts the agent (`bbot@default`) again now. A running agent is restarted, a delayed
    /// or stopped agent is started. Requirements still apply.
    async fn restart(&self, instance: &str) -> fdo::Result<()> {
        let id = self.configured(instance)?;
        self.call(MethodCall::Restart(id)).await
    }

    /// Lets the tasks of these agents (`bbot@default`) end, then stops the agents and keeps
    /// them down until Resume, even after a restart of buildos-agentd. An empty list means
    /// all agents. Tasks have `budget_usec` microseconds to end. 0 means the configured
    /// time, which is shorter during a shutdown of the host.
    async fn drain(&self, instances: Vec<&str>, budget_usec: u64) -> fdo::Result<()> {
        let targets = self.targets(&instances)?;
        let budget = (budget_usec > 0).then(|| Duration::from_micros(budget_usec));
        self.call(MethodCall::Drain(targets, budget)).await
    }

    /// Ends the drain of these agents. An empty list means all agents. An agent whose tasks
    /// still run continues; an agent that is down is started once its requirements are met.
    /// An agent that an operator stopped stays stopped.
    async fn resume(&self, instances: Vec<&str>) -> fdo::Result<()> {
        let targets = self.targets(&instances)?;
        self.call(MethodCall::Resume(targets)).await
    }

    /// One line for operators: number of running agents, and reasons of the others.
    #[zbus(property)]
    fn reason(&self) -> &str {
        &self.reason
    }

    /// Objects of the agents.
    #[zbus(property)]
    fn instances(&self) -> Vec<OwnedObjectPath> {
        self.instances.clone()
    }

    /// Errors in the configuration, one line each.
    #[zbus(property)]
    fn configuration_problems(&self) -> &[String] {
        &self.problems
    }
}

/// Object of an agent.
struct Agent {
    id: Id,
    instance: Instance,
}

/// One agent.
#[interface(name = "org.build2.buildos.agent1.Instance")]
impl Agent {
    /// Name of the agent, for example `default`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.id.name.to_string()
    }

    /// `bbot` or `bslave`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> &str {
        self.id.kind.as_str()
    }

    /// Unit, for example `buildos-bbot@default.service`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn unit(&self) -> String {
        self.id.unit()
    }

    /// True if buildos-agentd starts it once its requirements are met: no operator stopped
    /// or drained it.
    #[zbus(property)]
    fn wanted(&self) -> bool {
        self.instance.wanted()
    }

    /// `waiting`, `starting`, `running`, `delayed` (it ended and starts again at
    /// NextStartUSec), `stopped` (by an operator), `draining` (its tasks have until
    /// DrainDeadlineUSec to end), `drained`, or `invalid` (its settings yield no command).
    #[zbus(property)]
    fn state(&self) -> &str {
        self.instance.state().as_str()
    }

    /// Time of the last change of State, CLOCK_REALTIME microseconds.
    #[zbus(property, name = "SinceUSec")]
    fn since_usec(&self) -> u64 {
        self.instance.since_usec()
    }

    /// One line for operators: the cause of State.
    #[zbus(property)]
    fn reason(&self) -> String {
        self.instance.reason()
    }

    /// Requirements that are not met: a name (`configuration`, `program`, `tools`,
    /// `credentials`, `kvm`, `memory`, `disk`, `network`, `hostname`, `private-network`, `clock`)
    /// and a line for operators.
    #[zbus(property)]
    fn needs(&self) -> Vec<(String, String)> {
        let unmet = self.instance.unmet().iter();
        unmet
            .map(|unmet| (unmet.need.to_string(), unmet.reason.clone()))
            .collect()
    }

    /// systemd's count of starts after an unexpected end.
    #[zbus(property)]
    fn restarts(&self) -> u32 {
        self.instance.restarts()
    }

    /// Unexpected ends and failed starts in a row. Ten minutes of running, or a Restart or
    /// Resume of an agent that is down, reset the count.
    #[zbus(property)]
    fn failures(&self) -> u32 {
        self.instance.failures()
    }

    /// True after three failures in a row. buildos-agentd still starts it again.
    #[zbus(property)]
    fn crash_loop(&self) -> bool {
        self.instance.crash_loop()
    }

    /// Exit status of the last run (`exit code 1`, `signal SEGV`), or empty.
    #[zbus(property)]
    fn last_exit(&self) -> &str {
        self.instance.last_exit()
    }

    /// Main process, or 0.
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.instance.main_pid()
    }

    /// Time of the next start, CLOCK_REALTIME microseconds, or 0.
    #[zbus(property, name = "NextStartUSec")]
    fn next_start_usec(&self) -> u64 {
        self.instance.next_start_usec()
    }

    /// Virtual machines in the unit: process of QEMU, its taps, start, and time since which it
    /// got no CPU time. Times are CLOCK_REALTIME microseconds. The second is 0 while the
    /// machine is not suspended.
    #[zbus(property)]
    fn machines(&self) -> Vec<(u32, Vec<String>, u64, u64)> {
        let machines = self.instance.machines().list.iter();
        machines
            .map(|machine| {
                let taps = machine.taps.iter().map(ToString::to_string);
                let taps = taps.collect();
                (
                    machine.pid,
                    taps,
                    machine.since_usec,
                    machine.suspended_usec,
                )
            })
            .collect()
    }

    /// Sums over the machines that have ended since buildos-agentd was started: `ended`
    /// (number), `time_usec`, `cpu_usec`, `received` and `sent` (bytes); and `memory_peak`,
    /// most RAM that one of them used (bytes).
    #[zbus(property)]
    fn machine_totals(&self) -> HashMap<&str, u64> {
        let totals = &self.instance.machines().totals;
        let used = &totals.used;
        let usec = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        HashMap::from([
            ("ended", totals.ended),
            ("time_usec", usec(used.time)),
            ("cpu_usec", usec(used.cpu)),
            ("memory_peak", used.memory_peak),
            ("received", used.traffic.received),
            ("sent", used.traffic.sent),
        ])
    }

    /// Time at which the remaining tasks are stopped, CLOCK_REALTIME microseconds, or 0 if
    /// it does not drain.
    #[zbus(property, name = "DrainDeadlineUSec")]
    fn drain_deadline_usec(&self) -> u64 {
        self.instance.drain_deadline_usec()
    }
}

/// Publishes objects and properties.
#[derive(Debug)]
pub struct Publisher {
    connection: Connection,
    published: BTreeMap<Id, Instance>,
}

impl Publisher {
    /// Serves the manager without agents. Method calls are sent to `calls`.
    ///
    /// # Errors
    ///
    /// The connection was lost.
    pub async fn new(
        connection: &Connection,
        calls: mpsc::Sender<MethodCall>,
    ) -> zbus::Result<Self> {
        let manager = Manager {
            reason: String::new(),
            instances: Vec::new(),
            problems: Vec::new(),
            calls,
        };
        connection.object_server().at(PATH, manager).await?;
        Ok(Self {
            connection: connection.clone(),
            published: BTreeMap::new(),
        })
    }

    /// Takes the bus name. Call it after the first [`Publisher::publish`]: clients then never
    /// see a host without its agents.
    ///
    /// # Errors
    ///
    /// Another process owns the name, or the policy of the bus forbids it.
    pub async fn take_name(&self) -> zbus::Result<()> {
        request_name(&self.connection, NAME).await
    }

    /// Publishes the changed properties and objects.
    ///
    /// # Errors
    ///
    /// The connection was lost.
    pub async fn publish(
        &mut self,
        reason: &str,
        problems: &[String],
        agents: &BTreeMap<&Id, &Instance>,
    ) -> zbus::Result<()> {
        let server = self.connection.object_server();
        let removed = |id: &&Id| !agents.contains_key(id);
        let removed: Vec<Id> = self.published.keys().filter(removed).cloned().collect();
        for id in removed {
            server.remove::<Agent, _>(id.object_path()).await?;
            self.published.remove(&id);
        }
        for (&id, &instance) in agents {
            let published = self.published.get(id);
            if published == Some(instance) {
                continue;
            }
            let path = id.object_path();
            let agent = Agent {
                id: id.clone(),
                instance: instance.clone(),
            };
            if published.is_some() {
                update(&self.connection, &path, |served: &mut Agent| {
                    *served = agent;
                })
                .await?;
            } else {
                server.at(path, agent).await?;
            }
            self.published.insert(id.clone(), instance.clone());
        }
        let instances = self
            .published
            .keys()
            .map(|id| id.object_path().try_into())
            .collect::<Result<_, zbus::zvariant::Error>>()?;
        update(&self.connection, PATH, |manager: &mut Manager| {
            manager.reason = reason.to_owned();
            manager.problems = problems.to_vec();
            manager.instances = instances;
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::instance::Remembered;
    use crate::lifecycle::table::Now;
    use std::time::Instant;
    use zbus::object_server::Interface as _;

    /// Compares the served interfaces with the XML of record. `BUILDOS_BLESS=1` rewrites
    /// the XML.
    #[test]
    fn interfaces_match_xml_of_record() {
        let (calls, _) = mpsc::channel(1);
        let now = Now {
            instant: Instant::now(),
            realtime_usec: 0,
            uptime: Duration::ZERO,
        };
        let manager = Manager {
            reason: String::new(),
            instances: Vec::new(),
            problems: Vec::new(),
            calls,
        };
        let agent = Agent {
            id: "bbot@default".parse().unwrap(),
            instance: Instance::new(Remembered::default(), Vec::new(), now),
        };
        let mut xml = String::from("<node>\n");
        manager.introspect_to_writer(&mut xml, 2);
        agent.introspect_to_writer(&mut xml, 2);
        xml.push_str("</node>\n");
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/dbus/org.build2.buildos.agent1.xml"
        );
        if std::env::var_os("BUILDOS_BLESS").is_some() {
            std::fs::write(path, &xml).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), xml);
    }
}
