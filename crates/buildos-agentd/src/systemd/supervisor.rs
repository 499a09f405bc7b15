//! Supervises the unit of one agent: reports its changes and carries out commands.

use std::collections::BTreeSet;
use std::time::Duration;

use buildos_dbus_api::system::{JobRemoved, SYSTEMD_NAME, ServiceProxy, SystemdProxy, unit_path};
use buildos_dbus_api::watch::{Snapshot, Watch, property_changes};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use zbus::zvariant::{OwnedObjectPath, Type, as_value};
use zbus::{Connection, Message};

use super::jobs::{Change, Jobs, Marks};
use super::manager::{Systemd, stop, uncached};
use crate::agent::drain::DrainMethod;
use crate::agent::id::Id;
use crate::lifecycle::instance::Event;
use crate::lifecycle::table::Command;
use crate::unit::exit::Exit;
use crate::unit::phase::{Phase, Unit};

/// Delay before a failed supervisor restarts.
const RETRY: Duration = Duration::from_secs(5);
/// Interval between checks for tasks while an agent drains.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Number of consecutive checks without tasks after which an agent is idle. Between two
/// programs of one task, the unit has no process for a moment.
const IDLE_CHECKS: u32 = 2;
/// Queue of property changes while systemd or the daemon is busy: enough for several
/// restarts.
const CHANGE_QUEUE: usize = 64;

/// Report of a supervisor.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Report {
    pub id: Id,
    pub event: Event,
}

/// Handle of a supervisor task, which ends when the handle is dropped.
#[derive(Debug)]
pub struct SupervisorHandle {
    commands: watch::Sender<Option<(Command, DrainMethod)>>,
    /// Processes that a drain does not wait for.
    ignored: watch::Sender<BTreeSet<u32>>,
    task: JoinHandle<()>,
}

impl SupervisorHandle {
    /// Starts a supervisor. `stop_job`: job that [`Systemd::stop`] queued before the agent
    /// was configured again. It is not a stop by an operator.
    #[must_use]
    pub fn spawn(
        systemd: &Systemd,
        id: &Id,
        stop_job: Option<OwnedObjectPath>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let (commands, receiver) = watch::channel(None);
        let (ignored, ignored_receiver) = watch::channel(BTreeSet::new());
        let mut jobs = Jobs::default();
        if let Some(job) = stop_job {
            jobs.add(job);
        }
        let supervisor = Supervisor {
            connection: systemd.connection.clone(),
            manager: systemd.manager.clone(),
            id: id.clone(),
            jobs,
            referenced: false,
            idle_poll: None,
            ignored: ignored_receiver,
            commands: receiver,
            reports,
        };
        Self {
            commands,
            ignored,
            task: tokio::spawn(supervisor.run()),
        }
    }

    /// Requests a command. It replaces a command that was not begun yet.
    pub fn command(&self, command: Command, method: DrainMethod) {
        self.commands.send_replace(Some((command, method)));
    }

    /// Sets the processes that a drain does not wait for.
    pub fn ignore(&self, processes: BTreeSet<u32>) {
        self.ignored.send_replace(processes);
    }
}

impl Drop for SupervisorHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Supervisor {
    connection: Connection,
    manager: SystemdProxy<'static>,
    id: Id,
    jobs: Jobs,
    /// True if systemd keeps the unit loaded for agentd (`RefUnit`).
    referenced: bool,
    /// Present while the agent drains with [`DrainMethod::Idle`].
    idle_poll: Option<IdlePoll>,
    ignored: watch::Receiver<BTreeSet<u32>>,
    commands: watch::Receiver<Option<(Command, DrainMethod)>>,
    reports: mpsc::Sender<Report>,
}

/// Periodic check whether an agent runs tasks.
struct IdlePoll {
    interval: Interval,
    /// Checks in a row without tasks.
    idle: u32,
}

impl IdlePoll {
    fn new() -> Self {
        let mut interval = interval(IDLE_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, idle: 0 }
    }
}

impl Supervisor {
    async fn run(mut self) {
        while let Err(error) = self.until_error().await {
            tracing::warn!(%error, "cannot supervise {}", self.id.unit());
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Supervises the unit. Returns `Ok` when the daemon or the bus has ended.
    async fn until_error(&mut self) -> zbus::Result<()> {
        let unit = self.id.unit();
        self.jobs.reset();
        self.reference().await;
        // systemd sends JobRemoved for the jobs of a client to that client without
        // Subscribe(), but not for the jobs of others.
        let mut removed_jobs = self
            .manager
            .receive_job_removed_with_args(&[(2, &unit)])
            .await?;
        let path = unit_path(&unit);
        let mut changes =
            property_changes::<UnitProperties>(&self.connection, SYSTEMD_NAME, &path, CHANGE_QUEUE)
                .await?;
        let mut snapshots = Watch::new(&self.connection, SYSTEMD_NAME, &path).await?;
        loop {
            // Reports come before commands: a report may make a command obsolete.
            // All three streams end with the connection; the third reports it.
            let event = tokio::select! {
                biased;
                Some(job) = removed_jobs.next() => self.own_job_ended(&job)?,
                Some(change) = changes.next() => self.unit_changed(&change?)?,
                snapshot = snapshots.next() => match snapshot {
                    Ok(Some(properties)) => self.unit_seen(properties).await?,
                    Ok(None) => None,
                    // The watches of the daemon report the loss.
                    Err(_bus_lost) => return Ok(()),
                },
                changed = self.commands.changed() => match changed {
                    Ok(()) => self.carry_out().await,
                    Err(_closed) => return Ok(()),
                },
                () = tick(self.idle_poll.as_mut()) => self.check_idle().await?,
            };
            let Some(event) = event else { continue };
            let report = Report {
                id: self.id.clone(),
                event,
            };
            if self.reports.send(report).await.is_err() {
                return Ok(());
            }
        }
    }

    /// References the unit. systemd unloads an inactive unit that has no reference, together
    /// with its exit status, and emits no signals for it.
    async fn reference(&mut self) {
        if self.referenced {
            return;
        }
        let unit = self.id.unit();
        match self.manager.ref_unit(&unit).await {
            Ok(()) => self.referenced = true,
            // A masked unit, for example, which cannot be started either.
            Err(error) => tracing::debug!(%error, unit, "the unit cannot be referenced"),
        }
    }

    async fn unit_seen(&self, properties: UnitProperties) -> zbus::Result<Option<Event>> {
        let Some(phase) = Phase::new(&properties.active_state, &properties.sub_state) else {
            return Ok(None);
        };
        // A restart, for example, passes through this state. The end of its job changes
        // the properties again.
        if phase == Phase::Down && properties.job.0 != 0 {
            return Ok(None);
        }
        let never_started = properties.state_change_timestamp_monotonic == 0;
        if phase == Phase::Down && never_started {
            return Ok(Some(Event::Seen(Unit::never_started())));
        }
        let service: ServiceProxy<'_> = uncached(&self.connection, &self.id.unit()).await?;
        let main_pid = service.main_pid().await?;
        // The process has just ended. The signal of that change triggers the next snapshot.
        if phase == Phase::Running && main_pid == 0 {
            return Ok(None);
        }
        let exit = match phase {
            Phase::Down | Phase::Ended => Exit::new(
                service.exec_main_code().await?,
                service.exec_main_status().await?,
                &service.result().await?,
            ),
            Phase::Starting | Phase::Running | Phase::Stopping => None,
        };
        Ok(Some(Event::Seen(Unit {
            phase,
            changed_usec: properties.state_change_timestamp_monotonic,
            changed_realtime_usec: properties.state_change_timestamp,
            main_pid,
            exit,
            restarts: service.n_restarts().await?,
        })))
    }

    /// Interprets the end of a job that agentd requested.
    fn own_job_ended(&self, signal: &JobRemoved) -> zbus::Result<Option<Event>> {
        let ended = signal.args()?;
        if !self.jobs.is_own(&ended.job) {
            return Ok(None);
        }
        Ok(match ended.result.as_str() {
            "done" => None,
            // A job of another client replaced it, or a later job of agentd.
            "canceled" if self.jobs.is_last(&ended.job) => Some(Event::StoppedByHand),
            "canceled" => None,
            "assert" => Some(Event::Failed("an assertion of its unit failed".into())),
            "dependency" => Some(Event::Failed("a unit that it requires failed".into())),
            result => Some(Event::Failed(format!(
                "its start job ended with {result:?}"
            ))),
        })
    }

    /// Interprets a change of the unit that a job of another client may have caused.
    fn unit_changed(&mut self, signal: &Message) -> zbus::Result<Option<Event>> {
        let (_, now, _): (String, UnitProperties, Vec<String>) = signal.body().deserialize()?;
        Ok(self.jobs.update(Change {
            job: (now.job.0 != 0).then_some(&now.job.1),
            active_state: &now.active_state,
            marks: Marks {
                changed_usec: now.state_change_timestamp_monotonic,
                conditions_usec: now.condition_timestamp_monotonic,
            },
        }))
    }

    /// Checks whether the agent runs tasks: processes of the unit besides the main process, and
    /// those of suspended machines that the drain ignores.
    async fn check_idle(&mut self) -> zbus::Result<Option<Event>> {
        let service: ServiceProxy<'_> = uncached(&self.connection, &self.id.unit()).await?;
        let main = service.main_pid().await?;
        let processes = self.manager.get_unit_processes(&self.id.unit()).await?;
        let ignored = self.ignored.borrow().clone();
        let is_task = |pid: &u32| *pid != main && !ignored.contains(pid);
        let tasks = processes.iter().filter(|(_, pid, _)| is_task(pid)).count();
        let Some(poll) = &mut self.idle_poll else {
            return Ok(None);
        };
        poll.idle = if tasks == 0 { poll.idle + 1 } else { 0 };
        Ok((poll.idle >= IDLE_CHECKS).then_some(Event::Idle))
    }

    async fn carry_out(&mut self) -> Option<Event> {
        let unit = self.id.unit();
        let (command, method) = (*self.commands.borrow_and_update())?;
        let drains = matches!(command, Command::Drain | Command::Watch);
        self.idle_poll = (method == DrainMethod::Idle && drains).then(IdlePoll::new);
        self.reference().await;
        let job = match (command, method) {
            (Command::Start, _) => self.manager.start_unit(&unit, "replace").await,
            (Command::Restart, _) => self.manager.restart_unit(&unit, "replace").await,
            (Command::Stop, _) => stop(&self.manager, &unit).await,
            (Command::Drain, DrainMethod::Signal(signal)) => {
                let killed = self.manager.kill_unit(&unit, "main", signal.number());
                if let Err(error) = killed.await {
                    tracing::warn!(%error, "cannot send the drain signal to {}", self.id);
                }
                return None;
            }
            (Command::Drain, DrainMethod::Idle) | (Command::Watch | Command::Unwatch, _) => {
                return None;
            }
        };
        match job {
            Ok(job) => {
                self.jobs.add(job);
                None
            }
            // The text of systemd without the name of the D-Bus error.
            Err(zbus::Error::MethodError(_, Some(text), _)) => Some(Event::Failed(text)),
            Err(error) => Some(Event::Failed(error.to_string())),
        }
    }
}

async fn tick(poll: Option<&mut IdlePoll>) {
    match poll {
        Some(poll) => {
            poll.interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Properties whose change means a new state of the unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
struct UnitProperties {
    #[serde(with = "as_value")]
    active_state: String,
    #[serde(with = "as_value")]
    sub_state: String,
    /// Number and path of the queued or running job; number 0 without one.
    #[serde(with = "as_value")]
    job: (u32, OwnedObjectPath),
    #[serde(with = "as_value")]
    state_change_timestamp: u64,
    #[serde(with = "as_value")]
    state_change_timestamp_monotonic: u64,
    #[serde(with = "as_value")]
    condition_timestamp_monotonic: u64,
}

impl Snapshot for UnitProperties {
    const INTERFACE: &'static str = "org.freedesktop.systemd1.Unit";
}
