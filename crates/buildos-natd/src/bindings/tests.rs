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

fn evidence(ports: &[u32], leases: &[(MacAddress, Ipv4Addr)]) -> Evidence {
    let lease = |(mac, address): &(MacAddress, Ipv4Addr)| Lease {
        mac: *mac,
        address: *address,
        expires: 2000,
    };
    Evidence {
        ports: ports.iter().copied().collect(),
        leases: Some(leases.iter().map(lease).collect()),
        learned: Vec::new(),
        now_s: 1000,
        lease: LEASE,
    }
}

fn learned(mac: MacAddress, port: u32) -> Learned {
    Learned {
        mac,
        port: LinkIndex::new(port).unwrap(),
    }
}

/// Returns set, removed and added number of elements of each change.
fn counts(plan: &[ElementChange]) -> Vec<(&str, usize, usize)> {
    let changes = plan.iter();
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

#[test]
fn complete_sets_are_unchanged() {
    let bindings = bindings(&[(A, IP_A, 4, 1), (B, IP_B, 5, 1)]);
    let plan = bindings.plan(&evidence(&[4, 5], &[(A, IP_A), (B, IP_B)]));
    assert_eq!(plan, []);
}

#[test]
fn port_that_is_gone_takes_its_elements_with_it() {
    let bindings = bindings(&[(A, IP_A, 4, HOUR_MS), (B, IP_B, 5, HOUR_MS)]);
    let plan = bindings.plan(&evidence(&[5], &[(A, IP_A), (B, IP_B)]));
    assert_eq!(
        counts(&plan),
        [(HARDWARE_ADDRESSES, 1, 0), (PORTS, 1, 0), (ADDRESSES, 1, 0)]
    );
}

#[test]
fn address_goes_with_its_lease() {
    let bindings = bindings(&[(A, IP_A, 4, HOUR_MS - 11_000)]);
    let plan = bindings.plan(&evidence(&[4], &[]));
    assert_eq!(counts(&plan), [(ADDRESSES, 1, 0)]);
    // The address now belongs to the other machine.
    let plan = bindings.plan(&evidence(&[4], &[(B, IP_A)]));
    assert_eq!(counts(&plan), [(ADDRESSES, 1, 0)]);
}

#[test]
fn new_address_does_not_need_a_line_in_the_lease_file() {
    let new = bindings(&[(A, IP_A, 4, HOUR_MS - 9_000)]);
    assert_eq!(new.plan(&evidence(&[4], &[])), []);
    assert!(new.is_pending(&evidence(&[4], &[])));
    assert!(!new.is_pending(&evidence(&[4], &[(A, IP_A)])));
    let old = bindings(&[(A, IP_A, 4, 1)]);
    let unreadable = Evidence {
        leases: None,
        ..evidence(&[4], &[])
    };
    assert_eq!(old.plan(&unreadable), []);
}

#[test]
fn lost_elements_of_lease_are_added_for_learned_port() {
    let learned = |mac, port| Evidence {
        learned: vec![learned(mac, port)],
        ..evidence(&[4, 5], &[(A, IP_A)])
    };
    let plan = bindings(&[]).plan(&learned(A, 4));
    assert_eq!(
        counts(&plan),
        [(HARDWARE_ADDRESSES, 0, 1), (PORTS, 0, 1), (ADDRESSES, 0, 1)]
    );
    let expected = &bindings(&[(A, IP_A, 4, 0)]).addresses[0].key;
    let added = &plan[2].added[0];
    assert_eq!(&added.key, expected);
    assert_eq!(added.remaining_ms, 1_060_000);
    // br1 has not learned the machine, or only on a port that is gone.
    assert_eq!(bindings(&[]).plan(&learned(B, 4)), []);
    assert_eq!(bindings(&[]).plan(&learned(A, 6)), []);
}

#[test]
fn address_of_another_port_is_not_added() {
    let mut bindings = bindings(&[(A, IP_A, 4, HOUR_MS)]);
    bindings.addresses.clear();
    let learned = |port| Evidence {
        learned: vec![learned(A, port)],
        ..evidence(&[4, 5], &[(A, IP_A)])
    };
    assert_eq!(bindings.plan(&learned(5)), []);
    assert_eq!(bindings.plan(&learned(4))[2].set, ADDRESSES);
    let ended = Evidence {
        now_s: 2000,
        ..learned(4)
    };
    assert_eq!(bindings.plan(&ended), []);
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
