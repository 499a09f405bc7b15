//! Decides which machines a volume gets, keeps and loses. Pure.
//!
//! | machine | what happens |
//! |---|---|
//! | of the channel, selected, not on the volume | placed; until then its link and revisions stay |
//! | of the channel, selected, on the volume | linked; previous revisions beyond `keep` retire |
//! | not in the channel any more, or not selected | its link goes first, then its revisions retire |
//! | pinned, the revision on the volume | linked at it, in the channel or not; no other is placed |
//! | pinned, the revision missing | placed if the channel has it; nothing else changes |
//! | removed by an operator | as not selected |
//! | put there by hand | never in this plan |
//!
//! While updates are held, everything stays as it is.

use std::collections::BTreeSet;

use buildos_channel::model::{Kind, Machine};
use buildos_channel::{Channel, Digest, Name};
use serde::{Deserialize, Serialize};

use crate::choices::Choices;
use crate::pattern::Pattern;

/// A revision that this program has placed on a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    #[allow(missing_docs)]
    pub kind: Kind,
    #[allow(missing_docs)]
    pub name: Name,
    #[allow(missing_docs)]
    pub revision: u64,
    /// Content id.
    pub id: Digest,
}

impl Placed {
    /// Returns true for a revision of a machine. One name can have been that of a container.
    fn is_of(&self, machine: &Machine) -> bool {
        self.name == machine.name && self.kind == machine.kind
    }
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
    /// An operator has pinned the machine at this revision.
    Pinned,
    /// An operator has pinned the machine at a revision that is not on the volume.
    PinMissing,
    /// An operator has removed the machine.
    Removed,
    /// Updates are held.
    Held,
}

/// Which machines of a channel a host takes, and what it keeps of them.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// `machines.select`.
    pub patterns: &'a [Pattern],
    /// Previous revisions of a machine that stay.
    pub keep: u8,
    /// Choices of the operator.
    pub choices: &'a Choices,
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
    pub unlink: BTreeSet<(Kind, Name)>,
    /// Revisions that go once no process uses them.
    pub retire: Vec<(Placed, Reason)>,
}

/// Compares a channel with what was placed on a volume.
#[must_use]
pub fn compare(channel: &Channel, placed: &[Placed], selection: &Selection<'_>) -> Retention {
    let mut out = Retention::default();
    let choices = selection.choices;
    if choices.hold.is_some() {
        let kept = placed.iter().cloned();
        out.keep = kept.map(|placed| (placed, Reason::Held)).collect();
        return out;
    }
    let mut decided = BTreeSet::new();
    for machine in &channel.machines {
        let name = &machine.name;
        match choices.pinned(name) {
            Some(revision) => {
                let mine = newest_first(machine.kind, name, placed);
                pinned(revision, Some(machine), &mine, selection.keep, &mut out);
            }
            None if choices.select(name, selection.patterns) => {
                desired(machine, placed, selection.keep, &mut out);
            }
            None => continue,
        }
        decided.insert((machine.kind, name));
    }
    let others = placed.iter().map(|placed| (placed.kind, &placed.name));
    let others: BTreeSet<_> = others.filter(|other| !decided.contains(other)).collect();
    for (kind, name) in others {
        let mine = newest_first(kind, name, placed);
        // One name can have been that of a container: only one kind has the pinned revision.
        let pin = choices.pinned(name).filter(|pin| {
            let is_there = mine.iter().any(|placed| placed.revision == *pin);
            is_there || !decided.iter().any(|(_, decided)| *decided == name)
        });
        if let Some(revision) = pin {
            pinned(revision, None, &mine, selection.keep, &mut out);
            continue;
        }
        let mut machines = channel.machines.iter();
        let in_channel = machines.any(|machine| mine.iter().any(|placed| placed.is_of(machine)));
        let reason = match in_channel {
            _ if choices.is_removed(name) => Reason::Removed,
            true => Reason::NotSelected,
            false => Reason::NotInChannel,
        };
        out.unlink.insert((kind, name.clone()));
        let mine = mine.into_iter().cloned();
        out.retire.extend(mine.map(|placed| (placed, reason)));
    }
    out
}

/// Decides about the revisions of a pinned machine.
fn pinned(
    revision: u64,
    machine: Option<&Machine>,
    mine: &[&Placed],
    keep: u8,
    out: &mut Retention,
) {
    let mut revisions = mine.iter().copied();
    match revisions.find(|placed| placed.revision == revision) {
        Some(current) => current_is(current, Reason::Pinned, mine, keep, out),
        None => {
            // As on a new disk.
            let machine = machine.filter(|machine| machine.revision == revision);
            out.place.extend(machine.cloned());
            let kept = mine.iter().copied().cloned();
            out.keep
                .extend(kept.map(|placed| (placed, Reason::PinMissing)));
        }
    }
}

fn newest_first<'a>(kind: Kind, name: &Name, placed: &'a [Placed]) -> Vec<&'a Placed> {
    let mine = placed.iter();
    let mine = mine.filter(|placed| placed.kind == kind && placed.name == *name);
    let mut mine: Vec<_> = mine.collect();
    mine.sort_by_key(|placed| std::cmp::Reverse(placed.revision));
    mine
}

/// Links a revision, and keeps some of the others.
fn current_is(current: &Placed, reason: Reason, mine: &[&Placed], keep: u8, out: &mut Retention) {
    out.link.push(current.clone());
    out.keep.push((current.clone(), reason));
    let previous = mine.iter().copied().filter(|placed| *placed != current);
    for (index, placed) in previous.enumerate() {
        match index < usize::from(keep) {
            true => out.keep.push((placed.clone(), Reason::Previous)),
            false => out.retire.push((placed.clone(), Reason::Superseded)),
        }
    }
}

/// Decides about the revisions of a machine that the host takes.
fn desired(machine: &Machine, placed: &[Placed], keep: u8, out: &mut Retention) {
    let mine = newest_first(machine.kind, &machine.name, placed);
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
    current_is(current, Reason::Current, &mine, keep, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::Choice;
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
            kind: Kind::Machine,
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
            kind: Kind::Machine,
            name: name.parse().unwrap(),
            revision: *revision,
            id: id(*revision),
        });
        each.collect()
    }

    /// Returns the plan as text: `+m3` place, `@m3` link, `=m2` keep, `-m1` retire, `!m`
    /// unlink.
    fn shown(channel: &Channel, on_volume: &[(&str, u64)], keep: u8) -> String {
        chosen(channel, on_volume, keep, &Choices::default())
    }

    fn chosen(channel: &Channel, on_volume: &[(&str, u64)], keep: u8, choices: &Choices) -> String {
        let selection = Selection {
            patterns: &["m*".parse().unwrap()],
            keep,
            choices,
        };
        let plan = compare(channel, &placed(on_volume), &selection);
        let name =
            |sign: char, placed: &Placed| format!("{sign}{}{}", placed.name, placed.revision);
        let place = plan
            .place
            .iter()
            .map(|m| format!("+{}{}", m.name, m.revision));
        let link = plan.link.iter().map(|placed| name('@', placed));
        let kept = plan.keep.iter().map(|(placed, _)| name('=', placed));
        let retired = plan.retire.iter().map(|(placed, _)| name('-', placed));
        let unlinked = plan.unlink.iter().map(|(_, name)| format!("!{name}"));
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
    fn volume_follows_the_choices_of_the_operator() {
        let file = |text: &str| Choices::parse(text.as_bytes()).unwrap();
        let none: &[(&str, u64)] = &[];
        for (choices, wanted, there, expected) in [
            // Nothing newer is fetched or made current, and the pinned revision stays.
            (
                r#""pinned":{"m":1}"#,
                &[("m", 4)][..],
                &[("m", 1)][..],
                "@m1 =m1",
            ),
            (
                r#""pinned":{"m":1}"#,
                &[("m", 4)],
                &[("m", 1), ("m", 2), ("m", 3), ("m", 4)],
                "@m1 =m1 =m4 -m3 -m2",
            ),
            // A pinned machine outlives its entry in the channel, and the pattern.
            (
                r#""pinned":{"m":1}"#,
                &[],
                &[("m", 1), ("m2", 1)],
                "@m1 =m1 -m21 !m2",
            ),
            (r#""pinned":{"x":1}"#, &[("x", 2)], &[("x", 1)], "@x1 =x1"),
            // As on a new disk.
            (r#""pinned":{"m":4}"#, &[("m", 4)], none, "+m4"),
            (r#""pinned":{"m":3}"#, &[("m", 4)], &[("m", 2)], "=m2"),
            (r#""removed":["m"]"#, &[("m", 4)], &[("m", 4)], "-m4 !m"),
            (r#""removed":["m"]"#, &[("m", 4)], none, ""),
            (r#""added":["x"]"#, &[("x", 4)], none, "+x4"),
            (r#""added":["x"]"#, &[("x", 4)], &[("x", 4)], "@x4 =x4"),
            (r#""added":["x"]"#, &[], &[("x", 4)], "-x4 !x"),
            (
                r#""hold":"release""#,
                &[("m", 4)],
                &[("m", 1), ("m", 2), ("m2", 1)],
                "=m1 =m2 =m21",
            ),
        ] {
            assert_eq!(
                chosen(
                    &channel(wanted),
                    there,
                    1,
                    &file(&format!(r#"{{"schema":1,{choices}}}"#))
                ),
                expected,
                "{choices} {wanted:?} {there:?}"
            );
        }
    }

    #[test]
    fn same_content_under_a_new_number_is_not_fetched_again() {
        let mut wanted = channel(&[("m", 3)]);
        wanted.machines[0].revision = 4;
        assert_eq!(shown(&wanted, &[("m", 3)], 1), "@m3 =m3");
    }

    #[test]
    fn container_with_the_name_of_a_machine_takes_its_place() {
        let mut channel = channel(&[("m", 2)]);
        for machine in &mut channel.machines {
            machine.kind = Kind::Container;
        }
        let was = placed(&[("m", 1)]);
        let choices = Choices::default();
        let selection = Selection {
            patterns: &[Pattern::all()],
            keep: 1,
            choices: &choices,
        };
        let plan = compare(&channel, &was, &selection);
        assert_eq!(plan.place, channel.machines);
        let machine = (Kind::Machine, "m".parse().unwrap());
        assert_eq!(plan.unlink, BTreeSet::from([machine]));
        assert_eq!(plan.retire, [(was[0].clone(), Reason::NotInChannel)]);
    }

    proptest! {
        #[test]
        fn each_revision_has_one_fate_and_links_stay_valid(
            wanted in proptest::collection::btree_map("[a-c]", 1u64..5, 0..3),
            there in proptest::collection::btree_set(("[a-c]", 1u64..5), 0..8),
            keep in 0u8..3,
            pin in proptest::option::of(("[a-c]", 1u64..5)),
            removed in proptest::option::of("[a-c]"),
        ) {
            let wanted: Vec<(&str, u64)> = wanted.iter().map(|(n, r)| (n.as_str(), *r)).collect();
            let there: Vec<(&str, u64)> = there.iter().map(|(n, r)| (n.as_str(), *r)).collect();
            let on_volume = placed(&there);
            let mut choices = Choices::default();
            if let Some(pin) = pin {
                let (pinned, revision) = pin;
                let choice = Choice::Pinned { revision };
                choices.machines.insert(pinned.parse().unwrap(), choice);
            }
            if let Some(removed) = removed {
                choices.machines.insert(removed.parse().unwrap(), Choice::Removed);
            }
            let selection = Selection {
                patterns: &[Pattern::all()],
                keep,
                choices: &choices,
            };
            let plan = compare(&channel(&wanted), &on_volume, &selection);
            for revision in &on_volume {
                let kept = plan.keep.iter().filter(|(k, _)| k == revision).count();
                let retired = plan.retire.iter().filter(|(r, _)| r == revision).count();
                prop_assert_eq!(kept + retired, 1);
            }
            for linked in &plan.link {
                prop_assert!(plan.keep.iter().any(|(kept, _)| kept == linked));
                prop_assert!(!plan.unlink.contains(&(Kind::Machine, linked.name.clone())));
            }
            for revision in &on_volume {
                if choices.pinned(&revision.name) == Some(revision.revision) {
                    prop_assert!(plan.link.contains(revision));
                }
            }
            for machine in &plan.place {
                prop_assert!(!choices.is_removed(&machine.name));
            }
            // Nothing of a machine goes before its new revision is there.
            for machine in &plan.place {
                prop_assert!(plan.retire.iter().all(|(r, _)| r.name != machine.name));
                prop_assert!(!plan.unlink.contains(&(Kind::Machine, machine.name.clone())));
            }
        }
    }
}
