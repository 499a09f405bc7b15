//! `org.build2.buildos.agent1`: what agentd publishes.

use std::collections::BTreeMap;
use std::time::Duration;

use buildos_dbus_api::agent1::{NAME, PATH};
use buildos_dbus_api::update;
use tokio::sync::mpsc;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, fdo, interface};

use crate::agent::id::Id;
use crate::lifecycle::instance::Instance;

/// The host as a whole.
struct Manager {
    reason: String,
    instances: Vec<OwnedObjectPath>,
    problems: Vec<String>,
    orders: mpsc::Sender<Order>,
}

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Start this agent again now.
    Restart(Id),
    /// Let the tasks of these agents end, within this time or the configured one.
    Drain(Targets, Option<Duration>),
    /// Take that back.
    Resume(Targets),
}

/// Whom an [`Order`] is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every agent that is configured when the order arrives.
    All,
    /// These.
    Some(Vec<Id>),
}

impl Targets {
    /// Whether the agent is among them.
    #[must_use]
    pub fn contain(&self, id: &Id) -> bool {
        match self {
            Self::All => true,
            Self::Some(ids) => ids.contains(id),
        }
    }
}

impl Manager {
    /// The agent of that name, if it is configured.
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

    async fn order(&self, order: Order) -> fdo::Result<()> {
        let sent = self.orders.send(order).await;
        sent.map_err(|_| fdo::Error::Failed("buildos-agentd is ending".to_owned()))
    }
}

/// All agents of the host.
#[interface(name = "org.build2.buildos.agent1.Manager")]
impl Manager {
    /// Starts the agent (`bbot@default`) again now: ends one that runs, does not
    /// wait any longer with one that ended, takes back that somebody stopped
    /// it. What it needs must still be there.
    async fn restart(&self, instance: &str) -> fdo::Result<()> {
        let id = self.configured(instance)?;
        self.order(Order::Restart(id)).await
    }

    /// Lets the tasks of these agents (`bbot@default`) end, then stops them and
    /// keeps them down until Resume, also over a restart of buildos-agentd. No
    /// agents stand for all. Tasks have `budget_usec` microseconds; 0 stands for
    /// the configured time, which is shorter when the host goes down.
    async fn drain(&self, instances: Vec<&str>, budget_usec: u64) -> fdo::Result<()> {
        let targets = self.targets(&instances)?;
        let budget = (budget_usec > 0).then(|| Duration::from_micros(budget_usec));
        self.order(Order::Drain(targets, budget)).await
    }

    /// Takes Drain back for these agents; no agents stand for all. One whose
    /// tasks still run goes on, one that is down is started when its needs are
    /// met. What somebody stopped stays stopped.
    async fn resume(&self, instances: Vec<&str>) -> fdo::Result<()> {
        let targets = self.targets(&instances)?;
        self.order(Order::Resume(targets)).await
    }

    /// One line for people: how many agents run, and what the others wait for.
    #[zbus(property)]
    fn reason(&self) -> &str {
        &self.reason
    }

    /// The objects of the agents.
    #[zbus(property)]
    fn instances(&self) -> Vec<OwnedObjectPath> {
        self.instances.clone()
    }

    /// Errors in the configuration, one line each; empty when it is sound.
    #[zbus(property)]
    fn configuration_problems(&self) -> &[String] {
        &self.problems
    }
}

/// One agent, as it was published last.
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

    /// The unit that runs it, for example `buildos-bbot@default.service`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn unit(&self) -> String {
        self.id.unit()
    }

    /// Whether it is to run as soon as it has what it needs: neither stopped by
    /// somebody nor drained.
    #[zbus(property)]
    fn wanted(&self) -> bool {
        self.instance.wanted()
    }

    /// `waiting`, `starting`, `running`, `delayed` (it ended and starts again at
    /// NextStartUSec), `stopped` (by somebody), `draining` (its tasks may end
    /// until DrainDeadlineUSec), `drained`, or `invalid` (its configuration cannot
    /// work).
    #[zbus(property)]
    fn state(&self) -> &str {
        self.instance.state().as_str()
    }

    /// When it came into this state, CLOCK_REALTIME microseconds.
    #[zbus(property, name = "SinceUSec")]
    fn since_usec(&self) -> u64 {
        self.instance.since_usec()
    }

    /// One line for people: why it is in this state.
    #[zbus(property)]
    fn reason(&self) -> String {
        self.instance.reason()
    }

    /// What it needs and is not there: a word (`configuration`, `program`,
    /// `credentials`, `kvm`, `memory`, `network`, `hostname`, `private-network`,
    /// `clock`) and a line for people.
    #[zbus(property)]
    fn needs(&self) -> Vec<(String, String)> {
        let unmet = self.instance.unmet().iter();
        unmet
            .map(|unmet| (unmet.need.to_string(), unmet.what.clone()))
            .collect()
    }

    /// How often it was started again after it had ended by itself.
    #[zbus(property)]
    fn restarts(&self) -> u32 {
        self.instance.restarts()
    }

    /// How often it has ended by itself, or could not be started, since it was
    /// last in order: stopped by somebody, or up for ten minutes.
    #[zbus(property)]
    fn failures(&self) -> u32 {
        self.instance.failures()
    }

    /// Whether it ends again and again. It is started again nevertheless.
    #[zbus(property)]
    fn crash_loop(&self) -> bool {
        self.instance.crash_loop()
    }

    /// How it last ended (`exit code 1`, `signal SEGV`), or empty.
    #[zbus(property)]
    fn last_exit(&self) -> &str {
        self.instance.last_exit()
    }

    /// Its main process, or 0.
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.instance.main_pid()
    }

    /// When it is started again, CLOCK_REALTIME microseconds, or 0.
    #[zbus(property, name = "NextStartUSec")]
    fn next_start_usec(&self) -> u64 {
        self.instance.next_start_usec()
    }

    /// Until when its tasks may end while it drains, CLOCK_REALTIME
    /// microseconds, or 0.
    #[zbus(property, name = "DrainDeadlineUSec")]
    fn drain_deadline_usec(&self) -> u64 {
        self.instance.drain_deadline_usec()
    }
}

/// The serving side of a connection.
#[derive(Debug)]
pub struct Bus {
    connection: Connection,
    published: BTreeMap<Id, Instance>,
}

impl Bus {
    /// Serves the manager without agents. What somebody asks for goes to `orders`.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub async fn new(connection: &Connection, orders: mpsc::Sender<Order>) -> zbus::Result<Self> {
        let manager = Manager {
            reason: String::new(),
            instances: Vec::new(),
            problems: Vec::new(),
            orders,
        };
        connection.object_server().at(PATH, manager).await?;
        Ok(Self {
            connection: connection.clone(),
            published: BTreeMap::new(),
        })
    }

    /// Takes the bus name. After the first [`Bus::publish`], so that nobody
    /// sees a host without agents that has some.
    ///
    /// # Errors
    ///
    /// Somebody else has it, or the policy forbids it.
    pub async fn take_name(&self) -> zbus::Result<()> {
        self.connection.request_name(NAME).await
    }

    /// Publishes what differs from what is published.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub async fn publish(
        &mut self,
        reason: &str,
        problems: &[String],
        agents: &BTreeMap<&Id, &Instance>,
    ) -> zbus::Result<()> {
        let server = self.connection.object_server();
        let gone = |id: &&Id| !agents.contains_key(id);
        let gone: Vec<Id> = self.published.keys().filter(gone).cloned().collect();
        for id in gone {
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
    use crate::lifecycle::instance::{Now, Remembered};
    use std::time::Instant;
    use zbus::object_server::Interface as _;

    /// The XML of record is what is served. `BUILDOS_BLESS=1` writes it anew.
    #[test]
    fn the_interfaces_are_those_of_record() {
        let (orders, _) = mpsc::channel(1);
        let now = Now {
            instant: Instant::now(),
            realtime_usec: 0,
            uptime: Duration::ZERO,
        };
        let manager = Manager {
            reason: String::new(),
            instances: Vec::new(),
            problems: Vec::new(),
            orders,
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
