//! Requests a name of a private message bus.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test fails by panicking.

#[path = "support/bus.rs"]
mod bus;

use buildos_dbus_api::network1::NAME;
use buildos_dbus_api::request_name;
use bus::Bus;

#[tokio::test]
async fn name_of_another_connection_is_refused() {
    let bus = Bus::new();
    let first = bus.connect().await;
    let second = bus.connect().await;
    request_name(&first, NAME).await.unwrap();
    request_name(&first, NAME).await.unwrap();
    let refused = request_name(&second, NAME).await;
    assert!(matches!(refused, Err(zbus::Error::NameTaken)));
}
