//! Hosts of a rollout.

use buildos_channel::model::Rollout;
use buildos_channel::rollout::{includes, place};
use proptest::prelude::*;

use crate::sample::{channel, host, name};

/// Returns how many of 2,000 hosts take the channel.
fn hosts(percent: u8, since: u64) -> Vec<u32> {
    let mut channel = channel();
    channel.rollout = Rollout { percent, since };
    (0..2000)
        .filter(|number| includes(&channel, &host(*number)))
        .collect()
}

#[test]
fn percentage_of_hosts_takes_the_channel() {
    assert_eq!(hosts(0, 1).len(), 0);
    assert_eq!(hosts(100, 1).len(), 2000);
    for percent in [1, 10, 50, 90] {
        let expected = 20 * usize::from(percent);
        let found = hosts(percent, 1).len();
        // Four standard deviations of 2,000 hosts are 90.
        assert!(found.abs_diff(expected) < 90, "{percent} %: {found}");
    }
}

#[test]
fn next_rollout_begins_with_other_hosts() {
    let (first, second) = (hosts(10, 1), hosts(10, 2));
    let both = first.iter().filter(|host| second.contains(host)).count();
    assert!(both < first.len() / 2, "{both} of {}", first.len());
}

#[test]
fn place_depends_on_channel_name_and_never_changes() {
    // A host that computes another place would leave its rollout.
    assert_eq!(place(&channel(), &host(1)), PLACE_OF_HOST_1);
    let mut canary = channel();
    canary.name = name("canary");
    assert_ne!(place(&canary, &host(1)), PLACE_OF_HOST_1);
    canary.serial += 1;
    let before = place(&canary, &host(1));
    canary.serial += 1;
    assert_eq!(place(&canary, &host(1)), before);
}

const PLACE_OF_HOST_1: u64 = 1421;

proptest! {
    #[test]
    fn taken_host_stays_while_percentage_grows(number: u32, since in 1u64..100, percent in 0u8..100) {
        let mut channel = channel();
        channel.rollout = Rollout { percent, since };
        let before = includes(&channel, &host(number));
        channel.rollout.percent += 1;
        channel.serial += 1;
        prop_assert!(!before || includes(&channel, &host(number)));
    }
}
