//! The name as systemd-hostnamed keeps it (org.freedesktop.hostname1(5)).
//!
//! systemd-hostnamed starts when it is asked and ends when it is idle. So it
//! is asked only when something is to be done, and between that its signals
//! are listened to.

use buildos_dbus_api::system::{HostnameProxy, HostnameState};
use zbus::Connection;
use zbus::proxy::CacheProperties;

use buildos_types::Hostname;

/// systemd-hostnamed did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// It did not answer, or refused.
    #[error("systemd-hostnamed does not {what}")]
    Call {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        #[source]
        source: zbus::Error,
    },
    /// It agreed and did nothing.
    #[error("systemd-hostnamed took the name {0}, but the host has another one")]
    Ignored(Hostname),
}

/// The names in force.
///
/// # Errors
///
/// systemd-hostnamed is not installed, or does not answer.
pub async fn read(connection: &Connection) -> Result<HostnameState, SystemError> {
    let failed = |source| SystemError::Call {
        what: "tell the name",
        source,
    };
    let proxy = proxy(connection).await.map_err(failed)?;
    Ok(HostnameState {
        hostname: proxy.hostname().await.map_err(failed)?,
        static_hostname: proxy.static_hostname().await.map_err(failed)?,
    })
}

/// Sets the transient name, which is in force while there is no static one.
/// Nothing is written to disk.
///
/// # Errors
///
/// As [`read`], or we are not uid 0 and there is no polkit.
pub async fn set(connection: &Connection, name: &Hostname) -> Result<(), SystemError> {
    let failed = |source| SystemError::Call {
        what: "take the name",
        source,
    };
    let proxy = proxy(connection).await.map_err(failed)?;
    proxy
        .set_hostname(name.as_str(), false)
        .await
        .map_err(failed)
}

async fn proxy(connection: &Connection) -> zbus::Result<HostnameProxy<'static>> {
    // A cache would listen for signals a second time.
    HostnameProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
}
