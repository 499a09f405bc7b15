//! Declares the parts of systemd's interfaces that buildos uses
//! (org.freedesktop.systemd1(5), org.freedesktop.hostname1(5)).

#![allow(missing_docs)] // zbus generates public items for signals that cannot be documented here.

use serde::Deserialize;
use tokio::time::timeout;
use zbus::zvariant::{OwnedObjectPath, Type, as_value};

use crate::watch::{Snapshot, Watch};
use crate::{PEER_TIMEOUT, path};

/// Bus name of systemd's manager.
pub const SYSTEMD_NAME: &str = "org.freedesktop.systemd1";
/// Parent of systemd's unit objects.
const UNIT_PREFIX: &str = "/org/freedesktop/systemd1/unit";

/// systemd's manager.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
pub trait Systemd {
    /// Queues a start job; `mode` is normally `replace`.
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Queues a stop job.
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Queues a restart job.
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Sends a signal to processes of a unit; `whom` is `main`, `control` or `all`.
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    /// `(control group, process id, command line)` of every process in the
    /// control group of a unit and below it.
    fn get_unit_processes(&self, name: &str) -> zbus::Result<Vec<(String, u32, String)>>;
    /// `initializing`, `running`, `degraded`, `stopping` …
    #[zbus(property(emits_changed_signal = "false"))]
    fn system_state(&self) -> zbus::Result<String>;
    /// Clears the failed state of a unit.
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    /// Keeps a unit loaded, and with it the result of its last run, while the caller is
    /// on the bus.
    fn ref_unit(&self, name: &str) -> zbus::Result<()>;
    /// Undoes one `RefUnit`.
    fn unref_unit(&self, name: &str) -> zbus::Result<()>;
    /// Reads all unit files again (`systemctl daemon-reload`).
    fn reload(&self) -> zbus::Result<()>;
    /// `(name, description, load, active, sub, following, object, job id, job type, job)`
    /// of each of these units. systemd loads units that are not loaded.
    #[allow(clippy::type_complexity)] // The shape is systemd's.
    #[zbus(no_autostart)] // Early in the boot systemd is not yet on the bus.
    fn list_units_by_names(
        &self,
        names: &[&str],
    ) -> zbus::Result<
        Vec<(
            String,
            String,
            String,
            String,
            String,
            String,
            OwnedObjectPath,
            u32,
            String,
            OwnedObjectPath,
        )>,
    >;
    /// A job has left the queue; `result` is `done`, `failed`, `canceled` …
    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

/// A unit.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1",
    gen_blocking = false
)]
pub trait Unit {
    /// True if the unit's files changed since systemd read them.
    #[zbus(property)]
    fn need_daemon_reload(&self) -> zbus::Result<bool>;
    /// 128 bits that identify the present or last run, or nothing.
    #[zbus(property, name = "InvocationID")]
    fn invocation_id(&self) -> zbus::Result<Vec<u8>>;
    /// Time when the unit last left the state `inactive`, in microseconds since 1970.
    #[zbus(property)]
    fn inactive_exit_timestamp(&self) -> zbus::Result<u64>;
    /// Number and object of the job that waits or runs, or 0 and `/`.
    #[zbus(property)]
    fn job(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
}

/// A job on a unit.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Job",
    default_service = "org.freedesktop.systemd1",
    gen_blocking = false
)]
pub trait Job {
    /// `start`, `stop`, `restart`, `reload` …
    #[zbus(property)]
    fn job_type(&self) -> zbus::Result<String>;
}

/// A unit of type service.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Service",
    default_service = "org.freedesktop.systemd1",
    gen_blocking = false
)]
pub trait Service {
    /// Process id of the main process, or 0.
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    /// `success`, `exit-code`, `signal`, `watchdog`, `timeout` …
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
    /// `CLD_EXITED` (1), `CLD_KILLED` (2), `CLD_DUMPED` (3) of the last main process.
    #[zbus(property)]
    fn exec_main_code(&self) -> zbus::Result<i32>;
    /// Exit status or signal of the last main process.
    #[zbus(property)]
    fn exec_main_status(&self) -> zbus::Result<i32>;
    /// Commands: path, arguments, whether failures are ignored, start and end
    /// (CLOCK_REALTIME and CLOCK_MONOTONIC each), process, code, status.
    #[allow(clippy::type_complexity)] // The shape is systemd's.
    #[zbus(property(emits_changed_signal = "false"))]
    fn exec_start(
        &self,
    ) -> zbus::Result<Vec<(String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32)>>;
    /// Most RAM of the control group since its start, in bytes, or UINT64_MAX.
    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_peak(&self) -> zbus::Result<u64>;
    /// User of the processes, or (uid_t)-1.
    #[zbus(property, name = "UID")]
    fn uid(&self) -> zbus::Result<u32>;
    /// Number of automatic restarts since the last start by other means.
    #[zbus(property, name = "NRestarts")]
    fn n_restarts(&self) -> zbus::Result<u32>;
}

/// systemd-hostnamed.
#[zbus::proxy(
    interface = "org.freedesktop.hostname1",
    default_service = "org.freedesktop.hostname1",
    default_path = "/org/freedesktop/hostname1",
    gen_blocking = false
)]
pub trait Hostname {
    /// Sets the transient name. Has no effect, and succeeds, while a static name exists.
    fn set_hostname(&self, name: &str, interactive: bool) -> zbus::Result<()>;
    /// The active name.
    #[zbus(property)]
    fn hostname(&self) -> zbus::Result<String>;
    /// The name in `/etc/hostname`, or empty.
    #[zbus(property)]
    fn static_hostname(&self) -> zbus::Result<String>;
}

/// State of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitState {
    /// `active`, `inactive`, `failed`, `activating`, `deactivating`, `reloading`.
    pub active_state: String,
    /// `loaded`, `not-found`, `masked`, `error` …
    pub load_state: String,
}

/// Returns the state of a unit such as `buildos-dnsmasq.service`, or [`None`] if systemd
/// does not answer. Needs no privilege.
///
/// `GetAll` on the unit would cost more: systemd then searches for all files that the
/// unit may have.
pub async fn unit_state(connection: &zbus::Connection, name: &str) -> Option<UnitState> {
    match timeout(PEER_TIMEOUT, list(connection, name)).await {
        Ok(Ok(state)) => state,
        Ok(Err(error)) => {
            tracing::debug!(%error, unit = name, "cannot read the unit's state");
            None
        }
        Err(_elapsed) => {
            tracing::debug!(unit = name, "systemd does not answer");
            None
        }
    }
}

async fn list(connection: &zbus::Connection, name: &str) -> zbus::Result<Option<UnitState>> {
    let units = SystemdProxy::new(connection).await?;
    let mut units = units.list_units_by_names(&[name]).await?;
    Ok(units
        .pop()
        .map(|(_, _, load_state, active_state, ..)| UnitState {
            active_state,
            load_state,
        }))
}

/// Returns the type of the job that is queued for a unit: `stop`, `restart` …
///
/// A service that receives SIGTERM calls it to distinguish a stop from a restart.
///
/// # Errors
///
/// systemd does not answer.
pub async fn pending_job(
    connection: &zbus::Connection,
    unit: &str,
) -> zbus::Result<Option<String>> {
    let unit = UnitProxy::new(connection, unit_path(unit)).await?;
    let (number, path) = unit.job().await?;
    if number == 0 {
        return Ok(None);
    }
    let job = JobProxy::new(connection, path).await?;
    job.job_type().await.map(Some)
}

/// Names of the host, read from systemd-hostnamed in one call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
pub struct HostnameState {
    /// The active name.
    #[serde(with = "as_value")]
    pub hostname: String,
    /// The name in `/etc/hostname`, or empty.
    #[serde(with = "as_value")]
    pub static_hostname: String,
}

impl Snapshot for HostnameState {
    const INTERFACE: &'static str = "org.freedesktop.hostname1";
}

/// Follows systemd-hostnamed, which exits when idle.
///
/// # Errors
///
/// As [`Watch::new`].
pub async fn watch_hostname(connection: &zbus::Connection) -> zbus::Result<Watch<HostnameState>> {
    Watch::new(
        connection,
        "org.freedesktop.hostname1",
        "/org/freedesktop/hostname1",
    )
    .await
}

/// Returns the path of a unit's object, loaded or not.
#[must_use]
pub fn unit_path(name: &str) -> String {
    format!("{UNIT_PREFIX}/{}", path::element(name))
}
