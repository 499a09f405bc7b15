//! Calls systemd's manager: reload, stop, system state.

use std::io;

use buildos_dbus_api::METHOD_TIMEOUT;
use buildos_dbus_api::system::{SystemdProxy, UnitProxy, unit_path};
use zbus::Connection;
use zbus::proxy::CacheProperties;
use zbus::zvariant::OwnedObjectPath;

use crate::agent::id::Id;

/// Proxy of systemd's manager.
#[derive(Debug, Clone)]
pub struct Systemd {
    pub(super) connection: Connection,
    pub(super) manager: SystemdProxy<'static>,
}

/// Error of a call to systemd.
#[derive(Debug, thiserror::Error)]
#[error("systemd cannot {operation}")]
pub struct SystemdError {
    operation: String,
    #[source]
    source: zbus::Error,
}

fn cannot(operation: impl Into<String>) -> impl FnOnce(zbus::Error) -> SystemdError {
    let operation = operation.into();
    |source| SystemdError { operation, source }
}

impl Systemd {
    /// Creates a proxy on this bus.
    ///
    /// # Errors
    ///
    /// The bus refuses the match rules of the proxy.
    pub async fn new(connection: &Connection) -> Result<Self, SystemdError> {
        let manager = SystemdProxy::new(connection).await;
        Ok(Self {
            connection: connection.clone(),
            manager: manager.map_err(cannot("be called"))?,
        })
    }

    /// Reloads unit files if one of these units needs it. systemd reads the files of a unit
    /// that it has not loaded yet without a reload.
    ///
    /// systemd answers no call during a reload, which has no limit of time: on a loaded host it
    /// takes longer than a method call may. systemd carries out later calls when it has ended.
    ///
    /// # Errors
    ///
    /// systemd does not answer before the reload, or refuses it.
    pub async fn reload(&self, units: impl Iterator<Item = String>) -> Result<(), SystemdError> {
        for name in units {
            let stale = async {
                let unit: UnitProxy<'_> = uncached(&self.connection, &name).await?;
                unit.need_daemon_reload().await
            };
            let stale = match stale.await {
                // systemd reloads now. Whether it has read this file is not known.
                Err(error) if is_timeout(&error) => true,
                stale => stale.map_err(cannot(format!("report whether {name} needs a reload")))?,
            };
            if stale {
                return match self.manager.reload().await {
                    Err(error) if is_timeout(&error) => {
                        let seconds = METHOD_TIMEOUT.as_secs();
                        tracing::info!("systemd still reloads its units after {seconds} s");
                        Ok(())
                    }
                    reloaded => reloaded.map_err(cannot("reload its units")),
                };
            }
        }
        Ok(())
    }

    /// Returns true if the host is shutting down. It is not while systemd does not answer, as
    /// during a reload.
    pub async fn is_stopping(&self) -> bool {
        let state = self.manager.system_state().await;
        state.is_ok_and(|state| state == "stopping")
    }

    /// Stops the unit of an agent that is no longer configured, and releases it. Returns the
    /// stop job without waiting for its end, or [`None`] if systemd does not know the unit.
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
            tracing::debug!(%error, unit, "the unit was not referenced");
        }
        Ok(job)
    }
}

/// Returns true if a call has reached [`METHOD_TIMEOUT`].
fn is_timeout(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::InputOutput(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// Stops a unit. Resets its failure first, while it still waits in `auto-restart`:
/// otherwise systemd would show it as failed from then on.
pub(super) async fn stop(manager: &SystemdProxy<'_>, unit: &str) -> zbus::Result<OwnedObjectPath> {
    if let Err(error) = manager.reset_failed_unit(unit).await {
        tracing::debug!(%error, unit, "the unit had not failed");
    }
    manager.stop_unit(unit, "replace").await
}

/// Creates a proxy of a unit that reads properties at each call.
pub(super) async fn uncached<'a, P>(connection: &Connection, unit: &str) -> zbus::Result<P>
where
    P: zbus::proxy::ProxyImpl<'a> + From<zbus::Proxy<'a>> + zbus::proxy::Defaults,
{
    P::builder(connection)
        .path(unit_path(unit))?
        .cache_properties(CacheProperties::No)
        .build()
        .await
}
