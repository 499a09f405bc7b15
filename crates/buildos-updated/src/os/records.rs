//! Keeps what a host learned about operating systems: pairs from which it came back, the pair that
//! it went to, and the last changes.
//!
//! The file is the daemon's, and only its run writes it. `buildos-state` copies it to the state
//! volume, and copies that of the former boot into `/run`. Without a volume, a host forgets it at
//! the next boot.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use buildos_service::file::read_bounded;
use serde::{Deserialize, Serialize};

use super::pair::Pair;
use crate::choices;
use crate::durable;
use crate::paths::Paths;

/// Version of the format.
const SCHEMA: u32 = 1;
/// Bytes of the file.
const LIMIT: usize = 192 * 1024;
/// Pairs that are remembered as bad, and changes that are shown.
const MOST: usize = 50;
/// Handovers of a pair, each after a drain.
const ATTEMPTS: u32 = 3;
/// Longest reason in characters.
const REASON: usize = 200;

/// What a host learned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Records {
    schema: u32,
    /// Pairs that are never taken again, the last one at the end.
    pub bad: Vec<Bad>,
    /// The pair that this host went to.
    pub pending: Option<Pending>,
    /// Handovers of a pair that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    /// Changes, the last one at the end.
    pub history: Vec<Entry>,
    /// Present once the records of the former boot are included: buildos-state needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    merged: Option<bool>,
}

/// A pair from which the host came back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    #[allow(missing_docs)]
    pub pair: Pair,
    #[allow(missing_docs)]
    pub version: String,
    #[allow(missing_docs)]
    pub reason: String,
    /// Time, microseconds since 1970.
    pub usec: u64,
}

/// A pair that the host went to, until its verdict is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    #[allow(missing_docs)]
    pub pair: Pair,
    #[allow(missing_docs)]
    pub version: String,
    /// True if the boot server decides what starts: the host was rebooted.
    pub by_reboot: bool,
    /// Boot in which the host went.
    pub boot: String,
}

/// Handovers of a pair that failed, each after a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    #[allow(missing_docs)]
    pub pair: Pair,
    #[allow(missing_docs)]
    pub count: u32,
    /// Reason of the last one.
    pub reason: String,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Time, microseconds since 1970.
    pub usec: u64,
    #[allow(missing_docs)]
    pub version: String,
    /// A state of an update, for example `returned`.
    pub state: String,
    #[allow(missing_docs)]
    pub reason: String,
}

impl Records {
    /// Returns the record of a pair that came back.
    #[must_use]
    pub fn bad(&self, pair: &Pair) -> Option<&Bad> {
        self.bad.iter().find(|bad| bad.pair == *pair)
    }

    /// Notes a pair that came back, once. Returns true if it is new.
    pub fn note(&mut self, bad: Bad) -> bool {
        let is_new = self.bad(&bad.pair).is_none();
        if is_new {
            let reason = shorten(&bad.reason);
            self.bad.push(Bad { reason, ..bad });
            let more = self.bad.len().saturating_sub(MOST);
            self.bad.drain(..more);
        }
        is_new
    }

    /// Counts a handover that failed.
    pub fn count_failed(&mut self, pair: Pair, reason: &str) {
        let before = self.failed.as_ref().filter(|failed| failed.pair == pair);
        self.failed = Some(Failed {
            pair,
            count: before.map_or(0, |failed| failed.count).saturating_add(1),
            reason: shorten(reason),
        });
    }

    /// Returns the reason of the last handover of a pair, if so many failed that no further one
    /// begins by itself.
    #[must_use]
    pub fn given_up(&self, pair: &Pair) -> Option<&str> {
        let failed = self.failed.as_ref()?;
        (failed.pair == *pair && failed.count >= ATTEMPTS).then_some(failed.reason.as_str())
    }

    /// Adds a change, unless it repeats the last one.
    pub fn add(&mut self, entry: Entry) {
        let entry = Entry {
            reason: shorten(&entry.reason),
            ..entry
        };
        let is_repeated = self.history.last().is_some_and(|last| {
            (&last.version, &last.state, &last.reason)
                == (&entry.version, &entry.state, &entry.reason)
        });
        if !is_repeated {
            self.history.push(entry);
            let more = self.history.len().saturating_sub(MOST);
            self.history.drain(..more);
        }
    }

    /// Adds the records of the former boot.
    fn merge(mut self, former: Self) -> Self {
        let known: BTreeSet<Pair> = self.bad.iter().map(|bad| bad.pair).collect();
        let mut bad = former.bad;
        bad.retain(|bad| !known.contains(&bad.pair));
        bad.append(&mut self.bad);
        let mut history = former.history;
        history.append(&mut self.history);
        Self {
            bad,
            history,
            pending: self.pending.or(former.pending),
            failed: self.failed.or(former.failed),
            ..self
        }
    }
}

fn shorten(text: &str) -> String {
    let one_line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    one_line.take(REASON).collect()
}

/// Reads the records of this boot, with those of the former boot.
///
/// # Errors
///
/// A file is damaged. No operating system is taken then: it could be one that came back.
pub fn load(paths: &Paths) -> Result<Records, String> {
    let own = read(&paths.os_records())?.unwrap_or_default();
    if own.merged == Some(true) {
        return Ok(own);
    }
    let merged = choices::includes_former(paths).then_some(true);
    let former = read(&paths.former_os_records())?;
    Ok(Records {
        merged,
        ..own.merge(former.unwrap_or_default())
    })
}

fn read(path: &Path) -> Result<Option<Records>, String> {
    let damaged = |reason: String| {
        format!(
            "cannot read the records of operating systems: {}: {reason}; \
             remove the file to forget which ones came back",
            path.display()
        )
    };
    let content = match read_bounded(path, LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        content => content.map_err(|error| damaged(error.to_string()))?,
    };
    let records: Records =
        serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
    match records.schema {
        SCHEMA => Ok(Some(records)),
        other => Err(damaged(format!("its schema is {other}, not {SCHEMA}"))),
    }
}

/// Replaces the records.
///
/// # Errors
///
/// The directory is not writable, or full.
pub fn store(paths: &Paths, records: &Records) -> Result<(), String> {
    let records = Records {
        schema: SCHEMA,
        ..records.clone()
    };
    let mut text = serde_json::to_vec(&records).unwrap_or_default();
    text.push(b'\n');
    durable::replace(&paths.os_records(), &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::Digest;
    use std::fs;

    fn pair(name: &str) -> Pair {
        Pair {
            image: Digest::of(name.as_bytes()),
            initrd: Digest::of(b"initrd"),
        }
    }

    fn bad(name: &str, reason: &str) -> Bad {
        Bad {
            pair: pair(name),
            version: name.to_owned(),
            reason: reason.to_owned(),
            usec: 1,
        }
    }

    fn root() -> (tempfile::TempDir, Paths) {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        for path in [paths.os_records(), paths.former_os_records()] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        (directory, paths)
    }

    #[test]
    fn bad_pairs_of_both_boots_are_known() {
        let (_directory, paths) = root();
        let mut former = Records::default();
        assert!(former.note(bad("old", "no network")));
        store(&paths, &former).unwrap();
        fs::rename(paths.os_records(), paths.former_os_records()).unwrap();
        let mut records = load(&paths).unwrap();
        assert_eq!(records.bad(&pair("old")).unwrap().reason, "no network");
        assert!(records.note(bad("new", "a\nb")));
        assert!(!records.note(bad("new", "c")));
        store(&paths, &records).unwrap();
        let records = load(&paths).unwrap();
        assert_eq!(records.bad.len(), 2);
        assert_eq!(records.bad(&pair("new")).unwrap().reason, "a b");
    }

    #[test]
    fn records_are_bounded_and_fit_into_the_file() {
        let (_directory, paths) = root();
        let mut records = Records::default();
        for number in 0..200_u64 {
            let text = format!("{number}{}", "é".repeat(500));
            records.note(bad(&number.to_string(), &text));
            let entry = Entry {
                usec: number,
                version: "v".repeat(100),
                state: "returned".to_owned(),
                reason: text,
            };
            records.add(entry.clone());
            records.add(entry);
        }
        assert_eq!((records.bad.len(), records.history.len()), (MOST, MOST));
        assert_eq!(records.history.last().unwrap().usec, 199);
        records
            .bad
            .iter_mut()
            .for_each(|bad| bad.version = "v".repeat(100));
        store(&paths, &records).unwrap();
        assert_eq!(load(&paths).unwrap().bad.len(), MOST);
    }

    #[test]
    fn third_failed_handover_of_a_pair_is_the_last() {
        let mut records = Records::default();
        for expected in [None, None, Some("no RAM"), Some("no RAM")] {
            records.count_failed(pair("new"), "no RAM");
            assert_eq!(records.given_up(&pair("new")), expected);
        }
        assert_eq!(records.given_up(&pair("other")), None);
        records.count_failed(pair("other"), "x");
        assert_eq!(records.given_up(&pair("new")), None);
        assert_eq!(records.given_up(&pair("other")), None);
    }

    #[test]
    fn damaged_records_are_an_error() {
        let (_directory, paths) = root();
        for text in ["{", "{\"schema\":2}"] {
            fs::write(paths.os_records(), text).unwrap();
            assert!(
                load(&paths).unwrap_err().contains("remove the file"),
                "{text}"
            );
        }
    }
}
