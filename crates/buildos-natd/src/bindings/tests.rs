use super::*;
use buildos_types::LinkIndex;

const LEASE: Duration = Duration::from_secs(3600);
const A: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xa]);
const B: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xb]);
const IP_A: Ipv4Addr = Ipv4Addr::new(172, 23, 0, 10);
const IP_B: Ipv4Addr = Ipv4Addr::new(172, 23, 0, 11);
const HOUR_MS: u64 = 3_660_000;

fn element(key: &[&[u8]], remaining_ms: u64) -> Element {
    Element {
        key: key.concat(),
        timeout_ms: HOUR_MS,
        remaining_ms,
    }
}

/// Returns the elements of a machine with a lease.
fn bindings(machines: &[(MacAddress, Ipv4Addr, u32, u64)]) -> Bindings {
    let mut bindings = Bindings {
        hardware_addresses: Vec::new(),
        ports: Vec::new(),
        addresses: Vec::new(),
        full_ports: Vec::new(),
        read: Instant::now(),
    };
    for (mac, address, port, left) in machines {
        let (address, port) = (address.octets(), port.to_ne_bytes());
        let pad = [0; 2];
        bindings.hardware_addresses.push(element(&[&mac.0], *left));
        let owner = element(&[&mac.0, &pad, &port], *left);
        bindings.ports.push(owner);
        let bound = element(&[&mac.0, &pad, &address, &port], *left);
        bindings.addresses.push(bound);
    }
    bindings
}

/// Returns the evidence after two equal readings of the lease file.
fn evidence(ports: &[u32], leases: &[(MacAddress, Ipv4Addr)]) -> Evidence {
    let lease = |(mac, address): &(MacAddress, Ipv4Addr)| Lease {
        mac: *mac,
        address: *address,
        expires: 2000,
    };
    let leases: Vec<_> = leases.iter().map(lease).collect();
    Evidence {
        ports: ports.iter().copied().collect(),
        leases: Some(leases.clone()),
        last_leases: Some(leases),
        known: BTreeSet::new(),
        learned: Vec::new(),
        now_s: 1000,
        lease: LEASE,
        limit: 8,
    }
}

fn learned(mac: MacAddress, port: u32) -> Learned {
    Learned {
        mac,
        port: LinkIndex::new(port).unwrap(),
    }
}

/// Returns set, removed and added number of elements of each change.
fn counts(plan: &Plan) -> Vec<(&str, usize, usize)> {
    let changes = plan.changes.iter();
    changes
        .map(|change| {
            (
                change.set.as_str(),
                change.removed.len(),
                change.added.len(),
            )
        })
        .collect()
}

fn bound(mac: MacAddress, address: Ipv4Addr, port: u32) -> Binding {
    Binding { mac, address, port }
}

#[test]
fn complete_sets_are_unchanged() {
    let bindings = bindings(&[(A, IP_A, 4, 1), (B, IP_B, 5, 1)]);
    let plan = bindings.plan(&evidence(&[4, 5], &[(A, IP_A), (B, IP_B)]));
    let known = [bound(A, IP_A, 4), bound(B, IP_B, 5)].into();
    let expected = Plan {
        known,
        ..Plan::default()
    };
    assert_eq!(plan, expected);
}

#[test]
fn port_that_is_gone_takes_its_elements_with_it() {
    let bindings = bindings(&[(A, IP_A, 4, HOUR_MS), (B, IP_B, 5, HOUR_MS)]);
    let plan = bindings.plan(&evidence(&[5], &[(A, IP_A), (B, IP_B)]));
    assert_eq!(
        counts(&plan),
        [(HARDWARE_ADDRESSES, 1, 0), (PORTS, 1, 0), (ADDRESSES, 1, 0)]
    );
    assert_eq!(plan.departed, [IP_A]);
    assert_eq!(plan.known, [bound(B, IP_B, 5)].into());
}

#[test]
fn address_goes_with_its_lease() {
    let bindings = bindings(&[(A, IP_A, 4, HOUR_MS - 11_000)]);
    // In the second case, the address belongs to the other machine.
    for leases in [&[][..], &[(B, IP_A)]] {
        let plan = bindings.plan(&evidence(&[4], leases));
        assert_eq!(counts(&plan), [(ADDRESSES, 1, 0)]);
        assert_eq!((plan.departed, plan.known), (vec![IP_A], [].into()));
    }
}

#[test]
fn lease_missing_in_one_reading_has_not_ended() {
    let bindings = bindings(&[(A, IP_A, 4, 1)]);
    let half_written = Evidence {
        leases: Some(Vec::new()),
        ..evidence(&[4], &[(A, IP_A)])
    };
    let first = Evidence {
        last_leases: None,
        ..evidence(&[4], &[])
    };
    for evidence in [half_written, first] {
        let plan = bindings.plan(&evidence);
        assert_eq!(plan.changes, []);
        assert_eq!(plan.departed, [IP_A; 0]);
        assert_eq!(plan.recheck, Some(SECOND_READING));
    }
}

#[test]
fn new_address_does_not_need_a_line_in_the_lease_file() {
    let new = bindings(&[(A, IP_A, 4, HOUR_MS - 9_000)]);
    let plan = new.plan(&evidence(&[4], &[]));
    assert_eq!((counts(&plan), plan.recheck), (vec![], Some(GRACE)));
    assert_eq!(new.plan(&evidence(&[4], &[(A, IP_A)])).recheck, None);
    let old = bindings(&[(A, IP_A, 4, 1)]);
    let unreadable = Evidence {
        leases: None,
        ..evidence(&[4], &[])
    };
    assert_eq!(counts(&old.plan(&unreadable)), []);
}

#[test]
fn known_machine_is_gone_once() {
    let known = |ports: &[u32], leases: &[(MacAddress, Ipv4Addr)]| Evidence {
        known: [bound(A, IP_A, 4)].into(),
        ..evidence(ports, leases)
    };
    for evidence in [known(&[5], &[(A, IP_A)]), known(&[4], &[])] {
        let plan = bindings(&[]).plan(&evidence);
        assert_eq!((plan.departed, plan.known), (vec![IP_A], [].into()));
    }
    let probe = bindings(&[(buildos_probe::MAC, IP_B, 5, 1)]);
    let plan = probe.plan(&evidence(&[4], &[]));
    assert_eq!((plan.departed, plan.known), (vec![], [].into()));
}

#[test]
fn lost_elements_of_lease_are_added_for_known_port() {
    let all = [(HARDWARE_ADDRESSES, 0, 1), (PORTS, 0, 1), (ADDRESSES, 0, 1)];
    let learned = |mac, port| Evidence {
        learned: vec![learned(mac, port)],
        ..evidence(&[4, 5], &[(A, IP_A)])
    };
    let plan = bindings(&[]).plan(&learned(A, 4));
    assert_eq!(counts(&plan), all);
    let expected = &bindings(&[(A, IP_A, 4, 0)]).addresses[0].key;
    let added = &plan.changes[2].added[0];
    assert_eq!(&added.key, expected);
    assert_eq!(added.remaining_ms, 1_060_000);
    // br1 has not learned the machine, or only on a port that is gone.
    for unknown in [learned(B, 4), learned(A, 6)] {
        assert_eq!(counts(&bindings(&[]).plan(&unknown)), []);
    }
    // br1 forgets an idle machine.
    let remembered = Evidence {
        known: [bound(A, IP_A, 4)].into(),
        ..learned(B, 5)
    };
    let plan = bindings(&[]).plan(&remembered);
    assert_eq!(counts(&plan), all);
    assert_eq!(&plan.changes[2].added[0].key, expected);
}

#[test]
fn address_of_another_port_is_not_added() {
    let mut bindings = bindings(&[(A, IP_A, 4, HOUR_MS)]);
    bindings.addresses.clear();
    let learned = |port| Evidence {
        learned: vec![learned(A, port)],
        ..evidence(&[4, 5], &[(A, IP_A)])
    };
    assert_eq!(counts(&bindings.plan(&learned(5))), []);
    assert_eq!(bindings.plan(&learned(4)).changes[2].set, ADDRESSES);
    let ended = Evidence {
        now_s: 2000,
        ..learned(4)
    };
    assert_eq!(counts(&bindings.plan(&ended)), []);
}

#[test]
fn port_is_full_with_as_many_hardware_addresses_as_it_may_have() {
    let leases = [(A, IP_A), (B, IP_B)];
    let evidence = |limit| Evidence {
        limit,
        ..evidence(&[4], &leases)
    };
    let mut bindings = bindings(&[(A, IP_A, 4, 1), (B, IP_B, 4, 1)]);
    assert_eq!(counts(&bindings.plan(&evidence(3))), []);
    let plan = bindings.plan(&evidence(2));
    assert_eq!(counts(&plan), [(FULL_PORTS, 0, 1)]);
    let added = plan.changes[0].added[0].clone();
    assert_eq!(added.key, 4_u32.to_ne_bytes());
    assert_eq!(added.timeout_ms, HOUR_MS);
    bindings.full_ports = vec![added];
    assert_eq!(counts(&bindings.plan(&evidence(2))), []);
    assert_eq!(counts(&bindings.plan(&evidence(3))), [(FULL_PORTS, 1, 0)]);
    // The element is renewed in time.
    bindings.full_ports[0].remaining_ms = HOUR_MS / 2;
    assert_eq!(counts(&bindings.plan(&evidence(2))), [(FULL_PORTS, 1, 1)]);
}

#[test]
fn bindings_survive_as_json() {
    let known: BTreeSet<_> = [bound(A, IP_A, 4), bound(B, IP_B, 5)].into();
    let text = serde_json::to_vec(&known).unwrap();
    assert_eq!(
        serde_json::from_slice::<BTreeSet<Binding>>(&text).unwrap(),
        known
    );
}

#[test]
fn restored_elements_have_the_time_that_is_left() {
    let bindings = bindings(&[(A, IP_A, 4, 5_000), (B, IP_B, 5, 1_000)]);
    let now = bindings.read + Duration::from_secs(1);
    let restored = bindings.restored(&[4, 5].into(), now);
    let left = |changes: &[ElementChange]| -> Vec<u64> {
        let added = changes.iter().flat_map(|change| &change.added);
        added.map(|element| element.remaining_ms).collect()
    };
    assert_eq!(left(&restored), [4_000; 3]);
    assert_eq!(left(&bindings.restored(&[5].into(), now)), [0_u64; 0]);
}
