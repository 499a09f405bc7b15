//! Tests the D-Bus interface of agentd with a client on a private bus.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Tests panic.

#[path = "../../buildos-dbus-api/tests/support/bus.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use buildos_agentd::agent::id::Id;
use buildos_agentd::dbus::{MethodCall, Publisher, Targets};
use buildos_agentd::lifecycle::instance::{Event, Instance, Remembered};
use buildos_agentd::lifecycle::table::Now;
use buildos_agentd::requirements::check::Unmet;
use buildos_agentd::unit::phase::{Phase, Unit};
use buildos_dbus_api::agent1::{InstanceProxy, InstanceState, ManagerProxy, Need};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use zbus::fdo::PropertiesProxy;

/// Limit of each wait. Every step takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(60);

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn now() -> Now {
    Now {
        instant: Instant::now(),
        realtime_usec: 5,
        uptime: Duration::ZERO,
    }
}

fn running(pid: u32) -> Instance {
    let mut instance = Instance::new(Remembered::default(), Vec::new(), now());
    instance.handle(
        Event::Seen(Unit {
            phase: Phase::Running,
            changed_usec: u64::from(pid),
            changed_realtime_usec: 5,
            main_pid: pid,
            exit: None,
            restarts: 0,
        }),
        now(),
        0,
    );
    instance
}

#[tokio::test]
async fn publisher_serves_changes_and_forwards_method_calls() {
    let bus = support::Bus::new();
    let (calls, mut received) = mpsc::channel(8);
    let mut publisher = Publisher::new(&bus.connect().await, calls).await.unwrap();
    let (a, b) = (id("bbot@a"), id("bslave@b"));
    let unmet = Unmet {
        need: Need::Network,
        reason: "network: no carrier".into(),
    };
    let waiting = Instance::new(Remembered::default(), vec![unmet], now());
    let first = running(7);
    let problems = ["a problem".to_owned()];
    publisher
        .publish(
            "one of two",
            &problems,
            &BTreeMap::from([(&a, &first), (&b, &waiting)]),
        )
        .await
        .unwrap();
    publisher.take_name().await.unwrap();

    let client = bus.connect().await;
    let manager = ManagerProxy::new(&client).await.unwrap();
    assert_eq!(manager.reason().await.unwrap(), "one of two");
    assert_eq!(manager.configuration_problems().await.unwrap(), problems);
    let paths = manager.instances().await.unwrap();
    assert_eq!(
        paths,
        [a.object_path(), b.object_path()].map(|p| p.try_into().unwrap())
    );
    let agent = InstanceProxy::builder(&client)
        .path(&paths[0])
        .unwrap()
        .build()
        .await
        .unwrap();
    assert_eq!(agent.name().await.unwrap(), "a");
    assert_eq!(agent.kind().await.unwrap(), "bbot");
    assert_eq!(agent.unit().await.unwrap(), "buildos-bbot@a.service");
    assert_eq!(
        agent.state().await.unwrap(),
        InstanceState::Running.as_str()
    );
    assert_eq!(agent.since_usec().await.unwrap(), 5);
    assert!(agent.wanted().await.unwrap());
    assert!(!agent.crash_loop().await.unwrap());
    assert_eq!(agent.failures().await.unwrap(), 0);
    assert_eq!(agent.drain_deadline_usec().await.unwrap(), 0);
    let other = InstanceProxy::builder(&client)
        .path(&paths[1])
        .unwrap()
        .build()
        .await
        .unwrap();
    assert_eq!(
        other.needs().await.unwrap(),
        [("network".to_owned(), "network: no carrier".to_owned())]
    );

    // One signal with the changed properties only.
    let properties = PropertiesProxy::builder(&client)
        .destination("org.build2.buildos.agent1")
        .unwrap()
        .path(&paths[0])
        .unwrap()
        .build()
        .await
        .unwrap();
    let mut changes = properties.receive_properties_changed().await.unwrap();
    let mut agents = manager.receive_instances_changed().await;
    let second = running(8);
    publisher
        .publish("one of one", &problems, &BTreeMap::from([(&a, &second)]))
        .await
        .unwrap();
    let change = timeout(DEADLINE, changes.next()).await.unwrap().unwrap();
    let args = change.args().unwrap();
    let mut names: Vec<_> = args.changed_properties.keys().copied().collect();
    names.sort_unstable();
    assert_eq!(names, ["MainPID", "Reason"]);

    timeout(DEADLINE, async {
        while agents.next().await.unwrap().get().await.unwrap() != paths[..1] {}
    })
    .await
    .unwrap();

    manager.restart("bbot@a").await.unwrap();
    assert_eq!(received.recv().await, Some(MethodCall::Restart(a.clone())));
    manager.drain(&["bbot@a"], 0).await.unwrap();
    let some = Targets::Some(vec![a]);
    assert_eq!(
        received.recv().await,
        Some(MethodCall::Drain(some.clone(), None))
    );
    manager.drain(&[], 1_500_000).await.unwrap();
    let budget = Some(Duration::from_millis(1500));
    assert_eq!(
        received.recv().await,
        Some(MethodCall::Drain(Targets::All, budget))
    );
    manager.resume(&["bbot@a"]).await.unwrap();
    assert_eq!(received.recv().await, Some(MethodCall::Resume(some)));
    for (unknown, text) in [
        ("bslave@b", "bslave@b is not configured"),
        (
            "default",
            "\"default\" is not an agent: KIND@NAME is expected, for example bbot@default",
        ),
    ] {
        for error in [
            manager.restart(unknown).await.unwrap_err(),
            manager.drain(&["bbot@a", unknown], 0).await.unwrap_err(),
            manager.resume(&[unknown]).await.unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.ends_with(text), "{error}");
        }
    }
}
