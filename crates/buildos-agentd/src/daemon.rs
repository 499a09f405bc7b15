//! Runs the event loop.
//!
//! ```text
//!  inputs: status of netd, hostnamed, natd; reports of supervisors; method calls;
//!          deadlines; SIGTERM and reload
//!     |
//!     v
//!  Host, Agents -- settle --> commands to systemd, journal, state file, D-Bus, STATUS=
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `configured` | desired state, from the settings |
//! | `units` | drop-ins, stops of removed agents, supervisors |
//! | `agents` | the configured agents |
//! | `observer` | polling of programs, credentials, KVM and the clock |
//! | `time` | clocks |

mod agents;
mod configured;
pub mod error;
mod observer;
mod time;
mod units;

use std::path::Path;
use std::time::{Duration, Instant};

use buildos_dbus_api::hostname1::{self, Naming};
use buildos_dbus_api::nat1::{self, Nat};
use buildos_dbus_api::network1::{self, Network};
use buildos_dbus_api::watch::Watch;
use buildos_dbus_api::{PEER_TIMEOUT, system_bus};
use buildos_service::{Request, Service, heap, text};
use tokio::sync::mpsc;
use tokio::time::timeout;
use zbus::Connection;

use self::agents::{Agent, Agents, Suspension};
use self::configured::Configured;
use self::error::Error;
use self::observer::Observer;
use self::time::until;
use self::units::Units;
use crate::agent::drain::{Budgets, Suspended};
use crate::agent::id::Id;
use crate::dbus::{MethodCall, Publisher};
use crate::lifecycle::instance::Event;
use crate::messages;
use crate::ready_delay::ReadyDelay;
use crate::requirements::clock::Clock;
use crate::requirements::disk::Shortage;
use crate::requirements::host::Host;
use crate::resources::hardware::Hardware;
use crate::settings::Settings;
use crate::state_file::{FILE, StateFile};
use crate::summary::summary;
use crate::systemd::manager::Systemd;
use crate::systemd::supervisor::Report;

/// Quiet time after which freed memory is returned to the kernel. Agents that start or
/// end together do so within less.
const TRIM_DELAY: Duration = Duration::from_secs(3);

/// Interval between attempts to write the state file after an error.
const SAVE_RETRY: Duration = Duration::from_secs(10);

/// Runs agentd until systemd stops it.
///
/// # Errors
///
/// See [`Error`].
pub async fn run(mut service: Service<Settings>) -> Result<(), Error> {
    let (mut daemon, mut inputs) = start(&service).await?;
    daemon.settle(&mut service).await?;
    daemon.publisher.take_name().await?;
    if daemon.first_start {
        daemon.ready_delay = Some(ReadyDelay::new(Instant::now()));
    } else {
        service.ready();
    }
    daemon.trim_at = Some(Instant::now() + TRIM_DELAY);
    loop {
        daemon.end_ready_delay(&mut service).await?;
        tokio::select! {
            request = service.request() => match request {
                Request::Stop => return Ok(()),
                Request::Reload => daemon.reload(&mut service).await?,
            },
            now = inputs.network.next() => daemon.host.network = now?,
            now = inputs.naming.next() => daemon.host.naming = now?,
            now = inputs.nat.next() => daemon.host.nat = now?,
            Some(Report { id, event }) = inputs.reports.recv() => daemon.agents.handle(&id, event),
            Some(call) = inputs.calls.recv() => daemon.carry_out(call).await?,
            () = until(daemon.deadline()) => {
                daemon.settle(&mut service).await?;
                continue;
            }
            () = until(daemon.trim_at) => {
                heap::trim();
                daemon.trim_at = None;
                continue;
            }
        }
        daemon.settle(&mut service).await?;
        daemon.trim_at = Some(Instant::now() + TRIM_DELAY);
    }
}

/// Sources of events.
struct Inputs {
    network: Watch<Network>,
    naming: Watch<Naming>,
    nat: Watch<Nat>,
    reports: mpsc::Receiver<Report>,
    calls: mpsc::Receiver<MethodCall>,
}

struct Daemon {
    publisher: Publisher,
    units: Units,
    state_file: StateFile,
    /// Why the state file could not be written.
    state_unsaved: Option<String>,
    /// True if agentd has not run in this boot before.
    first_start: bool,
    host: Host,
    observer: Observer,
    agents: Agents,
    /// Agents with `enabled = false`.
    disabled: Vec<Id>,
    budgets: Budgets,
    suspension: Suspension,
    /// Time of the last observation of machines.
    machines_observed: Instant,
    /// Present until READY=1 of the first start.
    ready_delay: Option<ReadyDelay>,
    trim_at: Option<Instant>,
}

/// Connects to the bus, applies the configuration and waits for the first report of each
/// unit.
async fn start(service: &Service<Settings>) -> Result<(Daemon, Inputs), Error> {
    let connection: Connection = system_bus().await?;
    let (calls, received_calls) = mpsc::channel(8);
    let (reports, received_reports) = mpsc::channel(8);
    let mut inputs = Inputs {
        network: network1::watch(&connection).await?,
        naming: hostname1::watch(&connection).await?,
        nat: nat1::watch(&connection).await?,
        reports: received_reports,
        calls: received_calls,
    };
    let state_file = StateFile::new(Path::new(FILE));
    let mut daemon = Daemon {
        publisher: Publisher::new(&connection, calls).await?,
        units: Units::new(Systemd::new(&connection).await?, reports),
        first_start: state_file.is_new(),
        state_file,
        state_unsaved: None,
        host: Host {
            network: inputs.network.next().await?,
            naming: inputs.naming.next().await?,
            nat: inputs.nat.next().await?,
            ..Host::default()
        },
        observer: Observer::default(),
        agents: Agents::default(),
        disabled: Vec::new(),
        budgets: Budgets::default(),
        suspension: Suspension {
            policy: Suspended::Leave,
            after: Duration::MAX,
        },
        machines_observed: Instant::now(),
        ready_delay: None,
        trim_at: None,
    };
    daemon.configure(service).await?;
    // Avoids a first status "waits: systemd has not answered yet", unless systemd does not
    // answer in time.
    let _ = timeout(PEER_TIMEOUT, daemon.wait_for_units(&mut inputs.reports)).await;
    Ok((daemon, inputs))
}

impl Daemon {
    /// Applies the settings: drop-ins, then agents.
    async fn configure(&mut self, service: &Service<Settings>) -> Result<(), Error> {
        let settings = service.settings();
        let valid = service.problems().is_empty();
        // The settings of buildos-updated can have changed, too.
        let hardware = Hardware::read(Path::new("/"));
        let configured = Configured::new(settings, valid, hardware);
        self.budgets = settings.budgets;
        self.suspension = Suspension {
            policy: settings.suspended,
            after: settings.suspended_after,
        };
        self.observer.clock_deadline = settings.clock_deadline;
        self.observer.disk_reserve = settings.disk_reserve;
        self.host.memory = configured.memory;
        self.units.apply(&configured).await?;
        self.configure_agents(configured);
        Ok(())
    }

    /// Adds, changes and removes agents. If the configuration has errors, no agent is
    /// removed.
    fn configure_agents(&mut self, configured: Configured) {
        let mut remembered = self.state_file.load().unwrap_or_else(|error| {
            tracing::warn!("{}", text::chain(&error));
            Default::default()
        });
        if self.agents.is_empty() && remembered.values().any(|agent| agent.disk_shortage) {
            self.host.disks = Shortage::begun();
        }
        if configured.valid {
            self.agents.retain(&configured.ids());
        }
        for (id, new) in configured.agents {
            if let Some(agent) = self.agents.get_mut(&id) {
                agent.requirements = new.requirements;
                agent.drain_method = new.drain_method;
                agent.interactive = new.interactive;
                continue;
            }
            let agent = Agent::new(
                new.requirements,
                new.drain_method,
                new.interactive,
                remembered.remove(&id).unwrap_or_default(),
                &self.host,
                self.units.supervise(&id),
            );
            self.agents.insert(id, agent);
        }
        self.disabled = configured.disabled;
    }

    async fn reload(&mut self, service: &mut Service<Settings>) -> Result<(), Error> {
        service.reload();
        self.configure(service).await?;
        service.ready();
        self.ready_delay = None;
        Ok(())
    }

    /// Handles reports until systemd has reported every unit.
    async fn wait_for_units(&mut self, reports: &mut mpsc::Receiver<Report>) {
        while !self.agents.all_seen() {
            let Some(Report { id, event }) = reports.recv().await else {
                return;
            };
            self.agents.handle(&id, event);
        }
    }

    /// Sends READY=1 of the first start when it is due.
    async fn end_ready_delay(&mut self, service: &mut Service<Settings>) -> Result<(), Error> {
        let states = self.agents.states();
        let delay = self.ready_delay.as_mut();
        if !delay.is_some_and(|delay| delay.is_over(states, Instant::now())) {
            return Ok(());
        }
        self.ready_delay = None;
        // systemd merges a reload request into the start of a unit that is not ready.
        if service.reread() {
            self.configure(service).await?;
            self.settle(service).await?;
        }
        service.ready();
        Ok(())
    }

    async fn carry_out(&mut self, call: MethodCall) -> Result<(), Error> {
        match call {
            MethodCall::Restart(id) => self.agents.handle(&id, Event::Restart),
            MethodCall::Drain(targets, budget) => {
                let budget = match budget {
                    Some(budget) => budget,
                    None if self.units.systemd.is_stopping().await => self.budgets.shutdown,
                    None => self.budgets.drain,
                };
                self.agents.handle_all(&targets, &Event::Drain(budget));
            }
            MethodCall::Resume(targets) => self.agents.handle_all(&targets, &Event::Resume),
        }
        Ok(())
    }

    /// Observes the host, starts agents whose requirements are met, saves their state and
    /// publishes it.
    async fn settle(&mut self, service: &mut Service<Settings>) -> Result<(), Error> {
        self.observer.observe(&mut self.host, &self.agents);
        self.agents.check(&self.host, self.budgets.drain);
        self.observe_machines();
        let instances = self.agents.instances();
        let remembered = instances.iter().map(|(&id, i)| (id, i.remember()));
        let saved = self.state_file.save(remembered);
        self.state_unsaved = messages::state_unsaved(saved, self.state_unsaved.take());
        let disabled: Vec<_> = self.disabled.iter().collect();
        let mut notes = match self.host.clock {
            Clock::GivenUp if !instances.is_empty() => vec!["the clock is not synchronised"],
            Clock::GivenUp | Clock::Awaited | Clock::Synchronised => Vec::new(),
        };
        notes.extend(self.state_unsaved.as_deref());
        let agents = instances.iter().map(|(&id, &instance)| (id, instance));
        let reason = summary(agents, &disabled, &notes);
        self.publisher
            .publish(&reason, &service.problems(), &instances)
            .await?;
        service.status(&reason);
        Ok(())
    }

    fn observe_machines(&mut self) {
        if self.machines_due().is_some_and(|due| due <= Instant::now()) {
            self.machines_observed = Instant::now();
            self.agents
                .observe_machines(Path::new("/"), self.suspension);
        }
    }

    /// Returns the time of the next observation of machines.
    fn machines_due(&self) -> Option<Instant> {
        let interval = self.agents.machines_interval()?;
        Some(self.machines_observed + interval)
    }

    /// Returns the time of the next [`Daemon::settle`] without an event.
    fn deadline(&self) -> Option<Instant> {
        let poll = self.observer.next_poll(&self.agents);
        let ready = self.ready_delay.as_ref().map(ReadyDelay::deadline);
        let deadlines = [
            self.agents.deadline(),
            self.machines_due(),
            poll.map(|after| Instant::now() + after),
            ready,
            self.state_unsaved
                .is_some()
                .then(|| Instant::now() + SAVE_RETRY),
        ];
        deadlines.into_iter().flatten().min()
    }
}
