//! The loop that ties the parts together.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use buildos_dbus_api::agent1::InstanceState;
use buildos_dbus_api::watch::BusLost;
use buildos_dbus_api::{METHOD_TIMEOUT, hostname1, nat1, network1, system_bus};
use buildos_service::file::WriteError;
use buildos_service::{Request, Service};
use tokio::sync::mpsc;
use tokio::time::timeout;
use zbus::zvariant::OwnedObjectPath;

use crate::agent::Id;
use crate::bus::Bus;
use crate::command::Command;
use crate::config::Settings;
use crate::dropin::{self, Op};
use crate::fleet;
use crate::host;
use crate::instance::{Event, Instance, Now};
use crate::memory::{self, Memory};
use crate::messages;
use crate::needs::{self, Host, Need, Requirements};
use crate::systemd::{Follower, Report, Systemd, SystemdError};
use crate::unit_directory::{self, UnitDirectory, UnitDirectoryError};

/// How often a program or device that is missing is looked for. There is no
/// event for either that would cover every way in which they appear.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Why agentd ends. systemd starts it again; the agents go on running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No system bus, or it refuses what agentd publishes.
    #[error("cannot serve on the system bus")]
    Bus(#[from] zbus::Error),
    /// The bus went away.
    #[error(transparent)]
    BusLost(#[from] BusLost),
    /// systemd did not do its part.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// The drop-ins could not be changed.
    #[error(transparent)]
    Units(#[from] UnitDirectoryError),
    /// The memory could not be written.
    #[error(transparent)]
    Memory(#[from] WriteError),
}

/// Runs agentd until systemd ends it.
///
/// # Errors
///
/// Something that agentd cannot work without is missing; see [`Error`].
pub async fn run(mut service: Service<Settings>) -> Result<(), Error> {
    let connection = system_bus().await?;
    let (restarts, mut asked) = mpsc::channel(8);
    let (reports, mut reported) = mpsc::channel(8);
    let mut network = network1::watch(&connection).await?;
    let mut naming = hostname1::watch(&connection).await?;
    let mut nat = nat1::watch(&connection).await?;
    let mut daemon = Daemon {
        bus: Bus::new(&connection, restarts).await?,
        systemd: Systemd::new(&connection).await?,
        units: UnitDirectory::new(Path::new(unit_directory::RUNTIME)),
        memory: Memory::new(Path::new(memory::FILE)),
        host: Host {
            network: network.next().await?,
            naming: naming.next().await?,
            nat: nat.next().await?,
            ..Host::default()
        },
        reports,
        agents: BTreeMap::new(),
        removed: BTreeMap::new(),
        disabled: Vec::new(),
    };
    daemon.configure(&service).await?;
    // So that nobody is told "waiting" only because agentd has not looked yet.
    // If systemd takes longer than it may, that is what they are told.
    let _ = timeout(METHOD_TIMEOUT, daemon.look(&mut reported)).await;
    daemon.settle(&mut service).await?;
    daemon.bus.take_name().await?;
    service.ready();
    loop {
        tokio::select! {
            request = service.request() => match request {
                Request::Stop => return Ok(()),
                Request::Reload => {
                    service.reload();
                    daemon.configure(&service).await?;
                    service.ready();
                }
            },
            now = network.next() => daemon.host.network = now?,
            now = naming.next() => daemon.host.naming = now?,
            now = nat.next() => daemon.host.nat = now?,
            Some(Report { id, event }) = reported.recv() => daemon.tell(&id, event),
            Some(id) = asked.recv() => daemon.tell(&id, Event::Restart),
            () = until(daemon.deadline()) => {}
        }
        daemon.settle(&mut service).await?;
    }
}

struct Daemon {
    bus: Bus,
    systemd: Systemd,
    units: UnitDirectory,
    memory: Memory,
    host: Host,
    reports: mpsc::Sender<Report>,
    agents: BTreeMap<Id, Agent>,
    /// Agents that were configured, with the jobs that stop them.
    removed: BTreeMap<Id, OwnedObjectPath>,
    /// Configured, with `enabled = false`.
    disabled: Vec<Id>,
}

struct Agent {
    requirements: Requirements,
    instance: Instance,
    follower: Follower,
    /// What the journal was told last.
    told: Option<(InstanceState, Vec<Need>)>,
}

impl Daemon {
    /// Makes the drop-ins and the agents what the configuration says.
    async fn configure(&mut self, service: &Service<Settings>) -> Result<(), Error> {
        let Settings { agents, options } = service.settings();
        let enabled: BTreeMap<_, _> = agents
            .iter()
            .filter(|(_, settings)| settings.enabled)
            .map(|(id, settings)| {
                let command = Command::new(id, settings, options);
                (id, (Requirements::new(settings, &command), command))
            })
            .collect();
        let wished: BTreeMap<_, _> = enabled
            .iter()
            .filter_map(|(&id, (_, command))| {
                Some((id.clone(), dropin::text(command.as_ref().ok()?)))
            })
            .collect();
        let configured: BTreeSet<Id> = enabled.keys().map(|&id| id.clone()).collect();
        let sound = service.problems().is_empty();
        let present = self.units.read()?;
        for op in dropin::plan(&configured, &wished, &present, sound) {
            self.apply(op, &present).await?;
        }
        // Also without a change: agentd may have ended between change and reload.
        self.systemd
            .reload(wished.keys().chain(present.keys()))
            .await?;

        let launched = self.memory.load().unwrap_or_else(|error| {
            tracing::warn!("{}", buildos_service::text::chain(&error));
            BTreeSet::new()
        });
        self.agents
            .retain(|id, _| configured.contains(id) || !sound);
        for (id, (requirements, _)) in enabled {
            match self.agents.get_mut(id) {
                Some(agent) => agent.requirements = requirements,
                None => {
                    let unmet = needs::unmet(&requirements, &self.host);
                    let agent = Agent {
                        requirements,
                        instance: Instance::new(launched.contains(id), unmet, now()),
                        follower: self.systemd.follow(
                            id,
                            self.removed.remove(id),
                            self.reports.clone(),
                        ),
                        told: None,
                    };
                    self.agents.insert(id.clone(), agent);
                }
            }
        }
        self.disabled = agents
            .iter()
            .filter(|(_, settings)| !settings.enabled)
            .map(|(id, _)| id.clone())
            .collect();
        Ok(())
    }

    async fn apply(&mut self, op: Op, present: &BTreeMap<Id, String>) -> Result<(), Error> {
        match op {
            Op::Remove(id) => {
                let job = self.systemd.stop(&id).await?;
                self.units.remove(&id)?;
                messages::removed(&id);
                self.removed.extend(job.map(|job| (id, job)));
            }
            Op::Keep(id) => messages::kept(&id),
            Op::Write(id, text) => {
                self.units.write(&id, &text)?;
                if present.contains_key(&id) {
                    messages::changed(&id);
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, id: &Id, event: Event) {
        // A report may be older than the configuration that dropped its agent.
        if let Some(agent) = self.agents.get_mut(id) {
            agent.tell(event);
        }
    }

    /// Takes reports until every unit has been looked at.
    async fn look(&mut self, reported: &mut mpsc::Receiver<Report>) {
        while self.agents.values().any(|agent| !agent.instance.seen()) {
            let Some(Report { id, event }) = reported.recv().await else {
                return;
            };
            self.tell(&id, event);
        }
    }

    /// Looks at everything that agents need, starts those that have it, and
    /// tells the world.
    async fn settle(&mut self, service: &mut Service<Settings>) -> Result<(), Error> {
        let root = Path::new("/");
        let programs = self.agents.values().map(|a| a.requirements.program.clone());
        self.host.programs = host::programs(root, programs.collect());
        self.host.kvm = host::has_kvm(root);
        for (id, agent) in &mut self.agents {
            agent.tell(Event::Needs(needs::unmet(&agent.requirements, &self.host)));
            agent.tell(Event::Due);
            agent.journal(id);
        }
        let launched = self.agents.iter().filter(|(_, a)| a.instance.launched());
        self.memory.save(launched.map(|(id, _)| id))?;
        let instances: BTreeMap<_, _> = self
            .agents
            .iter()
            .map(|(id, a)| (id, &a.instance))
            .collect();
        let disabled: Vec<_> = self.disabled.iter().collect();
        let reason = fleet::summary(instances.iter().map(|(&id, &i)| (id, i)), &disabled);
        self.bus
            .publish(&reason, &service.problems(), &instances)
            .await?;
        service.status(&reason);
        Ok(())
    }

    /// When to settle again although nothing happened.
    fn deadline(&self) -> Option<Instant> {
        let starts = self.agents.values().filter_map(|a| a.instance.deadline());
        let looks = self.agents.values().any(Agent::waits_for_a_file);
        starts
            .chain(looks.then(|| Instant::now() + LOOK_AGAIN))
            .min()
    }
}

impl Agent {
    fn tell(&mut self, event: Event) {
        if let Some(command) = self.instance.handle(event, now(), lot()) {
            self.follower.command(command);
        }
    }

    fn waits_for_a_file(&self) -> bool {
        self.instance.state() == InstanceState::Waiting
            && self
                .instance
                .unmet()
                .iter()
                .any(|unmet| matches!(unmet.need, Need::Program | Need::Kvm))
    }

    /// Tells the journal, when the state or the set of missing things differs;
    /// the wording of other daemons may change more often than is worth a line.
    fn journal(&mut self, id: &Id) {
        if !self.instance.seen() {
            return;
        }
        let state = self.instance.state();
        let needs = if state == InstanceState::Waiting {
            self.instance.unmet().iter().map(|u| u.need).collect()
        } else {
            Vec::new()
        };
        let told = Some((state, needs));
        if self.told != told {
            messages::state(id, &self.instance);
            self.told = told;
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn now() -> Now {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        instant: Instant::now(),
        realtime_usec: u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX),
    }
}

/// A random number. The standard library seeds its hash tables from the
/// kernel's generator, which is more than jitter needs.
fn lot() -> u32 {
    let hash = RandomState::new().hash_one(());
    u32::try_from(hash >> 32).unwrap_or(u32::MAX)
}
