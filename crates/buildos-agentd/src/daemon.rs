//! The loop that ties the parts together.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use buildos_dbus_api::agent1::{InstanceState, Need};
use buildos_dbus_api::watch::BusLost;
use buildos_dbus_api::{PEER_TIMEOUT, hostname1, nat1, network1, system_bus};
use buildos_service::clock::is_synchronised;
use buildos_service::file::WriteError;
use buildos_service::{Request, Service, heap};
use tokio::sync::mpsc;
use tokio::time::timeout;
use zbus::zvariant::OwnedObjectPath;

use crate::agent::drain::{Budgets, Way};
use crate::agent::id::Id;
use crate::dbus::{Bus, Order};
use crate::lifecycle::instance::{Event, Instance, Now};
use crate::messages;
use crate::ready_delay::FirstStarts;
use crate::requirements::check::{self as needs, Host, Requirements};
use crate::requirements::clock::{Clock, Wait};
use crate::requirements::host;
use crate::resources::hardware::Hardware;
use crate::resources::{allotment, usable_memory};
use crate::settings::Settings;
use crate::state_file::{self as memory, Memory};
use crate::summary;
use crate::systemd::supervisor::{Follower, Report, Systemd, SystemdError};
use crate::unit::command::Command;
use crate::unit::directory::{self as unit_directory, UnitDirectory, UnitDirectoryError};
use crate::unit::dropin::{self, Op};

/// How often a program or device that is missing is looked for. There is no
/// event for either that would cover every way in which they appear.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The same for the clock when it is the last thing that is missing: this is what an
/// agent loses by it.
const LOOK_AT_CLOCK: Duration = Duration::from_millis(100);

/// When nothing happened for so long, it is over, and memory that was taken for it is
/// given back: agents that come and go do it together.
const QUIET: Duration = Duration::from_secs(3);

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
    let (orders, mut ordered) = mpsc::channel(8);
    let (reports, mut reported) = mpsc::channel(8);
    let mut network = network1::watch(&connection).await?;
    let mut naming = hostname1::watch(&connection).await?;
    let mut nat = nat1::watch(&connection).await?;
    let mut daemon = Daemon {
        bus: Bus::new(&connection, orders).await?,
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
        hardware: Hardware::read(Path::new("/")),
        budgets: Budgets::default(),
        clock_deadline: Duration::ZERO,
        clock: Wait::default(),
    };
    let first = daemon.memory.is_new();
    daemon.configure(&service).await?;
    // So that nobody is told "waiting" only because agentd has not looked yet.
    // If systemd takes longer than it may, that is what they are told.
    let _ = timeout(PEER_TIMEOUT, daemon.look(&mut reported)).await;
    daemon.settle(&mut service).await?;
    daemon.bus.take_name().await?;
    let mut first = first.then(|| FirstStarts::new(Instant::now()));
    if first.is_none() {
        service.ready();
    }
    let mut quiet = Some(Instant::now() + QUIET);
    loop {
        let starts = first.as_mut();
        if starts.is_some_and(|first| first.over(daemon.starts(), Instant::now())) {
            first = None;
            // systemd takes a reload of what is not ready for a part of its start.
            if service.reread() {
                daemon.configure(&service).await?;
                daemon.settle(&mut service).await?;
            }
            service.ready();
        }
        let mut news = true;
        tokio::select! {
            request = service.request() => match request {
                Request::Stop => return Ok(()),
                Request::Reload => {
                    service.reload();
                    daemon.configure(&service).await?;
                    service.ready();
                    first = None;
                }
            },
            now = network.next() => daemon.host.network = now?,
            now = naming.next() => daemon.host.naming = now?,
            now = nat.next() => daemon.host.nat = now?,
            Some(Report { id, event }) = reported.recv() => daemon.tell(&id, event),
            Some(order) = ordered.recv() => daemon.carry_out(order).await?,
            () = until(daemon.deadline()) => news = false,
            () = until(first.as_ref().map(FirstStarts::deadline)) => news = false,
            () = until(quiet) => {
                heap::trim();
                quiet = None;
                continue;
            }
        }
        daemon.settle(&mut service).await?;
        if news {
            quiet = Some(Instant::now() + QUIET);
        }
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
    hardware: Hardware,
    budgets: Budgets,
    clock_deadline: Duration,
    clock: Wait,
}

struct Agent {
    requirements: Requirements,
    way: Way,
    instance: Instance,
    follower: Follower,
    /// What the journal was told last.
    told: Option<(InstanceState, Vec<Need>)>,
}

impl Daemon {
    /// Makes the drop-ins and the agents what the configuration says.
    async fn configure(&mut self, service: &Service<Settings>) -> Result<(), Error> {
        let settings = service.settings();
        let agents = &settings.agents;
        let enabled: BTreeMap<_, _> = agents
            .iter()
            .filter(|(_, agent)| agent.enabled)
            .map(|(id, agent)| {
                let allotment = allotment(id, settings, self.hardware);
                let command = Command::new(id, agent, &settings.options, allotment);
                let requirements = Requirements::new(agent, &command, allotment);
                (id, (requirements, command, agent.drain))
            })
            .collect();
        let wished: BTreeMap<_, _> = enabled
            .iter()
            .filter_map(|(&id, (_, command, _))| {
                Some((id.clone(), dropin::text(command.as_ref().ok()?)))
            })
            .collect();
        self.budgets = settings.budgets;
        self.clock_deadline = settings.clock_deadline;
        self.host.memory = usable_memory(settings, self.hardware);
        let configured: BTreeSet<Id> = enabled.keys().map(|&id| id.clone()).collect();
        let sound = service.problems().is_empty();
        let present = self.units.read()?;
        for op in dropin::plan(&configured, &wished, &present, sound) {
            self.apply(op, &present).await?;
        }
        self.units.write_slice(&dropin::slice(self.host.memory))?;
        // Also without a change: agentd may have ended between change and reload.
        let units = wished.keys().chain(present.keys()).map(Id::unit);
        let slice = std::iter::once(dropin::SLICE.to_owned());
        self.systemd.reload(slice.chain(units)).await?;

        let mut remembered = self.memory.load().unwrap_or_else(|error| {
            tracing::warn!("{}", buildos_service::text::chain(&error));
            BTreeMap::new()
        });
        self.agents
            .retain(|id, _| configured.contains(id) || !sound);
        for (id, (requirements, _, way)) in enabled {
            match self.agents.get_mut(id) {
                Some(agent) => {
                    agent.requirements = requirements;
                    agent.way = way;
                }
                None => {
                    let unmet = needs::unmet(&requirements, &self.host);
                    let kept = remembered.remove(id).unwrap_or_default();
                    let agent = Agent {
                        requirements,
                        way,
                        instance: Instance::new(kept, unmet, now()),
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

    async fn carry_out(&mut self, order: Order) -> Result<(), Error> {
        let (targets, event) = match order {
            Order::Restart(id) => {
                self.tell(&id, Event::Restart);
                return Ok(());
            }
            Order::Drain(targets, budget) => {
                let budget = match budget {
                    Some(budget) => budget,
                    None if self.systemd.is_stopping().await? => self.budgets.shutdown,
                    None => self.budgets.drain,
                };
                (targets, Event::Drain(budget))
            }
            Order::Resume(targets) => (targets, Event::Resume),
        };
        for (id, agent) in &mut self.agents {
            if targets.contain(id) {
                agent.tell(event.clone());
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

    /// What [`FirstStarts`] looks at.
    fn starts(&self) -> impl Iterator<Item = (InstanceState, Vec<Need>)> {
        let agents = self.agents.values();
        agents.map(|agent| (agent.instance.state(), agent.needs().collect()))
    }

    /// Looks at everything that agents need, starts those that have it, and
    /// tells the world.
    async fn settle(&mut self, service: &mut Service<Settings>) -> Result<(), Error> {
        self.look_at_host();
        for (id, agent) in &mut self.agents {
            agent.tell(Event::Needs(needs::unmet(&agent.requirements, &self.host)));
            agent.tell(Event::Due);
            agent.journal(id);
        }
        let kept = self.agents.iter();
        self.memory
            .save(kept.map(|(id, agent)| (id, agent.instance.remember())))?;
        let instances: BTreeMap<_, _> = self
            .agents
            .iter()
            .map(|(id, a)| (id, &a.instance))
            .collect();
        let disabled: Vec<_> = self.disabled.iter().collect();
        let notes: &[&str] = match self.host.clock {
            Clock::GivenUp if !instances.is_empty() => &["the clock is not synchronised"],
            Clock::GivenUp | Clock::Awaited | Clock::Synchronised => &[],
        };
        let agents = instances.iter().map(|(&id, &instance)| (id, instance));
        let reason = summary::summary(agents, &disabled, notes);
        self.bus
            .publish(&reason, &service.problems(), &instances)
            .await?;
        service.status(&reason);
        Ok(())
    }

    /// Looks at what nobody tells.
    fn look_at_host(&mut self) {
        let root = Path::new("/");
        let requirements = || self.agents.values().map(|agent| &agent.requirements);
        let programs = requirements().map(|r| r.program.clone()).collect();
        let credentials = requirements().flat_map(|r| r.credentials.iter().cloned());
        self.host.programs = host::programs(root, programs);
        self.host.credentials = host::credentials(root, credentials.collect());
        self.host.kvm = host::has_kvm(root);
        self.look_at_clock(is_synchronised(root));
    }

    fn look_at_clock(&mut self, synchronised: bool) {
        let online = self.host.network.as_ref().is_some_and(|n| n.online);
        let deadline = self.clock_deadline;
        let clock = self
            .clock
            .look(synchronised, online, deadline, Instant::now());
        if clock == Clock::GivenUp && self.host.clock != clock && !self.agents.is_empty() {
            messages::clock_given_up(deadline);
        }
        self.host.clock = clock;
    }

    /// When to settle again although nothing happened.
    fn deadline(&self) -> Option<Instant> {
        let starts = self.agents.values().filter_map(|a| a.instance.deadline());
        let any = |waits: fn(&Agent) -> bool| self.agents.values().any(waits);
        // Nobody sets the clock without a network.
        let clock = self.clock.runs() && any(|agent| agent.waits_for(&[Need::Clock]));
        let alone = clock && any(Agent::waits_for_the_clock_alone);
        let files = any(|agent| agent.waits_for(&[Need::Program, Need::Credentials, Need::Kvm]));
        let looks = [
            alone.then_some(LOOK_AT_CLOCK),
            (clock || files).then_some(LOOK_AGAIN),
        ];
        let looks = looks.into_iter().flatten();
        starts
            .chain(looks.map(|after| Instant::now() + after))
            .min()
    }
}

impl Agent {
    fn tell(&mut self, event: Event) {
        if let Some(command) = self.instance.handle(event, now(), lot()) {
            self.follower.command(command, self.way);
        }
    }

    /// Whether it waits for one of these.
    fn waits_for(&self, needs: &[Need]) -> bool {
        self.needs().any(|need| needs.contains(&need))
    }

    fn waits_for_the_clock_alone(&self) -> bool {
        self.waits_for(&[Need::Clock]) && self.needs().count() == 1
    }

    /// What it waits for.
    fn needs(&self) -> impl Iterator<Item = Need> {
        let waits = self.instance.state() == InstanceState::Waiting;
        let unmet = self.instance.unmet().iter().filter(move |_| waits);
        unmet.map(|unmet| unmet.need)
    }

    /// Tells the journal, when the state or the set of missing things differs;
    /// the wording of other daemons may change more often than is worth a line.
    fn journal(&mut self, id: &Id) {
        if !self.instance.seen() {
            return;
        }
        let state = self.instance.state();
        let needs = self.needs().collect();
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
        uptime: host::uptime(Path::new("/")),
    }
}

/// A random number. The standard library seeds its hash tables from the
/// kernel's generator, which is more than jitter needs.
fn lot() -> u32 {
    let hash = RandomState::new().hash_one(());
    u32::try_from(hash >> 32).unwrap_or(u32::MAX)
}
