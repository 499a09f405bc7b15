//! Keeps the choices of the operator: what a host does differently from its configuration.
//!
//! | choice | effect |
//! |---|---|
//! | hold | nothing is fetched, placed or removed |
//! | added | the machine is taken although `machines.select` does not match it |
//! | removed | the machine leaves, and is not taken until it is added |
//! | pinned | the link stays at a revision on the volume, and no other one is fetched |
//!
//! The choices are one file of the daemon. `buildos-state` copies it to the state volume, and
//! copies the file of the former boot into `/run`. The volume can appear after the first choice,
//! so [`load`] merges both files. The helper of root reads the same files. At worst they select
//! among signed machines and placed revisions.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use buildos_channel::Name;
use buildos_channel::model::Limits;
use buildos_service::file::read_bounded;
use buildos_service::text::chain;
use buildos_volumes::report::{self, VolumeState};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::paths::Paths;
use crate::pattern::Pattern;

pub mod change;

/// Version of the format.
pub const SCHEMA: u32 = 1;
/// Bytes of the file: choices about all machines of a channel.
const LIMIT: usize = 128 * 1024;
/// Most machines with a choice: those of a channel, and as many that left it.
const MACHINES: usize = 2 * Limits::MACHINES;
/// Longest reason in characters.
pub const REASON: usize = 200;
/// Reason of a hold without one.
pub const NO_REASON: &str = "by an operator";

/// The choice about one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It is taken although no pattern matches it.
    Added {
        /// Revision that stays current.
        pin: Option<u64>,
    },
    /// It is not taken.
    Removed,
    /// The patterns decide whether it is taken.
    Pinned {
        /// Revision that stays current.
        revision: u64,
    },
}

/// The choices of the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choices {
    /// Reason of the hold, while updates are held.
    pub hold: Option<String>,
    /// Choices about machines.
    pub machines: BTreeMap<Name, Choice>,
    /// True once they include the choices of the former boot: only then they replace those on
    /// the state volume.
    pub merged: bool,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Text {
    schema: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold: Option<String>,
    #[serde(default)]
    added: Vec<String>,
    #[serde(default)]
    removed: Vec<String>,
    #[serde(default)]
    pinned: BTreeMap<String, u64>,
    /// Present once the choices of the former boot are included: buildos-state needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    merged: Option<bool>,
}

/// A file has no choices.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    #[allow(missing_docs)]
    #[error("it is not JSON with choices: {0}")]
    Json(String),
    #[allow(missing_docs)]
    #[error("its schema is {0}; this version reads schema {SCHEMA}")]
    Schema(u32),
    #[allow(missing_docs)]
    #[error("{0:?} is not the name of a machine")]
    Name(String),
    #[allow(missing_docs)]
    #[error("revision {0} is not from 1 to {max}", max = Limits::NUMBER)]
    Revision(u64),
    #[allow(missing_docs)]
    #[error("machine {0} is removed, and added or pinned as well")]
    Contradiction(Name),
    #[allow(missing_docs)]
    #[error("it has more than {MACHINES} machines")]
    TooMany,
    #[allow(missing_docs)]
    #[error("the reason of the hold is not one line of at most {REASON} characters")]
    Reason,
}

impl Choices {
    /// Parses the content of the file.
    ///
    /// # Errors
    ///
    /// The content is damaged, or of a newer version.
    pub fn parse(content: &[u8]) -> Result<Self, Damaged> {
        let text: Text =
            serde_json::from_slice(content).map_err(|error| Damaged::Json(error.to_string()))?;
        if text.schema != SCHEMA {
            return Err(Damaged::Schema(text.schema));
        }
        if text.added.len() + text.removed.len() + text.pinned.len() > 2 * MACHINES {
            return Err(Damaged::TooMany);
        }
        if text.hold.as_ref().is_some_and(|hold| !is_reason(hold)) {
            return Err(Damaged::Reason);
        }
        let name = |text: &String| {
            text.parse::<Name>()
                .map_err(|_| Damaged::Name(text.clone()))
        };
        let mut machines = BTreeMap::new();
        for added in &text.added {
            machines.insert(name(added)?, Choice::Added { pin: None });
        }
        for removed in &text.removed {
            let removed = name(removed)?;
            if machines.insert(removed.clone(), Choice::Removed)
                == Some(Choice::Added { pin: None })
            {
                return Err(Damaged::Contradiction(removed));
            }
        }
        for (pinned, revision) in &text.pinned {
            if !(1..=Limits::NUMBER).contains(revision) {
                return Err(Damaged::Revision(*revision));
            }
            let pinned = name(pinned)?;
            let choice = match machines.get(&pinned) {
                None => Choice::Pinned {
                    revision: *revision,
                },
                Some(Choice::Added { .. }) => Choice::Added {
                    pin: Some(*revision),
                },
                Some(Choice::Removed | Choice::Pinned { .. }) => {
                    return Err(Damaged::Contradiction(pinned));
                }
            };
            machines.insert(pinned, choice);
        }
        if machines.len() > MACHINES {
            return Err(Damaged::TooMany);
        }
        Ok(Self {
            hold: text.hold,
            machines,
            merged: text.merged == Some(true),
        })
    }

    /// Returns the content of the file.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let named = |wanted: fn(&Choice) -> bool| {
            let each = self.machines.iter();
            let each = each.filter(move |(_, choice)| wanted(choice));
            each.map(|(name, _)| name.to_string()).collect()
        };
        let pinned = self.machines.keys().filter_map(|name| {
            let revision = self.pinned(name)?;
            Some((name.to_string(), revision))
        });
        let text = Text {
            schema: SCHEMA,
            hold: self.hold.clone(),
            added: named(|choice| matches!(choice, Choice::Added { .. })),
            removed: named(|choice| matches!(choice, Choice::Removed)),
            pinned: pinned.collect(),
            merged: self.merged.then_some(true),
        };
        // The keys of its map are strings.
        let mut text = serde_json::to_vec(&text).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Returns true if the host takes a machine of the channel.
    #[must_use]
    pub fn select(&self, name: &Name, patterns: &[Pattern]) -> bool {
        match self.machines.get(name) {
            Some(Choice::Added { .. }) => true,
            Some(Choice::Removed) => false,
            Some(Choice::Pinned { .. }) | None => {
                let mut patterns = patterns.iter();
                patterns.any(|pattern| pattern.matches(name.as_str()))
            }
        }
    }

    /// Returns the revision that a machine is pinned at.
    #[must_use]
    pub fn pinned(&self, name: &Name) -> Option<u64> {
        match self.machines.get(name)? {
            Choice::Added { pin } => *pin,
            Choice::Removed => None,
            Choice::Pinned { revision } => Some(*revision),
        }
    }

    /// Returns true if an operator has removed a machine.
    #[must_use]
    pub fn is_removed(&self, name: &Name) -> bool {
        self.machines.get(name) == Some(&Choice::Removed)
    }

    /// Returns true if an operator has added a machine.
    #[must_use]
    pub fn is_added(&self, name: &Name) -> bool {
        matches!(self.machines.get(name), Some(Choice::Added { .. }))
    }

    /// Adds the choices of the former boot. A choice of this boot about the same machine wins.
    #[must_use]
    pub fn merge(mut self, former: Self) -> Self {
        self.hold = self.hold.or(former.hold);
        for (name, choice) in former.machines {
            self.machines.entry(name).or_insert(choice);
        }
        self.merged = true;
        self
    }
}

/// Returns true if a text can be the reason of a hold.
#[must_use]
pub fn is_reason(text: &str) -> bool {
    let one_line = !text.chars().any(char::is_control);
    !text.trim().is_empty() && one_line && text.chars().count() <= REASON
}

/// Reads the choices of this boot, with those of the former boot.
///
/// # Errors
///
/// A file is damaged, or that of the former boot is not there yet. Nothing is to be done then: a
/// lost pin would remove revisions.
pub fn load(paths: &Paths) -> Result<Choices, String> {
    let own = read(&paths.choices())?;
    if own.as_ref().is_some_and(|own| own.merged) {
        return Ok(own.unwrap_or_default());
    }
    // Before the file: after it, buildos-state can copy the file and report that it did.
    let former_boot = former_boot(paths);
    if former_boot == FormerBoot::Awaited {
        return Err(AWAITED.to_owned());
    }
    let former = read(&paths.former_choices())?;
    let own = own.unwrap_or_default();
    Ok(match former {
        Some(former) => own.merge(former),
        None => Choices {
            // A fresh state volume has no choices to include.
            merged: former_boot == FormerBoot::Restored || is_on_disk(paths),
            ..own
        },
    })
}

fn read(path: &Path) -> Result<Option<Choices>, String> {
    let place = path.display();
    let advice = "remove the file to forget all choices";
    let content = match read_bounded(path, LIMIT) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(format!(
                "cannot read the choices: {place}: {error}; {advice}"
            ));
        }
    };
    let parsed = Choices::parse(&content);
    let damaged = |error| {
        format!(
            "cannot read the choices: {place}: {}; {advice}",
            chain(&error)
        )
    };
    parsed.map(Some).map_err(damaged)
}

/// Replaces the choices.
///
/// # Errors
///
/// The directory is not writable, or full. The choices are longer than what is read.
pub fn store(paths: &Paths, choices: &Choices) -> Result<(), String> {
    let text = choices.text();
    if text.len() > LIMIT {
        return Err(format!(
            "the choices would have {} bytes, of at most {LIMIT}: unpin or add some machines first",
            text.len()
        ));
    }
    durable::replace(&paths.choices(), &text)
}

/// Writes the choices of the former boot into the own file, so that buildos-state keeps both. Only
/// the event loop of the daemon writes: a run in its thread would replace a choice that was made
/// meanwhile.
///
/// # Errors
///
/// As [`load`] and [`store`].
pub fn settle(paths: &Paths) -> Result<Choices, String> {
    let choices = load(paths)?;
    let own = read(&paths.choices())?;
    let is_new = own.as_ref() != Some(&choices);
    // A host without choices has no file.
    if is_new && (own.is_some() || choices.hold.is_some() || !choices.machines.is_empty()) {
        store(paths, &choices)?;
    }
    Ok(choices)
}

/// What is known about the choices of the former boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FormerBoot {
    /// No state volume is in use, or it has a fault: the file is there, or does not come.
    Unknown,
    /// buildos-state reads the volume. The file can still come.
    Awaited,
    /// buildos-state has copied the file, if the volume has one.
    Restored,
}

/// Reason for which nothing is done while buildos-state reads the volume.
const AWAITED: &str =
    "the choices of the former boot are not known yet: the state volume is being read";

fn former_boot(paths: &Paths) -> FormerBoot {
    let Some(report) = report::read(paths.root()) else {
        // A report that cannot be read says nothing about the volume.
        return match paths.root().join(report::SELECTED).try_exists() {
            Ok(false) => FormerBoot::Unknown,
            Ok(true) | Err(_) => FormerBoot::Awaited,
        };
    };
    // buildos-state saves after it has restored.
    let was_saved = report.saved_usec > 0;
    match report.state {
        VolumeState::Active => FormerBoot::Restored,
        VolumeState::Slow if was_saved => FormerBoot::Restored,
        VolumeState::Mounted | VolumeState::Slow => FormerBoot::Awaited,
        VolumeState::Absent
        | VolumeState::Refused
        | VolumeState::Failed
        | VolumeState::Full
        | VolumeState::ReadOnly
        | VolumeState::Failing
        | VolumeState::Gone => FormerBoot::Unknown,
    }
}

/// Returns true if [`load`] fails only until buildos-state has read the state volume.
#[must_use]
pub fn are_awaited(paths: &Paths) -> bool {
    load(paths) == Err(AWAITED.to_owned())
}

/// Returns true if the choices outlive a reboot: on the state volume, or on a disk.
#[must_use]
pub fn are_kept(paths: &Paths) -> bool {
    former_boot(paths) == FormerBoot::Restored || is_on_disk(paths)
}

/// Returns true if what the former boot kept was there to be read, or there was no former boot that
/// kept anything.
#[must_use]
pub(crate) fn includes_former(paths: &Paths) -> bool {
    are_kept(paths)
}

/// Returns true if the directory of the choices is neither in RAM nor, as the root of the image,
/// above RAM.
fn is_on_disk(paths: &Paths) -> bool {
    let choices = paths.choices();
    let found = choices.parent().map(statfs);
    found.is_some_and(|found| {
        found.is_ok_and(|found| {
            ![TMPFS_MAGIC, OVERLAYFS_SUPER_MAGIC].contains(&found.filesystem_type())
        })
    })
}

#[cfg(test)]
mod tests;
