//! `buildosctl renew`: asks netd to extend the lease.

use buildos_dbus_api::network1;
use zbus::Connection;

use super::call;

/// Asks netd to extend the lease now.
pub(crate) async fn renew(bus: &Connection) -> Result<(), String> {
    let message = |error: zbus::Error| call::error_message("buildos-netd", &error);
    let netd = network1::ManagerProxy::new(bus).await.map_err(message)?;
    netd.renew().await.map_err(message)
}
