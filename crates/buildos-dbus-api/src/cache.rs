//! Keeps properties of peers. `PropertiesChanged` has the new values, so a change costs the
//! peer no call.
//!
//! # Limits
//!
//! A signal that arrives while an object is read may be older than the answer. The value of
//! the answer returns with the signal that follows then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::timeout;
use zbus::names::OwnedUniqueName;
use zbus::zvariant::{self, OwnedValue, Value, serialized};
use zbus::{Connection, Message, fdo};

use crate::PEER_TIMEOUT;
use crate::snapshot::{NO_OWNER, PROPERTIES, Snapshot, read, timed_out};

type Properties = HashMap<String, OwnedValue>;

/// The properties of the objects that were read, see [`Snapshot::CACHED`].
#[derive(Debug, Clone)]
pub struct Cache {
    connection: Connection,
    /// By path and interface.
    objects: Arc<Mutex<HashMap<(String, String), Object>>>,
}

#[derive(Debug)]
enum Object {
    /// Its properties are being read. The values of the signals that arrived meanwhile,
    /// with their sender.
    Awaited(HashMap<String, (OwnedUniqueName, OwnedValue)>),
    Known(OwnedUniqueName, Properties),
}

impl Cache {
    /// Returns an empty cache. Pass it all `PropertiesChanged` and `NameOwnerChanged` of the
    /// peers if an object is read more than once.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
            objects: Arc::default(),
        }
    }

    /// Returns the connection of the cache.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// As [`read`]. Calls the peer only if the cache does not know the object.
    ///
    /// # Errors
    ///
    /// As [`read`].
    pub async fn read<S: Snapshot>(&self, peer: &str, path: &str) -> zbus::Result<Option<S>> {
        if !S::CACHED {
            return read(&self.connection, peer, path).await;
        }
        let key = (path.to_owned(), S::INTERFACE.to_owned());
        if let Some(Object::Known(_, properties)) = self.objects().get(&key) {
            return Ok(Some(typed(properties)?));
        }
        let awaited = Object::Awaited(HashMap::new());
        self.objects().insert(key.clone(), awaited);
        let answer = timeout(PEER_TIMEOUT, self.get_all::<S>(peer, path)).await;
        let answer = answer.unwrap_or_else(|_elapsed| Err(timed_out()))?;
        let Some((owner, properties)) = answer else {
            return Ok(None);
        };
        Ok(Some(typed(&self.complete(key, owner, properties))?))
    }

    /// Processes `PropertiesChanged` of an object.
    pub fn properties_changed(&self, signal: &Message) {
        let header = signal.header();
        let body = signal.body();
        let changes = body.deserialize::<(&str, HashMap<&str, Value<'_>>, Vec<&str>)>();
        let (Some(path), Some(sender), Ok((interface, changed, invalidated))) =
            (header.path(), header.sender(), changes)
        else {
            return;
        };
        let key = (path.to_string(), interface.to_owned());
        let mut objects = self.objects();
        let Some(object) = objects.get_mut(&key) else {
            return;
        };
        let is_complete = invalidated.is_empty()
            && changed.into_iter().all(|(name, value)| {
                let value = OwnedValue::try_from(value);
                value.is_ok_and(|value| {
                    object.change(sender.to_owned().into(), name.to_owned(), value);
                    true
                })
            });
        if !is_complete {
            objects.remove(&key);
        }
    }

    /// Processes `NameOwnerChanged` of a peer.
    pub fn owner_changed(&self, signal: &Message) {
        let body = signal.body();
        let Ok((peer, _, _)) = body.deserialize::<(&str, &str, &str)>() else {
            return;
        };
        // Interfaces have the bus name of their daemon as a prefix.
        self.objects()
            .retain(|(_, interface), _| !interface.starts_with(peer));
    }

    /// Stores the answer of a peer, with the changes that arrived meanwhile. Returns it.
    fn complete(
        &self,
        key: (String, String),
        owner: OwnedUniqueName,
        mut properties: Properties,
    ) -> Properties {
        let mut objects = self.objects();
        // The object is not awaited any more if its owner changed meanwhile, or a property
        // that the signal does not contain.
        if let Some(Object::Awaited(changes)) = objects.remove(&key) {
            let changes = changes.into_iter();
            let changes = changes.filter(|(_, (sender, _))| *sender == owner);
            properties.extend(changes.map(|(name, (_, value))| (name, value)));
            objects.insert(key, Object::Known(owner, properties.clone()));
        }
        properties
    }

    async fn get_all<S: Snapshot>(
        &self,
        peer: &str,
        path: &str,
    ) -> zbus::Result<Option<(OwnedUniqueName, Properties)>> {
        let bus = fdo::DBusProxy::new(&self.connection).await?;
        let owner = match bus.get_name_owner(peer.try_into()?).await {
            Err(fdo::Error::NameHasNoOwner(_)) => return Ok(None),
            owner => owner?,
        };
        let destination = Some(owner.as_str());
        let answer = self.connection.call_method(
            destination,
            path,
            Some(PROPERTIES),
            "GetAll",
            &S::INTERFACE,
        );
        match answer.await {
            Err(zbus::Error::MethodError(name, ..)) if NO_OWNER.contains(&name.as_str()) => {
                Ok(None)
            }
            answer => Ok(Some((owner, answer?.body().deserialize()?))),
        }
    }

    fn objects(&self) -> MutexGuard<'_, HashMap<(String, String), Object>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Object {
    fn change(&mut self, sender: OwnedUniqueName, name: String, value: OwnedValue) {
        match self {
            Self::Awaited(changes) => {
                changes.insert(name, (sender, value));
            }
            Self::Known(owner, properties) => {
                // The last signals of a former owner can follow its end.
                if *owner == sender {
                    properties.insert(name, value);
                }
            }
        }
    }
}

fn typed<S: Snapshot>(properties: &Properties) -> zvariant::Result<S> {
    let context = serialized::Context::new_dbus(zvariant::NATIVE_ENDIAN, 0);
    let data = zvariant::to_bytes(context, properties)?;
    Ok(data.deserialize()?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> OwnedValue {
        OwnedValue::try_from(Value::from(text)).unwrap()
    }

    fn owner(name: &str) -> OwnedUniqueName {
        OwnedUniqueName::try_from(name).unwrap()
    }

    #[test]
    fn change_by_former_owner_is_ignored() {
        let properties = Properties::from([("State".to_owned(), value("online"))]);
        let mut object = Object::Known(owner(":1.2"), properties);
        object.change(owner(":1.1"), "State".to_owned(), value("acquiring"));
        let Object::Known(_, properties) = &object else {
            panic!("{object:?}");
        };
        assert_eq!(properties["State"], value("online"));
        object.change(owner(":1.2"), "State".to_owned(), value("no-carrier"));
        let Object::Known(_, properties) = &object else {
            panic!("{object:?}");
        };
        assert_eq!(properties["State"], value("no-carrier"));
    }

    #[test]
    fn typed_reads_dictionary() {
        let properties = Properties::from([
            ("State".to_owned(), value("online")),
            ("Later".to_owned(), OwnedValue::from(7_u8)),
        ]);
        let network: crate::network1::Network = typed(&properties).unwrap();
        assert_eq!(network.state, "online");
    }
}
