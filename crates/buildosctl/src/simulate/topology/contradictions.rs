//! Finds errors between several keys of a description.

use std::collections::{BTreeMap, BTreeSet};

use buildos_netd::observed::{PRIVATE_BRIDGE, PUBLIC_BRIDGE};

use super::model::{Behaviour, Segment, Topology, Word};

/// Returns the errors, one line each.
pub(super) fn find(topology: &Topology) -> Vec<String> {
    let mut found = nics(topology);
    found.extend(servers(topology));
    found.extend(neighbours(topology));
    for name in topology.ports.keys() {
        if topology.nics.contains_key(name) {
            found.push(format!("port.{name}: is described as a NIC, too"));
        }
    }
    found
}

fn nics(topology: &Topology) -> Vec<String> {
    let mut found = Vec::new();
    if topology.nics.is_empty() {
        found.push("there is no NIC; describe one as [nic.enp1s0] with its mac".to_owned());
    }
    let mut macs = BTreeMap::new();
    for (name, nic) in &topology.nics {
        if nic.mac.0 == [0; 6] {
            found.push(format!("nic.{name}: mac is missing"));
        } else if let Some(other) = macs.insert(nic.mac, name) {
            found.push(format!("nic.{name}: has the mac of nic.{other}"));
        }
        if [PUBLIC_BRIDGE, PRIVATE_BRIDGE, "lo"].contains(&name.as_str()) {
            found.push(format!("nic.{name}: a NIC cannot have this name"));
        }
    }
    found
}

fn servers(topology: &Topology) -> Vec<String> {
    let mut found = Vec::new();
    for (Word(name), server) in &topology.servers {
        if server.address.is_unspecified() {
            found.push(format!("server.{name}: address is missing"));
        }
        if server.offers.is_empty() && server.behaviour != Behaviour::Silent {
            found.push(format!(
                "server.{name}: offers is missing (\"192.0.2.10/24\")"
            ));
        }
        let unreached = unreached(topology, &server.segment);
        found.extend(unreached.map(|why| format!("server.{name}: {why}")));
    }
    found
}

fn neighbours(topology: &Topology) -> Vec<String> {
    let mut found = Vec::new();
    for (Word(name), neighbour) in &topology.neighbours {
        if neighbour.address.is_unspecified() {
            found.push(format!("neighbour.{name}: address is missing"));
        }
        let unreached = unreached(topology, &neighbour.segment);
        found.extend(unreached.map(|why| format!("neighbour.{name}: {why}")));
    }
    found
}

/// Returns an error if no NIC is on the segment.
fn unreached(topology: &Topology, segment: &Segment) -> Option<String> {
    let segments: BTreeSet<&Segment> = topology.nics.values().map(|nic| &nic.segment).collect();
    if segments.contains(segment) {
        return None;
    }
    let known: Vec<_> = segments.iter().map(|Word(name)| name.as_str()).collect();
    let (known, Word(segment)) = (known.join(", "), segment);
    Some(format!(
        "no NIC is on segment {segment:?}; the NICs are on {known}"
    ))
}
