//! Applies changes to the choices, and refuses those that can have no effect. Pure.

use std::collections::BTreeSet;

use buildos_channel::Name;

use super::{Choice, Choices, MACHINES, REASON, is_reason};
use crate::pattern::Pattern;
use crate::retention::Placed;

/// A change that an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing is fetched, placed or removed until [`Change::Resume`], for this reason.
    Hold(String),
    /// Ends the hold.
    Resume,
    /// Keeps a machine at a revision; [`None`] is the current one.
    Pin(String, Option<u64>),
    /// Lets a machine follow the channel again.
    Unpin(String),
    /// Takes a machine of the channel.
    Add(String),
    /// Removes a machine, and does not take it again.
    Remove(String),
}

/// What the host knows about machines.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Machines of the accepted channel; [`None`] before the first run.
    pub channel: Option<&'a [Name]>,
    /// Revisions on the volume.
    pub placed: &'a [Placed],
    /// Revisions that links name.
    pub current: &'a [Placed],
    /// `machines.select`.
    pub patterns: &'a [Pattern],
}

/// A change that is refused, with what the operator can do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[allow(missing_docs)]
    #[error("the reason is not one line of at most {REASON} characters")]
    Reason,
    #[allow(missing_docs)]
    #[error("updates are not held")]
    NotHeld,
    /// The machine is unknown: its name, where it was looked for, the nearest name.
    #[error("there is no machine {name} {place}{}", or_nearest(.nearest.as_ref()))]
    Unknown {
        #[allow(missing_docs)]
        name: String,
        #[allow(missing_docs)]
        place: &'static str,
        #[allow(missing_docs)]
        nearest: Option<String>,
    },
    #[allow(missing_docs)]
    #[error("no channel was accepted since boot: run buildosctl update check --wait first")]
    NoChannel,
    #[allow(missing_docs)]
    #[error("no revision of machine {0} is current: name one of {1}")]
    NoCurrent(Name, String),
    #[allow(missing_docs)]
    #[error("revision {revision} of machine {name} is not on the volume; {there} there")]
    NoRevision {
        #[allow(missing_docs)]
        name: Name,
        #[allow(missing_docs)]
        revision: u64,
        #[allow(missing_docs)]
        there: String,
    },
    #[allow(missing_docs)]
    #[error("machine {0} is not pinned{1}")]
    NotPinned(Name, String),
    #[allow(missing_docs)]
    #[error("machine {0} is removed: add it first, with buildosctl machines add {0}")]
    IsRemoved(Name),
    #[allow(missing_docs)]
    #[error("machine {0} is taken already")]
    IsTaken(Name),
    #[allow(missing_docs)]
    #[error("machine {0} is removed already")]
    WasRemoved(Name),
    #[allow(missing_docs)]
    #[error("machine {0} is not taken: no pattern of machines.select matches it")]
    NotTaken(Name),
    #[allow(missing_docs)]
    #[error("there are choices about {MACHINES} machines: unpin or add some first")]
    TooMany,
}

fn or_nearest(nearest: Option<&String>) -> String {
    nearest.map_or_else(String::new, |name| format!("; the nearest name is {name}"))
}

impl Known<'_> {
    fn revisions(&self, name: &Name) -> Vec<u64> {
        let mine = self.placed.iter().filter(|placed| placed.name == *name);
        let revisions: BTreeSet<u64> = mine.map(|placed| placed.revision).collect();
        revisions.into_iter().collect()
    }

    fn in_channel(&self) -> impl Iterator<Item = &Name> {
        self.channel.into_iter().flatten()
    }

    /// Finds a machine among names.
    fn find<'n>(
        name: &str,
        mut names: impl Iterator<Item = &'n Name> + Clone,
        place: &'static str,
    ) -> Result<Name, Refused> {
        let candidates = names.clone();
        names
            .find(|known| known.as_str() == name)
            .cloned()
            .ok_or_else(|| Refused::Unknown {
                name: buildos_types::Escaped::received(name).to_string(),
                place,
                nearest: nearest(name, candidates),
            })
    }
}

/// Returns the name with the smallest edit distance, if one is similar.
fn nearest<'n>(given: &str, names: impl Iterator<Item = &'n Name>) -> Option<String> {
    if given.len() > Name::LONGEST {
        return None;
    }
    names
        .map(|name| (strsim::osa_distance(name.as_str(), given), name))
        .filter(|(distance, name)| *distance <= name.as_str().len().max(3) / 2)
        .min()
        .map(|(_, name)| name.to_string())
}

fn listed(revisions: &[u64]) -> String {
    let each: Vec<_> = revisions.iter().map(u64::to_string).collect();
    each.join(", ")
}

/// Applies a change.
///
/// # Errors
///
/// [`Refused`]; the choices are as before.
pub fn apply(change: &Change, choices: &mut Choices, known: &Known<'_>) -> Result<(), Refused> {
    match change {
        Change::Hold(reason) if !is_reason(reason) => Err(Refused::Reason),
        Change::Hold(reason) => {
            choices.hold = Some(reason.clone());
            Ok(())
        }
        Change::Resume => choices.hold.take().map(drop).ok_or(Refused::NotHeld),
        Change::Pin(name, revision) => pin(name, *revision, choices, known),
        Change::Unpin(name) => unpin(name, choices, known),
        Change::Add(name) => add(name, choices, known),
        Change::Remove(name) => remove(name, choices, known),
    }
}

fn insert(choices: &mut Choices, name: Name, choice: Choice) -> Result<(), Refused> {
    let is_full = choices.machines.len() >= MACHINES && !choices.machines.contains_key(&name);
    match is_full {
        true => Err(Refused::TooMany),
        false => {
            choices.machines.insert(name, choice);
            Ok(())
        }
    }
}

fn pin(
    name: &str,
    revision: Option<u64>,
    choices: &mut Choices,
    known: &Known<'_>,
) -> Result<(), Refused> {
    let names = known.placed.iter().map(|placed| &placed.name);
    let name = Known::find(name, names, "on the volume")?;
    if choices.is_removed(&name) {
        return Err(Refused::IsRemoved(name));
    }
    let there = known.revisions(&name);
    let mut current = known.current.iter();
    let current = current.find(|placed| placed.name == name);
    let revision = match revision.or_else(|| current.map(|placed| placed.revision)) {
        Some(revision) => revision,
        None => return Err(Refused::NoCurrent(name, listed(&there))),
    };
    if !there.contains(&revision) {
        let there = match there.as_slice() {
            [one] => format!("revision {one} is"),
            more => format!("revisions {} are", listed(more)),
        };
        return Err(Refused::NoRevision {
            name,
            revision,
            there,
        });
    }
    let choice = match choices.is_added(&name) {
        true => Choice::Added {
            pin: Some(revision),
        },
        false => Choice::Pinned { revision },
    };
    insert(choices, name, choice)
}

fn unpin(name: &str, choices: &mut Choices, known: &Known<'_>) -> Result<(), Refused> {
    let pinned: BTreeSet<Name> = choices
        .machines
        .keys()
        .filter(|name| choices.pinned(name).is_some())
        .cloned()
        .collect();
    let on_volume = known.placed.iter().map(|placed| &placed.name);
    let names = pinned.iter().chain(on_volume).chain(known.in_channel());
    let names: Vec<&Name> = names.collect();
    let name = Known::find(name, names.into_iter(), "with a choice or on the volume")?;
    if !pinned.contains(&name) {
        let others: Vec<_> = pinned.iter().map(Name::as_str).collect();
        let others = match others.is_empty() {
            true => String::new(),
            false => format!("; pinned are {}", others.join(", ")),
        };
        return Err(Refused::NotPinned(name, others));
    }
    match choices.is_added(&name) {
        true => insert(choices, name, Choice::Added { pin: None }),
        false => {
            choices.machines.remove(&name);
            Ok(())
        }
    }
}

fn add(name: &str, choices: &mut Choices, known: &Known<'_>) -> Result<(), Refused> {
    if known.channel.is_none() {
        return Err(Refused::NoChannel);
    }
    let in_channel: Vec<&Name> = known.in_channel().collect();
    let name = Known::find(name, in_channel.into_iter(), "in the channel")?;
    match choices.machines.get(&name) {
        Some(Choice::Added { .. }) => return Err(Refused::IsTaken(name)),
        Some(Choice::Removed) => drop(choices.machines.remove(&name)),
        Some(Choice::Pinned { .. }) | None if choices.select(&name, known.patterns) => {
            return Err(Refused::IsTaken(name));
        }
        Some(Choice::Pinned { .. }) | None => {}
    }
    match choices.select(&name, known.patterns) {
        true => Ok(()),
        false => {
            let pin = choices.pinned(&name);
            insert(choices, name, Choice::Added { pin })
        }
    }
}

fn remove(name: &str, choices: &mut Choices, known: &Known<'_>) -> Result<(), Refused> {
    let on_volume = known.placed.iter().map(|placed| &placed.name);
    let names: Vec<&Name> = on_volume.chain(known.in_channel()).collect();
    let chosen: Vec<Name> = choices.machines.keys().cloned().collect();
    let names = names.into_iter().chain(&chosen);
    let name = Known::find(name, names, "in the channel or on the volume")?;
    let by_pattern = known.patterns.iter().any(|p| p.matches(name.as_str()));
    match (choices.machines.get(&name), by_pattern) {
        (Some(Choice::Removed), _) => Err(Refused::WasRemoved(name)),
        (_, true) => insert(choices, name, Choice::Removed),
        (Some(Choice::Added { .. } | Choice::Pinned { .. }), false) => {
            choices.machines.remove(&name);
            Ok(())
        }
        // A revision that still waits for its processes is going already.
        (None, false) => Err(Refused::NotTaken(name)),
    }
}
