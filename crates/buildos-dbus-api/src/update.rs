//! Changes a served interface, and signals the properties that differ.

use std::collections::HashMap;

use zbus::object_server::{Interface, InterfaceRef};
use zbus::zvariant::{OwnedValue, Value};
use zbus::{Connection, fdo};

/// Changes the value served at `path`, and emits one `PropertiesChanged` with the
/// properties that differ. Emits no signal if none differs.
///
/// # Errors
///
/// No interface of this type is served at `path`, or the bus is gone.
pub async fn update<I: Interface>(
    connection: &Connection,
    path: &str,
    change: impl FnOnce(&mut I),
) -> zbus::Result<()> {
    let served = connection.object_server().interface::<_, I>(path).await?;
    let before = properties(connection, &served).await?;
    change(&mut *served.get_mut().await);
    signal(connection, &served, &before).await
}

/// As [`update`], for an interface that shares its state: `change` does not need the lock that
/// zbus holds during a method.
///
/// # Errors
///
/// As [`update`].
pub async fn update_shared<I: Interface>(
    connection: &Connection,
    path: &str,
    change: impl FnOnce(),
) -> zbus::Result<()> {
    let served = connection.object_server().interface::<_, I>(path).await?;
    let before = properties(connection, &served).await?;
    change();
    signal(connection, &served, &before).await
}

/// Emits one signal with the properties that differ.
async fn signal<I: Interface>(
    connection: &Connection,
    served: &InterfaceRef<I>,
    before: &HashMap<String, OwnedValue>,
) -> zbus::Result<()> {
    let after = properties(connection, served).await?;
    let changed: HashMap<&str, Value<'_>> = after
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(value))
        .map(|(name, value)| (name.as_str(), (**value).try_clone()))
        .map(|(name, value)| Ok((name, value?)))
        .collect::<zbus::zvariant::Result<_>>()?;
    if changed.is_empty() {
        return Ok(());
    }
    let emitter = served.signal_emitter();
    fdo::Properties::properties_changed(emitter, I::name(), changed, (&[]).into()).await
}

async fn properties<I: Interface>(
    connection: &Connection,
    served: &InterfaceRef<I>,
) -> fdo::Result<HashMap<String, OwnedValue>> {
    let server = connection.object_server();
    served
        .get()
        .await
        .get_all(server, connection, None, served.signal_emitter())
        .await
}
