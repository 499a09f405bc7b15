//! Reads and writes the channels of a tree.

use std::fs;
use std::path::{Path, PathBuf};

use buildos_channel::model::{Channel, Limits, Rollout};
use buildos_channel::{Timestamp, grammar, write};

use super::place::Place;
use crate::commands::check::now;
use crate::files::{read_text, replace};

/// Validity of a draft in days, and of a publication without `--days`.
pub(super) const VALID_DAYS: u32 = 30;

/// Makes the directories of a tree and the draft of a channel.
pub(super) fn init(place: &Place) -> Result<String, String> {
    for name in ["channel", "objects", "desk"] {
        let path = place.tree.join(name);
        fs::create_dir_all(&path)
            .map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    }
    let draft = place.draft();
    if draft.exists() {
        return Err(format!("{} exists already", draft.display()));
    }
    let channel = Channel {
        name: place.channel.clone(),
        serial: 1,
        valid_until: now().plus_days(VALID_DAYS),
        os: None,
        agents: Vec::new(),
        toolchains: Vec::new(),
        machines: Vec::new(),
        rollout: Rollout {
            percent: 100,
            since: 1,
        },
    };
    replace(&draft, write::text(&channel).as_bytes())?;
    Ok(format!(
        "Serve {} by HTTP, and keep desk/ here. The draft is {}.\n",
        place.tree.display(),
        draft.display()
    ))
}

/// Reads the draft.
pub(super) fn draft(place: &Place) -> Result<Channel, String> {
    let path = place.draft();
    if !path.exists() {
        return Err(format!(
            "there is no draft {}: begin with buildosctl publish init",
            path.display()
        ));
    }
    read(place, path)
}

/// Reads the text that was signed last, if there is one.
pub(super) fn published(place: &Place) -> Result<Option<Channel>, String> {
    let path = place.published();
    match path.exists() {
        true => read(place, path).map(Some),
        false if place.signed().exists() => Err(format!(
            "{} is missing, but the channel was published: its serial is not known",
            path.display()
        )),
        false => Ok(None),
    }
}

fn read(place: &Place, path: PathBuf) -> Result<Channel, String> {
    let text = read_text(&path, Limits::TEXT)?;
    let parsed = grammar::parse(&text).map_err(|problems| lines(&path, &problems))?;
    // A typing error must not be signed away.
    if !parsed.unknown.is_empty() {
        return Err(lines(&path, &parsed.unknown));
    }
    if parsed.channel.name != place.channel {
        return Err(format!(
            "{} is the file of channel {}",
            path.display(),
            parsed.channel.name
        ));
    }
    Ok(parsed.channel)
}

fn lines(path: &Path, problems: &[grammar::Problem]) -> String {
    let each = problems.iter();
    let texts: Vec<_> = each.map(ToString::to_string).collect();
    format!("{}: {}", path.display(), texts.join("; "))
}

/// Returns the time `days` from now.
pub(super) fn in_days(days: u32) -> Timestamp {
    now().plus_days(days)
}
