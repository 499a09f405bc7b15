//! Talking to systemd: one task per agent follows its unit and carries out
//! what is wished for it.

use std::time::Duration;

use buildos_dbus_api::system::{
    JobRemoved, SYSTEMD_NAME, ServiceProxy, SystemdProxy, UnitProxy, unit_path,
};
use buildos_dbus_api::watch::{Snapshot, Watch, property_changes};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use zbus::proxy::CacheProperties;
use zbus::zvariant::{OwnedObjectPath, Type, as_value};
use zbus::{Connection, Message};

use crate::agent::drain::Way;
use crate::agent::id::Id;
use crate::lifecycle::instance::{Command, Event};
use crate::systemd::jobs::{Change, Jobs, Marks};
use crate::unit::exit::Exit;
use crate::unit::phase::{Phase, Unit};

/// How long a follower that met an error waits before it begins anew.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether an agent that drains has tasks.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// An agent is idle when this many looks in a row say so: between two programs
/// that a task runs there is a moment without any.
const IDLE_LOOKS: u32 = 2;
/// Changes of a unit that may wait while systemd is asked for something, or the daemon
/// is busy: some restarts' worth.
const CHANGES: usize = 64;

/// systemd's manager.
#[derive(Debug, Clone)]
pub struct Systemd {
    connection: Connection,
    manager: SystemdProxy<'static>,
}

/// systemd did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("systemd cannot {what}")]
pub struct SystemdError {
    what: String,
    #[source]
    source: zbus::Error,
}

fn cannot(what: impl Into<String>) -> impl FnOnce(zbus::Error) -> SystemdError {
    let what = what.into();
    |source| SystemdError { what, source }
}

impl Systemd {
    /// systemd on this bus.
    ///
    /// # Errors
    ///
    /// The bus refuses what a proxy needs.
    pub async fn new(connection: &Connection) -> Result<Self, SystemdError> {
        let manager = SystemdProxy::new(connection).await;
        Ok(Self {
            connection: connection.clone(),
            manager: manager.map_err(cannot("be called"))?,
        })
    }

    /// Reads unit files again if systemd has not read the latest ones of one of
    /// these units. One that it has not loaded yet is read now, without that.
    ///
    /// # Errors
    ///
    /// systemd does not answer.
    pub async fn reload(&self, units: impl Iterator<Item = String>) -> Result<(), SystemdError> {
        for name in units {
            let stale = async {
                let unit: UnitProxy<'_> = uncached(&self.connection, &name).await?;
                unit.need_daemon_reload().await
            };
            let what = format!("tell whether {name} is up to date");
            if stale.await.map_err(cannot(what))? {
                let reloaded = self.manager.reload().await;
                return reloaded.map_err(cannot("reload its units"));
            }
        }
        Ok(())
    }

    /// Whether the host goes down.
    ///
    /// # Errors
    ///
    /// systemd does not answer.
    pub async fn is_stopping(&self) -> Result<bool, SystemdError> {
        let state = self.manager.system_state().await;
        Ok(state.map_err(cannot("tell its state"))? == "stopping")
    }

    /// Stops an agent and forgets about it. Returns the job that does it, and
    /// does not wait for that; none if the agent is not known to systemd.
    ///
    /// # Errors
    ///
    /// systemd refuses or does not answer.
    pub async fn stop(&self, id: &Id) -> Result<Option<OwnedObjectPath>, SystemdError> {
        let unit = id.unit();
        let job = match stop(&self.manager, &unit).await {
            Ok(job) => Some(job),
            Err(zbus::Error::MethodError(name, ..))
                if name == "org.freedesktop.systemd1.NoSuchUnit" =>
            {
                None
            }
            Err(error) => return Err(cannot(format!("stop {unit}"))(error)),
        };
        if let Err(error) = self.manager.unref_unit(&unit).await {
            tracing::debug!(%error, unit, "the unit was not pinned");
        }
        Ok(job)
    }

    /// Follows the unit of an agent and reports what happens to it. `own` is a
    /// job that is not to be taken for somebody else's, from [`Systemd::stop`].
    #[must_use]
    pub fn follow(
        &self,
        id: &Id,
        own: Option<OwnedObjectPath>,
        reports: mpsc::Sender<Report>,
    ) -> Follower {
        let (commands, receiver) = watch::channel(None);
        let mut jobs = Jobs::default();
        if let Some(own) = own {
            jobs.add(own);
        }
        let follow = Follow {
            connection: self.connection.clone(),
            manager: self.manager.clone(),
            id: id.clone(),
            jobs,
            pinned: false,
            watch: None,
            commands: receiver,
            reports,
        };
        Follower {
            commands,
            task: tokio::spawn(follow.run()),
        }
    }
}

/// What happened to an agent's unit.
#[derive(Debug)]
pub struct Report {
    /// Whose.
    pub id: Id,
    /// What.
    pub event: Event,
}

/// The task that follows a unit; ends when this is dropped.
#[derive(Debug)]
pub struct Follower {
    commands: watch::Sender<Option<(Command, Way)>>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Has a command carried out, for an agent that is drained this way. One
    /// that has not been begun yet is replaced.
    pub fn command(&self, command: Command, way: Way) {
        self.commands.send_replace(Some((command, way)));
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Follow {
    connection: Connection,
    manager: SystemdProxy<'static>,
    id: Id,
    jobs: Jobs,
    /// Whether systemd keeps the unit for us, and so tells us of it.
    pinned: bool,
    watch: Option<Watching>,
    commands: watch::Receiver<Option<(Command, Way)>>,
    reports: mpsc::Sender<Report>,
}

/// Looking whether an agent has tasks.
struct Watching {
    interval: Interval,
    idle: u32,
}

impl Watching {
    fn new() -> Self {
        let mut interval = interval(IDLE_LOOK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, idle: 0 }
    }
}

impl Follow {
    async fn run(mut self) {
        while let Err(error) = self.until_error().await {
            tracing::warn!(%error, "cannot follow {}", self.id.unit());
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ends without an error when nobody listens any more.
    async fn until_error(&mut self) -> zbus::Result<()> {
        let unit = self.id.unit();
        self.jobs.missed();
        self.pin().await;
        // Of our own jobs systemd tells us without being asked, of others' not.
        let mut ended = self
            .manager
            .receive_job_removed_with_args(&[(2, &unit)])
            .await?;
        let path = unit_path(&unit);
        let mut changes =
            property_changes::<UnitProperties>(&self.connection, SYSTEMD_NAME, &path, CHANGES)
                .await?;
        let mut looks = Watch::new(&self.connection, SYSTEMD_NAME, &path).await?;
        loop {
            // What happened before what is to be done: somebody may not want it any more.
            // The end of the first two streams is that of the connection: see the third.
            let event = tokio::select! {
                biased;
                Some(job) = ended.next() => self.job_ended(&job)?,
                Some(change) = changes.next() => self.changed(&change?)?,
                look = looks.next() => match look {
                    Ok(Some(properties)) => self.seen(properties).await?,
                    Ok(None) => None,
                    // The daemon's own watches tell the daemon.
                    Err(_bus_lost) => return Ok(()),
                },
                changed = self.commands.changed() => match changed {
                    Ok(()) => self.carry_out().await,
                    Err(_closed) => return Ok(()),
                },
                () = tick(self.watch.as_mut()) => self.look_for_tasks().await?,
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

    /// Has systemd keep the unit. It forgets one that is down, with the way in which it
    /// ended, and says nothing of one that nobody keeps.
    async fn pin(&mut self) {
        if self.pinned {
            return;
        }
        let unit = self.id.unit();
        match self.manager.ref_unit(&unit).await {
            Ok(()) => self.pinned = true,
            // Of a masked one, for example, which cannot be started either.
            Err(error) => tracing::debug!(%error, unit, "the unit cannot be pinned"),
        }
    }

    async fn seen(&self, look: UnitProperties) -> zbus::Result<Option<Event>> {
        let Some(phase) = Phase::new(&look.active_state, &look.sub_state) else {
            return Ok(None);
        };
        // In the middle of a restart, for example. The end of the job is a change
        // that is seen as well.
        if phase == Phase::Down && look.job.0 != 0 {
            return Ok(None);
        }
        let never_up = look.state_change_timestamp_monotonic == 0;
        if phase == Phase::Down && never_up {
            return Ok(Some(Event::Seen(Unit::never_up())));
        }
        let service: ServiceProxy<'_> = uncached(&self.connection, &self.id.unit()).await?;
        let main_pid = service.main_pid().await?;
        // It has ended since: the next look comes with the signal of that.
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
            changed_usec: look.state_change_timestamp_monotonic,
            changed_realtime_usec: look.state_change_timestamp,
            main_pid,
            exit,
            restarts: service.n_restarts().await?,
        })))
    }

    /// What the end of a job of ours says beyond the state of the unit.
    fn job_ended(&self, signal: &JobRemoved) -> zbus::Result<Option<Event>> {
        let ended = signal.args()?;
        if !self.jobs.is_own(&ended.job) {
            return Ok(None);
        }
        Ok(match ended.result.as_str() {
            "done" => None,
            // By one that somebody else wanted more, or by a later job of ours.
            "canceled" if self.jobs.is_last(&ended.job) => Some(Event::StoppedByHand),
            "canceled" => None,
            "assert" => Some(Event::Failed(
                "an assertion of its unit does not hold".into(),
            )),
            "dependency" => Some(Event::Failed("a unit that it requires failed".into())),
            result => Some(Event::Failed(format!(
                "its start job ended with {result:?}"
            ))),
        })
    }

    /// What a job of somebody else says beyond the state of the unit.
    fn changed(&mut self, signal: &Message) -> zbus::Result<Option<Event>> {
        let (_, now, _): (String, UnitProperties, Vec<String>) = signal.body().deserialize()?;
        Ok(self.jobs.see(Change {
            job: (now.job.0 != 0).then_some(&now.job.1),
            active_state: &now.active_state,
            marks: Marks {
                changed_usec: now.state_change_timestamp_monotonic,
                tested_usec: now.condition_timestamp_monotonic,
            },
        }))
    }

    /// Whether the agent runs a task: then its unit has processes besides the
    /// main one.
    async fn look_for_tasks(&mut self) -> zbus::Result<Option<Event>> {
        let service: ServiceProxy<'_> = uncached(&self.connection, &self.id.unit()).await?;
        let main = service.main_pid().await?;
        let processes = self.manager.get_unit_processes(&self.id.unit()).await?;
        let tasks = processes.iter().filter(|(_, pid, _)| *pid != main).count();
        let Some(watch) = &mut self.watch else {
            return Ok(None);
        };
        watch.idle = if tasks == 0 { watch.idle + 1 } else { 0 };
        Ok((watch.idle >= IDLE_LOOKS).then_some(Event::Idle))
    }

    async fn carry_out(&mut self) -> Option<Event> {
        let unit = self.id.unit();
        let (command, way) = (*self.commands.borrow_and_update())?;
        self.watch = (way == Way::Idle && matches!(command, Command::Drain | Command::Watch))
            .then(Watching::new);
        self.pin().await;
        let job = match (command, way) {
            (Command::Start, _) => self.manager.start_unit(&unit, "replace").await,
            (Command::Restart, _) => self.manager.restart_unit(&unit, "replace").await,
            (Command::Stop, _) => stop(&self.manager, &unit).await,
            (Command::Drain, Way::Signal(signal)) => {
                let killed = self.manager.kill_unit(&unit, "main", signal.number());
                if let Err(error) = killed.await {
                    tracing::warn!(%error, "cannot tell {} that it is drained", self.id);
                }
                return None;
            }
            (Command::Drain, Way::Idle) | (Command::Watch | Command::Unwatch, _) => return None,
        };
        match job {
            Ok(job) => {
                self.jobs.add(job);
                None
            }
            // systemd's own sentence, without the name of the error.
            Err(zbus::Error::MethodError(_, Some(sentence), _)) => Some(Event::Failed(sentence)),
            Err(error) => Some(Event::Failed(error.to_string())),
        }
    }
}

/// Stops a unit. One that ended by itself would be called failed from then on, though
/// nobody wants to know any more: that is taken back first, while it still waits in
/// `auto-restart`.
async fn stop(manager: &SystemdProxy<'_>, unit: &str) -> zbus::Result<OwnedObjectPath> {
    if let Err(error) = manager.reset_failed_unit(unit).await {
        tracing::debug!(%error, unit, "the unit had not failed");
    }
    manager.stop_unit(unit, "replace").await
}

async fn tick(watch: Option<&mut Watching>) {
    match watch {
        Some(watch) => {
            watch.interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// A proxy for a unit that asks every time.
async fn uncached<'a, P>(connection: &Connection, unit: &str) -> zbus::Result<P>
where
    P: zbus::proxy::ProxyImpl<'a> + From<zbus::Proxy<'a>> + zbus::proxy::Defaults,
{
    P::builder(connection)
        .path(unit_path(unit))?
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

/// What tells that a unit is in another state than before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
struct UnitProperties {
    #[serde(with = "as_value")]
    active_state: String,
    #[serde(with = "as_value")]
    sub_state: String,
    /// Number and path of the job that waits or is carried out, 0 when there is none.
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
