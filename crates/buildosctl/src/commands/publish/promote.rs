//! Makes the next publication of a channel from its draft, and lets gpg sign it.

use std::path::Path;

use buildos_channel::model::{Channel, Limits, Rollout};
use buildos_channel::policy::LONGEST_VALIDITY_DAYS;
use buildos_channel::{Name, Timestamp, write};

use super::place::Place;
use super::{changes, objects, tree};
use crate::files::replace;
use crate::programs::gpg;

/// Options of `publish promote`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Keys for gpg's `--local-user`.
    pub(crate) keys: Vec<String>,
    /// Channel whose published content becomes the draft.
    pub(crate) from: Option<Name>,
    /// Validity.
    pub(crate) days: Option<u32>,
    /// Percentage of hosts.
    pub(crate) percent: Option<u8>,
}

/// Signs the draft and returns what changed.
pub(super) fn promote(place: &Place, options: &Options) -> Result<String, String> {
    if options.keys.is_empty() {
        return Err("promote needs --key, the key that signs".to_owned());
    }
    let days = options.days.unwrap_or(tree::VALID_DAYS);
    if !(1..=LONGEST_VALIDITY_DAYS).contains(&days) {
        return Err(format!("--days: from 1 to {LONGEST_VALIDITY_DAYS}"));
    }
    let draft = match &options.from {
        None => tree::draft(place)?,
        Some(other) => {
            let other = Place {
                channel: other.clone(),
                ..place.clone()
            };
            tree::published(&other)?
                .ok_or_else(|| format!("channel {} was never published", other.channel))?
        }
    };
    let last = tree::published(place)?;
    let next = next(
        place,
        draft,
        last.as_ref(),
        options.percent,
        tree::in_days(days),
    )?;
    let faults = objects::faults(&place.tree, &next);
    if !faults.is_empty() {
        return Err(format!("nothing was signed: {}", faults.join("; ")));
    }
    let text = write::text(&next);
    let signed = gpg::clearsign(Path::new("gpg"), &text, &options.keys)?;
    // In this order: if the second file is not written, a serial is skipped and never used
    // for two texts.
    replace(&place.published(), text.as_bytes())?;
    replace(&place.draft(), text.as_bytes())?;
    replace(&place.signed(), &signed)?;
    let mut lines = changes::changes(last.as_ref(), &next);
    if lines.is_empty() {
        lines.push("the same content as before".to_owned());
    }
    lines.push(format!(
        "{}: serial {}, valid until {}, {} % of the hosts",
        place.signed().display(),
        next.serial,
        next.valid_until,
        next.rollout.percent
    ));
    Ok(lines.join("\n") + "\n")
}

/// Returns the next publication. A rollout goes on if the content is that of the last one.
fn next(
    place: &Place,
    draft: Channel,
    last: Option<&Channel>,
    percent: Option<u8>,
    valid_until: Timestamp,
) -> Result<Channel, String> {
    let serial = last.map_or(1, |last| last.serial.saturating_add(1));
    if serial > Limits::NUMBER {
        return Err("the serial has reached its limit: begin another channel".to_owned());
    }
    let mut next = Channel {
        name: place.channel.clone(),
        serial,
        valid_until,
        rollout: Rollout {
            percent: percent.unwrap_or(100),
            since: serial,
        },
        ..draft
    };
    if let Some(last) = last {
        if changes::changes(Some(last), &next).is_empty() {
            next.rollout = Rollout {
                percent: percent.unwrap_or(last.rollout.percent),
                since: last.rollout.since,
            };
        }
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            tree: "/nonexistent".into(),
            channel: "stable".parse().unwrap(),
        }
    }

    fn draft(extra: &str) -> Channel {
        let head = "format = 1\nname = \"draft\"\nserial = 9\nvalid_until = 2000-01-01T00:00:00Z\n";
        let parsed = buildos_channel::grammar::parse(&format!("{head}{extra}"));
        parsed.unwrap().channel
    }

    fn toolchain(version: &str) -> String {
        let sha256 = buildos_channel::Digest::of(version.as_bytes());
        format!(
            "[[toolchain]]\nname = \"public\"\nversion = \"{version}\"\nlist = {{ sha256 = \"{sha256}\", size = 1 }}\n"
        )
    }

    #[test]
    fn serial_grows_and_rollout_goes_on_with_same_content() {
        let until = "2027-01-01T00:00:00Z".parse().unwrap();
        let (old, new) = (draft(&toolchain("1")), draft(&toolchain("2")));
        let made = |draft: &Channel, last, percent| {
            next(&place(), draft.clone(), last, percent, until).unwrap()
        };
        let rollout = |channel: &Channel| (channel.rollout.percent, channel.rollout.since);
        let first = made(&old, None, None);
        assert_eq!((first.serial, rollout(&first)), (1, (100, 1)));
        assert_eq!((first.name.as_str(), first.valid_until), ("stable", until));
        let canary = made(&new, Some(&first), Some(10));
        assert_eq!((canary.serial, rollout(&canary)), (2, (10, 2)));
        let renewed = made(&new, Some(&canary), None);
        assert_eq!((renewed.serial, rollout(&renewed)), (3, (10, 2)));
        let wider = made(&new, Some(&renewed), Some(50));
        assert_eq!((wider.serial, rollout(&wider)), (4, (50, 2)));
        let changed = made(&old, Some(&wider), None);
        assert_eq!((changed.serial, rollout(&changed)), (5, (100, 5)));
    }

    #[test]
    fn changes_name_kind_name_and_versions() {
        let (old, new) = (draft(&toolchain("1")), draft(&toolchain("2")));
        let lines = |before: Option<&Channel>, after: &Channel| changes::changes(before, after);
        assert_eq!(lines(None, &old), ["+ toolchain public version 1"]);
        assert_eq!(
            lines(Some(&old), &new),
            ["~ toolchain public version 2, was version 1"]
        );
        assert_eq!(
            lines(Some(&old), &draft("")),
            ["- toolchain public version 1"]
        );
        assert_eq!(lines(Some(&old), &old), [""; 0]);
    }

    #[test]
    fn promotion_without_key_or_with_endless_validity_is_refused() {
        let refused = |options| promote(&place(), &options).unwrap_err();
        assert!(refused(Options::default()).contains("--key"));
        let options = Options {
            keys: vec!["x".to_owned()],
            days: Some(401),
            ..Options::default()
        };
        assert_eq!(refused(options), "--days: from 1 to 400");
    }
}
