//! Reads and sets the host name through systemd-hostnamed
//! (org.freedesktop.hostname1(5)).
//!
//! A D-Bus call starts systemd-hostnamed, which exits when idle. Therefore the daemon
//! calls it only to change the name, and otherwise follows its signals.

use buildos_dbus_api::system::{HostnameProxy, HostnameState};
use zbus::Connection;
use zbus::proxy::CacheProperties;

use buildos_types::Hostname;

/// systemd-hostnamed did not set or return the name.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// It did not answer, or refused.
    #[error("systemd-hostnamed does not {request}")]
    Call {
        /// The request; completes "does not …".
        request: &'static str,
        #[allow(missing_docs)]
        #[source]
        source: zbus::Error,
    },
    /// It reported success without an effect.
    #[error("systemd-hostnamed accepted the name {0}, but the host has another name")]
    Ignored(Hostname),
}

/// Reads the host's names.
///
/// # Errors
///
/// systemd-hostnamed is not installed, or does not answer.
pub async fn read(connection: &Connection) -> Result<HostnameState, SystemError> {
    let failed = |source| SystemError::Call {
        request: "return the name",
        source,
    };
    let proxy = proxy(connection).await.map_err(failed)?;
    Ok(HostnameState {
        hostname: proxy.hostname().await.map_err(failed)?,
        static_hostname: proxy.static_hostname().await.map_err(failed)?,
    })
}

/// Sets the transient name, which applies while there is no static name. Writes nothing
/// to disk.
///
/// # Errors
///
/// As [`read`], or the daemon is not uid 0 and there is no polkit.
pub async fn set(connection: &Connection, name: &Hostname) -> Result<(), SystemError> {
    let failed = |source| SystemError::Call {
        request: "accept the name",
        source,
    };
    let proxy = proxy(connection).await.map_err(failed)?;
    proxy
        .set_hostname(name.as_str(), false)
        .await
        .map_err(failed)
}

async fn proxy(connection: &Connection) -> zbus::Result<HostnameProxy<'static>> {
    // The cache would subscribe to the signals a second time.
    HostnameProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
}
