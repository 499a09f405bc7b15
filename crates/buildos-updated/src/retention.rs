//! Decides which machines a volume gets, keeps and loses. Pure.
//!
//! | machine | what happens |
//! |---|---|
//! | of the channel, selected, not on the volume | placed; until then its link and revisions stay |
//! | of the channel, selected, on the volume | linked; previous revisions beyond `keep` retire |
//! | not in the channel any more, or not selected | its link goes first, then its revisions retire |
//! | put there by hand | never in this plan |

use std::collections::BTreeSet;

use buildos_channel::model::Machine;
use buildos_channel::{Channel, Digest, Name};
use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// A revision that this program has placed on a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    #[allow(missing_docs)]
    pub name: Name,
    #[allow(missing_docs)]
    pub revision: u64,
    /// Content id.
    pub id: Digest,
}

/// The reason for which a revision stays or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Agents use it by the link.
    Current,
    /// A previous revision that stays: an increment can begin at it, and a way back.
    Previous,
    /// A previous revision beyond the number to keep.
    Superseded,
    /// The channel does not have the machine any more.
    NotInChannel,
    /// No pattern of `machines.select` matches the machine.
    NotSelected,
}

/// What a volume gets, keeps and loses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// Machines to place.
    pub place: Vec<Machine>,
    /// Revisions that stay.
    pub keep: Vec<(Placed, Reason)>,
    /// Links to make, with their revisions.
    pub link: Vec<Placed>,
    /// Machines whose links go.
    pub unlink: BTreeSet<Name>,
    /// Revisions that go once no process uses them.
    pub retire: Vec<(Placed, Reason)>,
}

/// Returns true if the host takes a machine.
#[must_use]
pub fn is_selected(name: &Name, select: &[Pattern]) -> bool {
    select.iter().any(|pattern| pattern.matches(name.as_str()))
}

/// Compares a channel with what was placed on a volume.
#[must_use]
pub fn compare(channel: &Channel, placed: &[Placed], select: &[Pattern], keep: u8) -> Retention {
    let mut out = Retention::default();
    for machine in &channel.machines {
        if is_selected(&machine.name, select) {
            desired(machine, placed, keep, &mut out);
        }
    }
    let is_desired = |name: &Name| {
        let mut machines = channel.machines.iter();
        machines.any(|machine| machine.name == *name && is_selected(name, select))
    };
    for other in placed.iter().filter(|placed| !is_desired(&placed.name)) {
        let in_channel = channel.machines.iter().any(|m| m.name == other.name);
        let reason = match in_channel {
            true => Reason::NotSelected,
            false => Reason::NotInChannel,
        };
        out.unlink.insert(other.name.clone());
        out.retire.push((other.clone(), reason));
    }
    out
}

/// Decides about the revisions of a machine that the host takes.
fn desired(machine: &Machine, placed: &[Placed], keep: u8, out: &mut Retention) {
    let mut mine: Vec<&Placed> = placed
        .iter()
        .filter(|placed| placed.name == machine.name)
        .collect();
    // The newest first.
    mine.sort_by_key(|placed| std::cmp::Reverse(placed.revision));
    // Of two with the same content, the one that the channel names.
    let current = mine
        .iter()
        .filter(|placed| placed.id == machine.id)
        .max_by_key(|placed| placed.revision == machine.revision);
    let Some(current) = current.copied() else {
        out.place.push(machine.clone());
        let kept = mine.into_iter().cloned();
        out.keep
            .extend(kept.map(|placed| (placed, Reason::Previous)));
        return;
    };
    out.link.push(current.clone());
    out.keep.push((current.clone(), Reason::Current));
    let previous = mine.into_iter().filter(|placed| *placed != current);
    for (index, placed) in previous.enumerate() {
        match index < usize::from(keep) {
            true => out.keep.push((placed.clone(), Reason::Previous)),
            false => out.retire.push((placed.clone(), Reason::Superseded)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::Timestamp;
    use buildos_channel::model::{Rollout, Stream};
    use proptest::prelude::*;

    fn id(revision: u64) -> Digest {
        Digest::of(&revision.to_be_bytes())
    }

    fn machine(name: &str, revision: u64) -> Machine {
        let stream = Stream {
            size: 1,
            pieces: id(0),
        };
        Machine {
            name: name.parse().unwrap(),
            revision,
            id: id(revision),
            size: 1,
            whole: stream,
            increments: Vec::new(),
        }
    }

    fn channel(machines: &[(&str, u64)]) -> Channel {
        let machines = machines.iter();
        Channel {
            name: "stable".parse().unwrap(),
            serial: 1,
            valid_until: Timestamp::from_seconds(1),
            os: None,
            agents: Vec::new(),
            toolchains: Vec::new(),
            machines: machines
                .map(|(name, revision)| machine(name, *revision))
                .collect(),
            rollout: Rollout {
                percent: 100,
                since: 1,
            },
        }
    }

    fn placed(revisions: &[(&str, u64)]) -> Vec<Placed> {
        let each = revisions.iter().map(|(name, revision)| Placed {
            name: name.parse().unwrap(),
            revision: *revision,
            id: id(*revision),
        });
        each.collect()
    }

    /// Returns the plan as text: `+m3` place, `@m3` link, `=m2` keep, `-m1` retire, `!m`
    /// unlink.
    fn shown(channel: &Channel, on_volume: &[(&str, u64)], keep: u8) -> String {
        let select = ["m*".parse().unwrap()];
        let plan = compare(channel, &placed(on_volume), &select, keep);
        let name =
            |sign: char, placed: &Placed| format!("{sign}{}{}", placed.name, placed.revision);
        let place = plan
            .place
            .iter()
            .map(|m| format!("+{}{}", m.name, m.revision));
        let link = plan.link.iter().map(|placed| name('@', placed));
        let kept = plan.keep.iter().map(|(placed, _)| name('=', placed));
        let retired = plan.retire.iter().map(|(placed, _)| name('-', placed));
        let unlinked = plan.unlink.iter().map(|name| format!("!{name}"));
        let all = place.chain(link).chain(kept).chain(retired).chain(unlinked);
        all.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn volume_follows_the_channel() {
        let none: &[(&str, u64)] = &[];
        for (wanted, there, keep, expected) in [
            (&[("m", 3)][..], none, 1, "+m3"),
            (&[("m", 3)], &[("m", 2), ("m", 1)][..], 0, "+m3 =m2 =m1"),
            (&[("m", 3)], &[("m", 3)], 1, "@m3 =m3"),
            (
                &[("m", 3)],
                &[("m", 1), ("m", 2), ("m", 3)],
                1,
                "@m3 =m3 =m2 -m1",
            ),
            (
                &[("m", 3)],
                &[("m", 1), ("m", 2), ("m", 3)],
                0,
                "@m3 =m3 -m2 -m1",
            ),
            // An older revision was promoted again.
            (
                &[("m", 2)],
                &[("m", 1), ("m", 2), ("m", 3)],
                1,
                "@m2 =m2 =m3 -m1",
            ),
            (&[("m2", 9)], &[("m", 1)], 1, "+m29 -m1 !m"),
            // The channel has it, but this host does not take it.
            (&[("x", 1)], &[("x", 1)], 1, "-x1 !x"),
            (&[("x", 1)], none, 1, ""),
        ] {
            assert_eq!(
                shown(&channel(wanted), there, keep),
                expected,
                "{wanted:?} {there:?}"
            );
        }
    }

    #[test]
    fn same_content_under_a_new_number_is_not_fetched_again() {
        let mut wanted = channel(&[("m", 3)]);
        wanted.machines[0].revision = 4;
        assert_eq!(shown(&wanted, &[("m", 3)], 1), "@m3 =m3");
    }

    proptest! {
        #[test]
        fn each_revision_has_one_fate_and_links_stay_valid(
            wanted in proptest::collection::btree_map("[a-c]", 1u64..5, 0..3),
            there in proptest::collection::btree_set(("[a-c]", 1u64..5), 0..8),
            keep in 0u8..3,
        ) {
            let wanted: Vec<(&str, u64)> = wanted.iter().map(|(n, r)| (n.as_str(), *r)).collect();
            let there: Vec<(&str, u64)> = there.iter().map(|(n, r)| (n.as_str(), *r)).collect();
            let on_volume = placed(&there);
            let plan = compare(&channel(&wanted), &on_volume, &[Pattern::all()], keep);
            for revision in &on_volume {
                let kept = plan.keep.iter().filter(|(k, _)| k == revision).count();
                let retired = plan.retire.iter().filter(|(r, _)| r == revision).count();
                prop_assert_eq!(kept + retired, 1);
            }
            for linked in &plan.link {
                prop_assert!(plan.keep.iter().any(|(kept, _)| kept == linked));
                prop_assert!(!plan.unlink.contains(&linked.name));
            }
            // Nothing of a machine goes before its new revision is there.
            for machine in &plan.place {
                prop_assert!(plan.retire.iter().all(|(r, _)| r.name != machine.name));
                prop_assert!(!plan.unlink.contains(&machine.name));
            }
        }
    }
}
