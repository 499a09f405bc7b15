//! Mutated files, kernel command lines, ARP packets and LLDP frames. [`buildos_fuzz`] has the number of each.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dbus_api::network1::Reachability;
use buildos_dhcp::{Lease, arp};
use buildos_fuzz::{Generator, executions, mutate, mutate_text};
use buildos_netd::kernel::fake;
use buildos_netd::lldp::{self, Neighbours};
use buildos_netd::observed::PUBLIC_BRIDGE;
use buildos_netd::reconcile::{FormerUplink, Kernel as _, Reconciler};
use buildos_netd::settings::{Settings, schema};
use buildos_netd::state_file;
use buildos_netd::uplink::gateway::Monitor;
use buildos_service::config::{Fragment, Origin, evaluate};
use buildos_types::MacAddress;
use serde_json::json;

use crate::lan::Lan;
use crate::nics::{index, mac, nic};
use crate::servers::Server;

const START: Duration = Duration::from_secs(100);

/// Starts netd on a host with one NIC, and gives it an hour. `earlier` is of the boot before.
fn run(former: Option<FormerUplink>, earlier: Option<FormerUplink>) -> Reconciler {
    let mut lan = Lan::new(START);
    lan.servers.insert(index(1), (Server::Good, 7200));
    lan.kernel.add_link(nic(index(1), "eth1"));
    lan.kernel.plug(index(1), true);
    let mut reconciler = Reconciler::new(Settings::default(), 1);
    fake::run(reconciler.start(&mut lan, former))
        .unwrap()
        .unwrap();
    if let Some(earlier) = earlier {
        reconciler.ask_for_former_lease(lan.now(), earlier);
    }
    let mut steps = 0;
    loop {
        steps += 1;
        assert!(steps < 10_000, "no rest");
        fake::run(reconciler.step(&mut lan)).unwrap().unwrap();
        if let Some((nic, message)) = lan.replies.pop_front() {
            reconciler.packet(lan.now(), nic, &message);
            continue;
        }
        let deadlines = [reconciler.deadline(), lan.kernel.next_expiry()];
        let next = deadlines.into_iter().flatten().min();
        let Some(next) = next.filter(|next| *next <= START + Duration::from_secs(3600)) else {
            break;
        };
        if !lan.kernel.advance(next.max(lan.now())).is_empty() {
            reconciler.kernel_changed(None);
        }
        reconciler.timeout(lan.now());
    }
    assert!(reconciler.is_settled());
    let br0 = lan.kernel.observed.bridge(PUBLIC_BRIDGE).unwrap().index;
    assert!(
        lan.kernel
            .observed
            .addresses
            .iter()
            .any(|address| address.link == br0)
    );
    reconciler
}

fn state(boot_id: &str, identity: Option<MacAddress>, lease: &Lease) -> Vec<u8> {
    let resume = json!({
        "boot_id": boot_id,
        "uplink": mac(index(1)),
        "identity": identity,
        "gateway_mac": MacAddress([2, 0, 0, 0, 0, 0xfe]),
        "lease": lease,
    });
    serde_json::to_vec_pretty(&json!({ "state": "online", "resume": resume })).unwrap()
}

/// Replaces one of the numbers in a text.
fn replace_number(bytes: &mut Vec<u8>, random: &mut Generator) {
    const NUMBERS: [&str; 10] = [
        "-1",
        "0",
        "1",
        "32",
        "33",
        "255",
        "256",
        "4294967295",
        "18446744073709551615",
        "1e300",
    ];
    let digits: Vec<usize> = (0..bytes.len())
        .filter(|at| bytes[*at].is_ascii_digit())
        .collect();
    let at = *random.one_of(&digits);
    let is_other = |byte: &u8| !byte.is_ascii_digit();
    let start = bytes[..at]
        .iter()
        .rposition(is_other)
        .map_or(0, |last| last + 1);
    let end = bytes[at..]
        .iter()
        .position(is_other)
        .map_or(bytes.len(), |first| at + first);
    bytes.splice(start..end, random.one_of(&NUMBERS).bytes());
}

#[test]
fn mutated_state_files_are_ignored_or_give_a_host_its_network() {
    const PARTS: [&str; 16] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "null",
        "-1",
        "0",
        "33",
        "255",
        "4294967296",
        "18446744073709551615",
        "0.0.0.0",
        "\"resume\": ",
    ];
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let granted = run(None, None).election().lease().unwrap().clone();
    let interface = "192.0.2.77/24".parse().unwrap();
    let gateway = Some(Ipv4Addr::new(192, 0, 2, 1));
    let configured = Lease::configured(interface, gateway, vec![], START).unwrap();
    let corpus: Vec<_> = [&granted, &configured]
        .into_iter()
        .flat_map(|lease| {
            let identity = (!lease.is_configured()).then_some(MacAddress([2, 0, 0, 0, 0, 9]));
            [boot_id.trim(), "the boot before"].map(|boot| state(boot, identity, lease))
        })
        .collect();
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().join("state.json");
    let (mut random, mut read) = (Generator::new(1), 0u64);
    for _ in 0..executions(2000) {
        let mut bytes = random.one_of(&corpus).clone();
        if random.below(2) == 0 {
            replace_number(&mut bytes, &mut random);
        } else {
            mutate_text(&mut bytes, &PARTS, &mut random);
        }
        std::fs::write(&path, &bytes).unwrap();
        let former = state_file::read(&path);
        let earlier = state_file::read_former_boot(&path);
        if former.is_some() || earlier.is_some() {
            read += 1;
            run(former, earlier);
        }
    }
    assert!(read > executions(2000) / 20, "only {read} files were read");
}

#[test]
fn mutated_configurations_have_valid_settings_and_problems() {
    const FILE: &str = "private = \"10.1.0.1/16\"\ninclude = [\"eth*\"]\nexclude = [\"enp9*\", \"x?\"]\n\
        bootif = \"02:00:00:00:00:01\"\nbootif_head_start_ms = 1500\nbootif_wait_s = 4\n\
        online_requires = \"lease\"\ncarrier_grace_s = 35\nallow_servers = [\"192.0.2.1\"]\n\
        deny_networks = [\"192.168.0.0/16\"]\ndetect_conflicts = false\nmtu = 9000\n\
        route_metric = 100\nipv6 = \"off\"\nstatic = \"192.0.2.10/24 via 192.0.2.1\"\n\
        static_dns = [\"192.0.2.1\"]\nstatic_wait_s = 40\nkeep_expired = true\n\
        send_name = \"fqdn\"\nvendor_class = \"buildos\"\nuser_class = \"ci\"\n\
        client_id = \"ff:00:01\"\nkeep_identity = false\n";
    const LINE: &str = "BOOT_IMAGE=/buildos BOOTIF=01-de-ad-be-ef-b8-da quiet \
        ip=192.0.2.77:192.0.2.2:192.0.2.1:255.255.255.0 buildos.netd.mtu=1500 \
        \"buildos.netd.static=192.0.2.10/24 via 192.0.2.1\" buildos.netd.bootif=only \
        buildos.netd.allow_servers=192.0.2.1,192.0.2.2 buildos.netd.keep_expired \
        buildos.netd.client_id=mac buildos.netd.include=eth*";
    const PARTS: [&str; 28] = [
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "\"\"\"",
        "=",
        ".",
        ",",
        "\n",
        "\r\n",
        "#",
        "-",
        " ",
        "/",
        ":",
        "*",
        "0",
        "4294967296",
        "0x7fffffffffffffff",
        "nan",
        "true",
        "\u{feff}",
        "\\u0000",
        "é",
        "[private]\n",
        "buildos.netd.",
    ];
    let schema = schema();
    let file = Origin::File("/etc/buildos/netd.conf.d/50-fuzz.toml".into());
    let mut random = Generator::new(2);
    let (mut valid, mut used) = (0u64, 0u64);
    for _ in 0..executions(20_000) {
        let is_file = random.below(2) == 0;
        let mut bytes = if is_file { FILE } else { LINE }.as_bytes().to_vec();
        mutate_text(&mut bytes, &PARTS, &mut random);
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        let origin = if is_file {
            file.clone()
        } else {
            Origin::KernelCommandLine
        };
        let loaded = evaluate(&schema, &[Fragment { origin, text }]);
        valid += u64::from(loaded.problems.is_empty());
        for problem in &loaded.problems {
            let shown = problem.to_string();
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
        let settings = loaded.settings;
        assert!(!settings.private.is_empty());
        assert!(
            settings
                .mtu
                .is_none_or(|mtu| (576..=65535).contains(&u32::from(mtu)))
        );
        for address in [&settings.static_address, &settings.boot_address]
            .into_iter()
            .flatten()
        {
            used += 1;
            let lease = address.lease(&settings.static_dns, START).unwrap();
            assert!(lease.network().contains(&lease.address) && lease.is_configured());
        }
        for pattern in settings.include.iter().chain(&settings.exclude) {
            let _ = pattern.matches("enp9s0");
        }
    }
    let least = executions(20_000) / 50;
    assert!(
        valid > least && used > least,
        "{valid} valid, {used} static addresses"
    );
}

#[test]
fn mutated_arp_packets_confirm_only_the_gateway() {
    let (own, router) = (mac(index(1)), MacAddress([2, 0, 0, 0, 0, 0xfe]));
    let (address, gateway) = (Ipv4Addr::new(192, 0, 2, 77), Ipv4Addr::new(192, 0, 2, 1));
    let mut random = Generator::new(3);
    let (mut now, mut confirmed) = (START, 0u64);
    let new = |now, seed| Monitor::new(now, own, address, gateway, Some(router), seed);
    let mut monitor = new(now, 1);
    for execution in 0..executions(100_000) {
        if execution % 100 == 0 {
            monitor = new(now, execution);
        }
        now += Duration::from_millis(random.next() % 3000);
        let packet = arp::Packet {
            sender_mac: *random.one_of(&[own, router, MacAddress([2; 6])]),
            sender: *random.one_of(&[gateway, address]),
            target: address,
        };
        let mut bytes = packet.encode().to_vec();
        mutate(&mut bytes, 0, &mut random);
        monitor.timeout(now);
        let confirms = monitor.confirms_network();
        if let Ok(packet) = arp::Packet::parse(&bytes) {
            monitor.received(now, &packet);
            if monitor.confirms_network() != confirms {
                confirmed += 1;
                assert_eq!((packet.sender_mac, packet.sender), (router, gateway));
            }
        }
        assert!(monitor.mac().is_some_and(|mac| mac != own));
        assert!(monitor.deadline() <= now + Duration::from_secs(330));
        assert!(monitor.reachability() != Reachability::Reachable || monitor.mac().is_some());
        let mut requests = 0;
        while let Some(request) = monitor.poll() {
            requests += 1;
            assert_eq!(
                (request.packet.sender_mac, request.packet.target),
                (own, gateway)
            );
        }
        assert!(requests <= 1);
    }
    assert!(confirmed > 0);
}

/// Returns a frame of a switch with its name, its port and two VLANs.
fn lldp_frame() -> Vec<u8> {
    let mut frame = Vec::new();
    for (kind, value) in [
        (1, &b"\x04\x02\0\0\0\0\xfe"[..]),
        (2, b"\x05Gi1/0/12"),
        (3, b"\0\x78"),
        (4, b"build host 7"),
        (5, b"sw1.example.org"),
        (127, b"\0\x80\xc2\x01\0\x2a"),
        (127, b"\0\x80\xc2\x03\0\x0a\x04farm"),
        (0, b""),
    ] {
        frame.push(kind << 1);
        frame.push(u8::try_from(value.len()).unwrap());
        frame.extend(value);
    }
    frame
}

#[test]
fn mutated_lldp_frames_are_refused_or_have_bounded_neighbours() {
    let mut random = Generator::new(4);
    let (mut parsed, mut refused) = (0u64, 0u64);
    let mut neighbours = Neighbours::default();
    let mut now = START;
    for _ in 0..executions(100_000) {
        let mut bytes = lldp_frame();
        mutate(&mut bytes, 0, &mut random);
        let Ok(frame) = lldp::frame::parse(&bytes) else {
            refused += 1;
            continue;
        };
        parsed += 1;
        let neighbour = &frame.neighbour;
        // Each byte of a name becomes ten characters at most.
        for name in [&neighbour.system, &neighbour.port] {
            assert!((1..=640).contains(&name.as_str().len()), "{name:?}");
        }
        let vlans = neighbour.vlans.iter().chain(&neighbour.untagged_vlan);
        assert!(vlans.clone().all(|vlan| (1..=4094).contains(vlan)));
        assert!(vlans.count() <= 17);
        now += Duration::from_secs(random.next() % 60);
        let valid_for = frame.valid_for;
        neighbours.receive(now, index(1), frame);
        neighbours.timeout(now);
        let latest = now + Duration::from_secs(65_535);
        assert!(
            neighbours
                .deadline()
                .is_none_or(|at| now < at && at <= latest)
        );
        assert!(valid_for <= Duration::from_secs(65_535));
    }
    assert!(parsed > 0 && refused > 0);
}
