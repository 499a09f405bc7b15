//! Follows a peer on a private message bus.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test fails by panicking.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[path = "support/bus.rs"]
mod bus;

use buildos_dbus_api::network1::{self, Network};
use buildos_dbus_api::request_name;
use buildos_dbus_api::watch::{BusLost, Watch};
use bus::Bus;
use zbus::Connection;

/// A netd with two properties, one of a later version.
#[derive(Default)]
struct Netd {
    uplink: String,
    /// Number of readings.
    readings: AtomicUsize,
}

#[zbus::interface(name = "org.build2.buildos.network1.Manager")]
impl Netd {
    #[zbus(property)]
    fn uplink(&self) -> &str {
        self.readings.fetch_add(1, Ordering::Relaxed);
        &self.uplink
    }

    #[zbus(property)]
    fn moon_phase(&self) -> (u8, Vec<f64>) {
        (3, vec![0.5])
    }
}

async fn start_netd(bus: &Bus, uplink: &str) -> Connection {
    let connection = bus.connect().await;
    let netd = Netd {
        uplink: uplink.to_owned(),
        ..Netd::default()
    };
    connection
        .object_server()
        .at(network1::PATH, netd)
        .await
        .unwrap();
    request_name(&connection, network1::NAME).await.unwrap();
    connection
}

async fn change(netd: &Connection, uplink: &str) {
    let interface = netd
        .object_server()
        .interface::<_, Netd>(network1::PATH)
        .await
        .unwrap();
    let mut state = interface.get_mut().await;
    state.uplink = uplink.to_owned();
    state
        .uplink_changed(interface.signal_emitter())
        .await
        .unwrap();
}

async fn change_moon(netd: &Connection) {
    let served = netd.object_server().interface::<_, Netd>(network1::PATH);
    let interface = served.await.unwrap();
    let state = interface.get().await;
    let emitter = interface.signal_emitter();
    state.moon_phase_changed(emitter).await.unwrap();
}

async fn next(watch: &mut Watch<Network>) -> Result<Option<Network>, BusLost> {
    tokio::time::timeout(Duration::from_secs(20), watch.next())
        .await
        .expect("no snapshot arrived")
}

fn uplink(name: &str) -> Option<Network> {
    Some(Network {
        uplink: name.to_owned(),
        ..Network::default()
    })
}

#[tokio::test]
async fn watch_follows_peer_across_its_restart() {
    let bus = Bus::new();
    let connection = bus.connect().await;
    let mut watch = network1::watch(&connection).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), None);

    let netd = start_netd(&bus, "eth0").await;
    assert_eq!(next(&mut watch).await.unwrap(), uplink("eth0"));
    change(&netd, "eth1").await;
    assert_eq!(next(&mut watch).await.unwrap(), uplink("eth1"));

    netd.close().await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), None);
    let _netd = start_netd(&bus, "eth1").await;
    assert_eq!(next(&mut watch).await.unwrap(), uplink("eth1"));
}

#[tokio::test]
async fn change_is_read_from_its_signal() {
    let bus = Bus::new();
    let connection = bus.connect().await;
    let netd = start_netd(&bus, "eth0").await;
    let mut watch = network1::watch(&connection).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), uplink("eth0"));
    let served = netd.object_server().interface::<_, Netd>(network1::PATH);
    let interface = served.await.unwrap();
    let before = interface.get().await.readings.load(Ordering::Relaxed);
    for _ in 0..10 {
        change_moon(&netd).await;
    }
    change(&netd, "eth1").await;
    assert_eq!(next(&mut watch).await.unwrap(), uplink("eth1"));
    let after = interface.get().await.readings.load(Ordering::Relaxed);
    // The change of the uplink is read for its signal. The watch takes it from there.
    assert_eq!(after - before, 1);
}

/// zbus reads nothing from a connection while a signal queue is full. A watch that is not
/// polled must not delay replies.
#[tokio::test]
async fn connection_answers_after_more_signals_than_the_queue_holds() {
    let bus = Bus::new();
    let connection = bus.connect().await;
    let netd = start_netd(&bus, "eth0").await;
    let mut watch = network1::watch(&connection).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), uplink("eth0"));

    for i in 0..300 {
        change(&netd, &format!("eth{i}")).await;
    }
    let names = zbus::fdo::DBusProxy::new(&connection).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), names.list_names())
        .await
        .expect("the connection is stuck")
        .unwrap();

    while next(&mut watch).await.unwrap() != uplink("eth299") {}
}

#[tokio::test]
async fn watch_cancelled_repeatedly_returns_the_change() {
    let bus = Bus::new();
    let connection = bus.connect().await;
    let netd = start_netd(&bus, "eth0").await;
    let mut watch = network1::watch(&connection).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), uplink("eth0"));

    change(&netd, "eth1").await;
    // Polled once, then dropped, again and again, as a select! does.
    for _ in 0..1000 {
        let polled = tokio::select! {
            biased;
            polled = watch.next() => Some(polled.unwrap()),
            () = tokio::task::yield_now() => None,
        };
        if let Some(snapshot) = polled {
            assert_eq!(snapshot, uplink("eth1"));
            return;
        }
    }
    assert_eq!(next(&mut watch).await.unwrap(), uplink("eth1"));
}

#[tokio::test]
async fn end_of_bus_is_an_error() {
    let bus = Bus::new();
    let connection = bus.connect().await;
    let mut watch = network1::watch(&connection).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), None);
    drop(bus);
    assert!(next(&mut watch).await.is_err());
}
