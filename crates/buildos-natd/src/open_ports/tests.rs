use super::*;
use buildos_types::MacAddress;

const MACHINE: Ipv4Addr = Ipv4Addr::new(172, 23, 0, 9);
const OTHER: Ipv4Addr = Ipv4Addr::new(172, 23, 0, 10);
const HOUR: Duration = Duration::from_secs(3600);

fn binding(address: Ipv4Addr, port: u32) -> Binding {
    Binding {
        mac: MacAddress([2, 0, 0, 0, 0, address.octets()[3]]),
        address,
        port,
    }
}

fn host() -> Surroundings {
    Surroundings {
        index: Some(7),
        machines: [binding(MACHINE, 7), binding(OTHER, 8)].into(),
        listening: [22, 5432, FIRST_OUTSIDE].into(),
        now: Duration::from_secs(100),
        now_usec: 1_000_000,
    }
}

fn ssh() -> Wanted {
    Wanted {
        link: "tap0".to_owned(),
        port: 22,
        outside: None,
        time: HOUR,
    }
}

#[test]
fn port_is_opened_at_first_free_port_of_br0() {
    let mut ports = OpenPorts::default();
    let expected = OpenPort {
        outside: FIRST_OUTSIDE + 1,
        link: "tap0".to_owned(),
        index: 7,
        address: MACHINE,
        port: 22,
        until: Duration::from_secs(3700),
        until_usec: 3_601_000_000,
    };
    assert_eq!(ports.open(&ssh(), &host()), Ok(expected.clone()));
    assert_eq!(ports.list(), [expected]);
    let other = Wanted {
        port: 5900,
        ..ssh()
    };
    let second = ports.open(&other, &host()).unwrap();
    assert_eq!(second.outside, FIRST_OUTSIDE + 2);
    assert_eq!(ports.next_end(), Some(Duration::from_secs(3700)));
}

#[test]
fn second_request_renews_time_and_can_move_the_port() {
    let mut ports = OpenPorts::default();
    let first = ports.open(&ssh(), &host()).unwrap();
    let later = Surroundings {
        now: Duration::from_secs(200),
        ..host()
    };
    let renewed = ports.open(&ssh(), &later).unwrap();
    assert_eq!(renewed.outside, first.outside);
    assert_eq!(renewed.until, Duration::from_secs(3800));
    let moved = Wanted {
        outside: Some(2222),
        ..ssh()
    };
    assert_eq!(ports.open(&moved, &later).unwrap().outside, 2222);
    assert_eq!(ports.list().len(), 1);
}

#[test]
fn unusable_requests_are_refused() {
    let mut ports = OpenPorts::default();
    ports
        .open(
            &Wanted {
                outside: Some(2222),
                ..ssh()
            },
            &host(),
        )
        .unwrap();
    let before = ports.clone();
    let mut check = |wanted: Wanted, host: &Surroundings, expected: &str| {
        let refusal = ports.open(&wanted, host).unwrap_err();
        assert_eq!(refusal.to_string(), expected);
    };
    let other = Wanted { port: 80, ..ssh() };
    let outside = |outside| Wanted {
        outside: Some(outside),
        ..other.clone()
    };
    let no_port = Surroundings {
        index: None,
        ..host()
    };
    check(ssh(), &no_port, "\"tap0\" is no port of br1");
    let name = Wanted {
        link: "a/b\n".to_owned(),
        ..ssh()
    };
    check(name, &host(), "\"a/b\\n\" is no port of br1");
    let silent = Surroundings {
        machines: BTreeSet::new(),
        ..host()
    };
    check(ssh(), &silent, "the machine at tap0 has no address yet");
    let several = Surroundings {
        machines: [binding(MACHINE, 7), binding(OTHER, 7)].into(),
        ..host()
    };
    let sentence = "the machine at tap0 has several addresses: 172.23.0.9, 172.23.0.10";
    check(ssh(), &several, sentence);
    check(Wanted { port: 0, ..ssh() }, &host(), "0 is no port");
    for time in [Duration::ZERO, MAX_TIME + Duration::from_secs(1)] {
        let sentence = "the time is from one second to 24 hours";
        check(Wanted { time, ..ssh() }, &host(), sentence);
    }
    let sentence = "port 22 of br0 is a system port: choose one from 1024 on";
    check(outside(22), &host(), sentence);
    check(
        outside(5432),
        &host(),
        "the host itself listens on port 5432",
    );
    check(
        outside(2222),
        &host(),
        "port 2222 of br0 is open for tap0 already",
    );
    assert_eq!(ports, before);
}

#[test]
fn number_of_open_ports_is_limited() {
    let mut ports = OpenPorts::default();
    for port in 1..=MAX_OPEN as u16 {
        ports.open(&Wanted { port, ..ssh() }, &host()).unwrap();
    }
    let one_more = Wanted { port: 99, ..ssh() };
    assert_eq!(ports.open(&one_more, &host()), Err(Refusal::TooMany));
    assert!(ports.open(&Wanted { port: 1, ..ssh() }, &host()).is_ok());
    let list = [ports.list(), ports.list()].concat();
    assert_eq!(OpenPorts::resume(list).list().len(), MAX_OPEN);
}

#[test]
fn port_is_closed_by_time_machine_or_operator() {
    let opened = |wanted: &Wanted| {
        let mut ports = OpenPorts::default();
        let opened = ports.open(wanted, &host()).unwrap();
        (ports, opened)
    };
    let (ports, open) = opened(&ssh());
    let expire = |now: u64, indices: &[u32], departed: &[Ipv4Addr]| {
        let mut ports = ports.clone();
        let indices = indices.iter().copied().collect();
        let closed = ports.expire(Duration::from_secs(now), &indices, departed);
        assert_eq!(ports.list().is_empty(), !closed.is_empty());
        closed
    };
    assert_eq!(expire(3699, &[7, 8], &[OTHER]), []);
    assert_eq!(expire(3700, &[7], &[]), [(open.clone(), Closed::TimeEnded)]);
    assert_eq!(
        expire(200, &[8], &[]),
        [(open.clone(), Closed::MachineGone)]
    );
    assert_eq!(
        expire(200, &[7], &[MACHINE]),
        [(open.clone(), Closed::MachineGone)]
    );
    let (mut ports, open) = opened(&ssh());
    assert_eq!(ports.close(1), Err(Refusal::NotOpen(1)));
    assert_eq!(ports.close(open.outside), Ok(open));
    assert_eq!(ports.list(), []);
}
