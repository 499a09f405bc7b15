//! Fuzzes the parsers of rtnetlink messages with mutated messages of a kernel: by default
//! 20,000 per target, see [`buildos_fuzz`].

use std::time::Duration;

use buildos_fuzz::{Generator, executions, mutate};
use buildos_types::LinkIndex;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::parse;
use crate::desired::Desired;
use crate::observed::{Link, Observed, Vlan};
use crate::plan::plan;
use crate::settings::Settings;
use crate::uplink::candidate;
use crate::uplink::path::Uplink;

/// Messages as hexadecimal digits. Comments separate them.
const MESSAGES: &str = include_str!("../../tests/golden/netlink.txt");
const NOW: Duration = Duration::from_secs(1000);
/// Length of the netlink header.
const HEADER: usize = 16;

fn messages() -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    for line in MESSAGES.lines() {
        match (line.starts_with('#'), messages.last_mut()) {
            (false, Some(message)) => {
                let digits = |at| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
                message.extend((0..line.len()).step_by(2).map(digits));
            }
            _ => messages.push(Vec::new()),
        }
    }
    messages.retain(|message| !message.is_empty());
    messages
}

/// Adds what netd reads from a message. Returns false if the message cannot be decoded.
fn read(bytes: &[u8], observed: &mut Observed) -> bool {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes);
    let Ok(NetlinkPayload::InnerMessage(message)) = message.map(|message| message.payload) else {
        return false;
    };
    #[allow(clippy::wildcard_enum_match_arm)] // netd requests three kinds.
    match message {
        RouteNetlinkMessage::NewLink(message) => {
            let link = parse::link(&message);
            observed.links.extend(link.map(|link| (link.index, link)));
        }
        RouteNetlinkMessage::NewAddress(message) => {
            observed.ipv6.extend(parse::ipv6_address(&message));
            match parse::address(&message, NOW) {
                Some((address, true)) => observed.addresses.push(address),
                Some((other, false)) => observed.other_addresses.push((other.link, other.net)),
                None => {}
            }
        }
        RouteNetlinkMessage::NewRoute(message) => observed.routes.extend(parse::route(&message)),
        _ => return false,
    }
    true
}

fn check(observed: &Observed) {
    for Link {
        name,
        mac,
        ethernet,
        ..
    } in observed.links.values()
    {
        assert!(mac.is_none() || *ethernet);
        assert!(!name.to_string().contains(['/', '\0', '\n']), "{name:?}");
    }
    for address in &observed.addresses {
        let latest = NOW + Duration::from_secs(u32::MAX.into());
        assert!(address.expires.is_none_or(|at| (NOW..latest).contains(&at)));
    }
    for route in &observed.routes {
        assert_eq!(
            route.route.is_default(),
            route.route.destination.prefix_len() == 0
        );
    }
}

#[test]
fn unchanged_messages_are_read() {
    let mut observed = Observed::default();
    assert!(
        messages()
            .iter()
            .all(|message| read(message, &mut observed))
    );
    check(&observed);
    let counts = (
        observed.links.len(),
        observed.routes.len(),
        observed.ipv6.len(),
    );
    assert_eq!(counts, (4, 2, 1), "{observed:?}");
    let vlans = observed.links.values().filter_map(Link::own_vlan);
    let expected = Vlan {
        nic: LinkIndex::new(5).unwrap(),
        id: 42,
        is_own: true,
    };
    assert_eq!(vlans.collect::<Vec<_>>(), [expected]);
    assert_eq!(
        (observed.addresses.len(), observed.other_addresses.len()),
        (1, 1)
    );
}

#[test]
fn mutated_messages_are_read_or_refused() {
    let (messages, mut random) = (messages(), Generator::new(1));
    let mut usable = 0u64;
    for _ in 0..executions(20_000) {
        let mut bytes = random.one_of(&messages).clone();
        let first = random.one_of(&[HEADER, 40]);
        mutate(&mut bytes, *first, &mut random);
        // Otherwise most messages end before the first attribute.
        if random.below(4) != 0 {
            let length = bytes.len() as u32;
            bytes.splice(..4.min(bytes.len()), length.to_ne_bytes());
        }
        let mut observed = Observed::default();
        usable += u64::from(read(&bytes, &mut observed));
        check(&observed);
    }
    assert!(
        usable > executions(20_000) / 50,
        "only {usable} usable messages"
    );
}

/// A kernel of a later version can have other values in the same attributes.
#[test]
fn mutated_states_of_a_kernel_have_candidates_and_a_bounded_plan() {
    let (messages, mut random) = (messages(), Generator::new(2));
    let tagged = Uplink {
        links: vec!["*".to_owned().try_into().unwrap()],
        vlan: Some(42.try_into().unwrap()),
    };
    let settings = [
        Settings::default(),
        Settings {
            uplinks: [("lan".parse().unwrap(), tagged)].into(),
            ..Settings::default()
        },
    ];
    let mut planned = 0u64;
    for _ in 0..executions(20_000) {
        let mut observed = Observed::default();
        for message in &messages {
            let mut bytes = message.clone();
            // Each byte keeps its place, so attributes keep their limits.
            for _ in 0..random.below(4) {
                let at = HEADER + random.below(bytes.len() - HEADER);
                bytes[at] = random.next() as u8;
            }
            read(&bytes, &mut observed);
        }
        check(&observed);
        let settings = random.one_of(&settings);
        let candidates = candidate::list(&observed, settings);
        assert!(candidates.len() <= observed.links.len());
        let desired = Desired {
            nics: candidate::nics(&observed, &[]),
            up: candidates.iter().map(|candidate| candidate.index).collect(),
            uplink: candidates.first().map(|candidate| candidate.index),
            vlans: candidate::vlans(&observed, settings),
            metric: settings.route_metric,
            mtu: Some(9000),
            ipv6: true,
            ..Desired::default()
        };
        let plan = plan(&desired, &observed);
        planned += u64::from(!candidates.is_empty());
        assert!(plan.len() <= 40, "{plan:?}");
        assert!(plan.iter().all(|op| !op.describe(&observed).is_empty()));
    }
    assert!(planned > 0);
}
