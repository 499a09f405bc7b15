//! `org.build2.buildos.agent1`: what agentd publishes.

use std::collections::BTreeMap;

use buildos_dbus_api::agent1::{NAME, PATH};
use buildos_dbus_api::update;
use tokio::sync::mpsc;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, fdo, interface};

use crate::agent::Id;
use crate::instance::Instance;

/// The host as a whole.
struct Manager {
    reason: String,
    instances: Vec<OwnedObjectPath>,
    problems: Vec<String>,
    restarts: mpsc::Sender<Id>,
}

/// All agents of the host.
#[interface(name = "org.build2.buildos.agent1.Manager")]
impl Manager {
    /// Starts the agent (`bbot@default`) again now: ends one that runs, does not
    /// wait any longer with one that ended, takes back that somebody stopped
    /// it. What it needs must still be there.
    async fn restart(&self, instance: &str) -> fdo::Result<()> {
        let id: Id = instance
            .parse()
            .map_err(|error: crate::agent::IdError| fdo::Error::InvalidArgs(error.to_string()))?;
        if !self
            .instances
            .iter()
            .any(|path| *path.as_str() == id.object_path())
        {
            return Err(fdo::Error::InvalidArgs(format!("{id} is not configured")));
        }
        self.restarts
            .send(id)
            .await
            .map_err(|_| fdo::Error::Failed("buildos-agentd is ending".to_owned()))
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

    /// `waiting`, `starting`, `running`, `delayed` (it ended and starts again at
    /// NextStartUSec), `stopped` (by somebody), `drained`, or `invalid` (its
    /// configuration cannot work).
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

    /// What it needs and is not there, one line each.
    #[zbus(property)]
    fn needs(&self) -> Vec<String> {
        self.instance
            .unmet()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// How often it was started again after it had ended by itself.
    #[zbus(property)]
    fn restarts(&self) -> u32 {
        self.instance.restarts()
    }

    /// How it last ended (`exit code 1`, `signal SEGV`), or empty.
    #[zbus(property)]
    fn last_exit(&self) -> String {
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
}

/// The serving side of a connection.
#[derive(Debug)]
pub struct Bus {
    connection: Connection,
    published: BTreeMap<Id, Instance>,
}

impl Bus {
    /// Serves the manager without agents. Requests to restart one go to `restarts`.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub async fn new(connection: &Connection, restarts: mpsc::Sender<Id>) -> zbus::Result<Self> {
        let manager = Manager {
            reason: String::new(),
            instances: Vec::new(),
            problems: Vec::new(),
            restarts,
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
        let gone = self.published.keys().filter(|id| !agents.contains_key(id));
        for id in gone {
            server.remove::<Agent, _>(id.object_path()).await?;
        }
        for (&id, &instance) in agents {
            let path = id.object_path();
            let agent = Agent {
                id: id.clone(),
                instance: instance.clone(),
            };
            match self.published.get(id) {
                Some(published) if published == instance => {}
                Some(_) => {
                    update(&self.connection, &path, |served: &mut Agent| {
                        *served = agent;
                    })
                    .await?;
                }
                None => drop(server.at(path, agent).await?),
            }
        }
        self.published = agents
            .iter()
            .map(|(&id, &instance)| (id.clone(), instance.clone()))
            .collect();
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
    use crate::instance::Now;
    use std::time::Instant;
    use zbus::object_server::Interface as _;

    /// The XML of record is what is served. `BUILDOS_BLESS=1` writes it anew.
    #[test]
    fn the_interfaces_are_those_of_record() {
        let (restarts, _) = mpsc::channel(1);
        let now = Now {
            instant: Instant::now(),
            realtime_usec: 0,
        };
        let manager = Manager {
            reason: String::new(),
            instances: Vec::new(),
            problems: Vec::new(),
            restarts,
        };
        let agent = Agent {
            id: "bbot@default".parse().unwrap(),
            instance: Instance::new(false, Vec::new(), now),
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
