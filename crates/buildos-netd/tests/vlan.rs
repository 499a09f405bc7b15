//! Tests NICs whose network is a VLAN (`[uplink.NAME]`).

#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "support/lan.rs"]
mod lan;
#[path = "support/nics.rs"]
mod nics;
#[path = "support/servers.rs"]
mod servers;

use std::time::Duration;

use buildos_dbus_api::network1::LinkRole;
use buildos_dhcp::{Instant, MessageKind};
use buildos_netd::kernel::fake;
use buildos_netd::lldp::frame::Frame;
use buildos_netd::observed::{Link, PUBLIC_BRIDGE, Vlan};
use buildos_netd::plan::Op;
use buildos_netd::reconcile::{FormerUplink, Kernel as _, Reconciler};
use buildos_netd::settings::{Settings, schema};
use buildos_netd::status::{Clocks, LinkStatus, Status};
use buildos_netd::uplink::listeners::Listen;
use buildos_service::config::{Fragment, Origin, evaluate};
use buildos_types::LinkIndex;
use lan::Lan;
use nics::{index, mac, nic};
use servers::{LEASE, Server};

const START: Instant = Duration::from_secs(100);
const CLOCKS: Clocks = Clocks {
    boottime: START,
    realtime: START,
};
const TAGGED: &str = "[uplink.lan]\nlinks = [\"eth1\"]\nvlan = 42\n";

fn evaluated(text: &str) -> (Settings, Vec<String>) {
    let fragment = Fragment {
        origin: Origin::File("/etc/buildos/netd.conf.d/10.toml".into()),
        text: text.into(),
    };
    let loaded = evaluate(&schema(), &[fragment]);
    let problems = loaded.problems.iter().map(ToString::to_string);
    (loaded.settings, problems.collect())
}

fn settings(text: &str) -> Settings {
    let (settings, problems) = evaluated(text);
    assert_eq!(problems, [""; 0]);
    settings
}

/// Returns a LAN with a server for each of these NICs. A server answers with and without a tag.
fn lan_of(numbers: &[u32]) -> Lan {
    let mut lan = Lan::new(START);
    for number in numbers {
        let index = index(*number);
        lan.servers.insert(index, (Server::Good, LEASE));
        lan.kernel.plug(index, true);
        lan.kernel.add_link(nic(index, &format!("eth{number}")));
    }
    lan
}

fn start(settings: Settings, lan: &mut Lan, former: Option<FormerUplink>) -> Reconciler {
    let mut reconciler = Reconciler::new(settings, 1);
    let start = reconciler.start(lan, former);
    fake::run(start).unwrap().unwrap();
    settle(&mut reconciler, lan);
    reconciler
}

fn settle(reconciler: &mut Reconciler, lan: &mut Lan) {
    loop {
        let step = reconciler.step(lan);
        fake::run(step).unwrap().unwrap();
        let Some((nic, message)) = lan.replies.pop_front() else {
            return;
        };
        reconciler.packet(lan.now(), nic, &message);
    }
}

fn configure(reconciler: &mut Reconciler, lan: &mut Lan, text: &str) {
    reconciler.configure(lan.now(), settings(text));
    settle(reconciler, lan);
}

fn vlan(lan: &Lan, nic: u32, id: u16) -> &Link {
    lan.kernel.observed.vlan(index(nic), id).unwrap()
}

fn ports(lan: &Lan) -> Vec<String> {
    let ports = lan.kernel.observed.ports(PUBLIC_BRIDGE);
    ports.map(|port| port.name.to_string()).collect()
}

fn link(reconciler: &Reconciler, name: &str) -> LinkStatus {
    let status = Status::new(reconciler, Vec::new(), CLOCKS);
    let mut links = status.links.into_iter();
    links.find(|link| link.name == name).unwrap()
}

#[test]
fn tagged_nic_gets_lease_by_its_vlan_which_is_port_of_br0() {
    let mut lan = lan_of(&[1]);
    let reconciler = start(settings(TAGGED), &mut lan, None);
    let tagged = vlan(&lan, 1, 42);
    assert!(tagged.up && tagged.own_vlan().is_some());
    assert_eq!((tagged.ipv6, tagged.answers_arp), (Some(false), false));
    assert_eq!(ports(&lan), ["eth1.42"]);
    let br0 = lan.kernel.observed.bridge(PUBLIC_BRIDGE).unwrap();
    assert_eq!(br0.mac, Some(mac(index(1))));
    let nic = &lan.kernel.observed.links[&index(1)];
    assert!(nic.up && nic.controller.is_none());
    assert_eq!((nic.ipv6, nic.answers_arp), (Some(false), false));
    assert!(reconciler.election().lease().is_some());
    // Nothing was sent without a tag.
    assert!(lan.sent.iter().all(|(link, _)| *link == tagged.index));
    assert!(lan.refused.is_empty(), "{:?}", lan.refused);
    let status = Status::new(&reconciler, Vec::new(), CLOCKS);
    assert!(status.reason.contains("by eth1.42"), "{}", status.reason);
    let (nic, tagged) = (link(&reconciler, "eth1"), link(&reconciler, "eth1.42"));
    assert_eq!(nic.role, LinkRole::Nic);
    assert_eq!(nic.reason, "carries VLAN 42 by [uplink.lan]");
    assert_eq!(tagged.role, LinkRole::Uplink);
    assert_eq!(tagged.vlan, Some(("eth1".parse().unwrap(), 42)));
}

#[test]
fn vlan_exists_before_carrier_so_that_search_begins_with_it() {
    let mut lan = lan_of(&[1]);
    lan.kernel.plug(index(1), false);
    let mut reconciler = start(settings(TAGGED), &mut lan, None);
    assert!(vlan(&lan, 1, 42).up);
    assert_eq!(lan.sent, []);
    lan.kernel.plug(index(1), true);
    lan.attempts.clear();
    reconciler.kernel_changed(None);
    let step = reconciler.step(&mut lan);
    fake::run(step).unwrap().unwrap();
    assert_eq!(lan.sent, [(vlan(&lan, 1, 42).index, MessageKind::Discover)]);
    assert_eq!(lan.attempts, []);
}

#[test]
fn uplink_follows_configuration_from_untagged_to_tagged_and_back() {
    let mut lan = lan_of(&[1]);
    let mut reconciler = start(Settings::default(), &mut lan, None);
    assert_eq!(ports(&lan), ["eth1"]);
    configure(&mut reconciler, &mut lan, TAGGED);
    assert_eq!(ports(&lan), ["eth1.42"]);
    configure(&mut reconciler, &mut lan, &TAGGED.replace("42", "43"));
    assert_eq!(ports(&lan), ["eth1.43"]);
    assert!(lan.kernel.observed.vlan(index(1), 42).is_none());
    configure(&mut reconciler, &mut lan, "");
    assert_eq!(ports(&lan), ["eth1"]);
    let links = lan.kernel.observed.links.values();
    assert_eq!(links.filter(|link| link.vlan.is_some()).count(), 0);
    assert!(reconciler.is_settled());
    assert!(lan.refused.is_empty(), "{:?}", lan.refused);
}

#[test]
fn excluded_nic_loses_its_vlan() {
    let mut lan = lan_of(&[1, 2]);
    let mut reconciler = start(settings(TAGGED), &mut lan, None);
    configure(
        &mut reconciler,
        &mut lan,
        &format!("exclude = [\"eth1\"]\n{TAGGED}"),
    );
    assert!(lan.kernel.observed.vlan(index(1), 42).is_none());
    assert_eq!(ports(&lan), ["eth2"]);
}

#[test]
fn address_of_other_program_on_the_nic_leaves_its_vlan_the_uplink() {
    let mut lan = lan_of(&[1]);
    let mut reconciler = start(settings(TAGGED), &mut lan, None);
    let address = "198.51.100.7/24".parse().unwrap();
    lan.kernel
        .observed
        .other_addresses
        .push((index(1), address));
    reconciler.configure(lan.now(), settings(TAGGED));
    settle(&mut reconciler, &mut lan);
    assert_eq!(ports(&lan), ["eth1.42"]);
    assert!(reconciler.election().lease().is_some());
}

#[test]
fn vlan_of_other_program_is_left_alone_with_reason() {
    let mut lan = lan_of(&[1, 2]);
    for (number, nic_number, id) in [(8, 1, 42), (9, 2, 7)] {
        lan.kernel.add_link(Link {
            kind: Some("vlan".into()),
            device: false,
            vlan: Some(Vlan {
                nic: index(nic_number),
                id,
                is_own: false,
            }),
            ..nic(index(number), &format!("v{id}"))
        });
    }
    let before = lan.kernel.observed.links.clone();
    let reconciler = start(settings(TAGGED), &mut lan, None);
    for number in [8, 9] {
        let now = &lan.kernel.observed.links[&index(number)];
        assert_eq!(*now, before[&index(number)]);
    }
    let excluded = link(&reconciler, "eth1");
    assert_eq!(excluded.role, LinkRole::Ignored);
    assert_eq!(
        excluded.reason,
        "its VLAN 42 is v42, which another program made; remove v42, or the key vlan"
    );
    assert_eq!(link(&reconciler, "v42").reason, "virtual link of kind vlan");
    assert_eq!(ports(&lan), ["eth2"]);
}

#[test]
fn include_does_not_make_own_vlan_a_nic() {
    let mut lan = lan_of(&[1]);
    let text = "include = [\"*\"]\n[uplink.all]\nlinks = [\"*\"]\nvlan = 42\n";
    let reconciler = start(settings(text), &mut lan, None);
    assert_eq!(ports(&lan), ["eth1.42"]);
    let vlans = lan.kernel.observed.links.values();
    assert_eq!(vlans.filter(|link| link.vlan.is_some()).count(), 1);
    assert!(reconciler.is_settled());
}

#[test]
fn restarted_netd_keeps_its_vlan_and_resumes_lease() {
    let mut lan = lan_of(&[1]);
    let old = start(settings(TAGGED), &mut lan, None);
    let former = FormerUplink {
        mac: mac(index(1)),
        gateway_mac: None,
        identity: None,
        lease: old.election().lease().unwrap().clone(),
    };
    drop(old);
    lan.attempts.clear();
    lan.sent.clear();
    let reconciler = start(settings(TAGGED), &mut lan, Some(former));
    assert!(reconciler.election().lease().is_some());
    let lifetimes = lan.attempts.iter();
    let others: Vec<_> = lifetimes
        .filter(|op| !matches!(op, Op::SetAddress(_)))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    let kinds = lan.sent.iter().map(|(_, kind)| *kind);
    assert!(kinds.clone().all(|kind| kind == MessageKind::Request));
}

#[test]
fn refused_vlan_is_reported_and_other_nic_is_used() {
    let mut lan = lan_of(&[1, 2]);
    lan.kernel.refuse(|op| matches!(op, Op::CreateVlan(_)));
    let reconciler = start(settings(TAGGED), &mut lan, None);
    assert_eq!(ports(&lan), ["eth2"]);
    let status = Status::new(&reconciler, Vec::new(), CLOCKS);
    let expected = "cannot create VLAN 42 of eth1 as eth1.42; ";
    assert!(status.reason.starts_with(expected), "{}", status.reason);
}

#[test]
fn removed_nic_takes_its_vlan_along_and_gets_a_new_one() {
    let mut lan = lan_of(&[1]);
    let mut reconciler = start(settings(TAGGED), &mut lan, None);
    let first = vlan(&lan, 1, 42).index;
    lan.kernel.observed.links.remove(&index(1));
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    assert!(!lan.kernel.observed.links.contains_key(&first));
    lan.kernel.add_link(nic(index(1), "eth1"));
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    assert_ne!(vlan(&lan, 1, 42).index, first);
    assert_eq!(ports(&lan), ["eth1.42"]);
}

#[test]
fn mtu_of_vlan_follows_that_of_its_nic() {
    let mut lan = lan_of(&[1]);
    let mtus = |lan: &Lan| {
        let br0 = lan.kernel.observed.bridge(PUBLIC_BRIDGE).unwrap().mtu;
        let nic = lan.kernel.observed.links[&index(1)].mtu;
        [nic, vlan(lan, 1, 42).mtu, br0]
    };
    let mut reconciler = start(settings(TAGGED), &mut lan, None);
    assert_eq!(mtus(&lan), [1500; 3]);
    for (text, mtu) in [("mtu = 9000\n", 9000), ("mtu = 1400\n", 1400), ("", 1500)] {
        configure(&mut reconciler, &mut lan, &format!("{text}{TAGGED}"));
        assert_eq!(mtus(&lan), [mtu; 3], "{text}");
    }
    assert!(lan.refused.is_empty(), "{:?}", lan.refused);
}

#[test]
fn lldp_comes_by_the_nic_and_is_shown_for_nic_and_vlan() {
    let mut lan = lan_of(&[1]);
    let mut reconciler = start(settings(TAGGED), &mut lan, None);
    let listeners = reconciler.listeners();
    let lldp: Vec<_> = listeners
        .iter()
        .filter(|(_, listen)| matches!(listen, Listen::Lldp(_)))
        .collect();
    assert_eq!(lldp, [&(index(1), Listen::Lldp(index(1)))]);
    let frame: Frame = buildos_netd::lldp::frame::parse(&[
        2, 3, 7, b's', b'1', 4, 3, 7, b'p', b'1', 6, 2, 0, 120, 0, 0,
    ])
    .unwrap();
    reconciler.lldp(lan.now(), index(1), frame);
    reconciler.kernel_changed(None);
    settle(&mut reconciler, &mut lan);
    let status = Status::new(&reconciler, Vec::new(), CLOCKS);
    assert_eq!(status.uplink_neighbour, "s1 port p1");
    for name in ["eth1", "eth1.42"] {
        assert!(link(&reconciler, name).neighbour.is_some(), "{name}");
    }
}

#[test]
fn contradictory_sections_are_reported_with_file_line_key_and_remedy() {
    let (settings, problems) = evaluated(
        "[uplink.a]\nlinks = [\"eth1\"]\n[uplink.b]\nvlan = 4095\nlinks = [\"eth1\", \"eth2\"]\n\
         bonds = 1\n[uplink.c]\nvlan = 1\n",
    );
    assert_eq!(
        problems,
        [
            "/etc/buildos/netd.conf.d/10.toml:4: uplink.b.vlan: 4095 is not a VLAN from 1 to 4094; \
             remove the key for frames without a tag",
            "/etc/buildos/netd.conf.d/10.toml:6: unknown key \"uplink.b.bonds\"; the nearest valid \
             key is \"uplink.b.links\"",
            "/etc/buildos/netd.conf.d/10.toml:5: uplink.b.links: \"eth1\" is in uplink.a.links, too, \
             which applies; remove it from one of them",
            "/etc/buildos/netd.conf.d/10.toml:8: uplink.c: links is missing, so it has no effect; \
             add links = [\"eno1\"], or [\"*\"] for all NICs",
        ]
    );
    let links = settings.uplinks.values().map(|uplink| uplink.links.len());
    assert_eq!(links.collect::<Vec<_>>(), [1, 1, 0]);
}

#[test]
fn kernel_command_line_configures_uplink() {
    let fragment = Fragment {
        origin: Origin::KernelCommandLine,
        text: "buildos.netd.uplink.lan.links=eth1,eth2 buildos.netd.uplink.lan.vlan=42 \
               buildos.netd.uplink.x.links=eth2"
            .into(),
    };
    let loaded = evaluate(&schema(), &[fragment]);
    let problems: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "kernel command line: uplink.x.links: \"eth2\" is in uplink.lan.links, too, which \
             applies; remove it from one of them"
        ]
    );
    let mut lan = lan_of(&[1]);
    start(loaded.settings, &mut lan, None);
    assert_eq!(ports(&lan), ["eth1.42"]);
    let _: LinkIndex = vlan(&lan, 1, 42).index;
}
