//! The directories of a volume, and the records of what was placed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use buildos_channel::model::Kind;
use buildos_channel::{Digest, Name};
use buildos_service::file::read_bounded;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::programs::btrfs;
use crate::retention::Placed;

/// Bytes of a record.
const RECORD: usize = 4096;
/// Subvolumes of others that are shown.
const MOST_FOREIGN: usize = 500;

/// A mounted volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    #[allow(missing_docs)]
    pub name: String,
    top: PathBuf,
}

/// A revision that was placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    #[allow(missing_docs)]
    pub placed: Placed,
    /// Path relative to the directory of its kind.
    pub path: String,
    /// UUID of the subvolume at the sender: a subvolume of another origin at the same path
    /// has a different one.
    pub received: String,
    /// When no link named it any more, in seconds since 1970.
    pub left: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Text {
    /// Records of the first version have none.
    #[serde(default)]
    kind: Option<String>,
    id: String,
    path: String,
    received: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
}

impl Tree {
    /// Returns the volumes that are mounted, by name.
    #[must_use]
    pub fn mounted(volumes: &Path) -> Vec<Self> {
        let entries = fs::read_dir(volumes).into_iter().flatten();
        let mut found: Vec<_> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                Some(Self {
                    name,
                    top: entry.path(),
                })
            })
            // A mount point without its mount has no such directory.
            .filter(|tree| btrfs::is_subvolume(&tree.top) && tree.records().is_dir())
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn top(&self) -> &Path {
        &self.top
    }

    /// Returns the directory of the machines of a kind.
    #[must_use]
    pub fn machines(&self, kind: Kind) -> PathBuf {
        self.top.join(match kind {
            Kind::Machine => "machines",
            Kind::Container => "containers",
        })
    }

    /// Returns the subvolume of a record.
    #[must_use]
    pub fn subvolume(&self, record: &Record) -> PathBuf {
        self.machines(record.placed.kind).join(&record.path)
    }

    /// Returns the directory of the daemon.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.top.join("spool")
    }

    /// Returns the directory of what is not whole yet.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.top.join("staging")
    }

    fn records(&self) -> PathBuf {
        self.top.join("records")
    }

    /// Returns the file with the serial of the channel that was accepted last.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.records().join("accepted")
    }

    /// Removes what an interrupted run left.
    ///
    /// # Errors
    ///
    /// A subvolume or a directory cannot be deleted.
    pub fn clear_staging(&self) -> Result<(), String> {
        let staging = self.staging();
        let failed = |error: io::Error| format!("cannot clear {}: {error}", staging.display());
        for entry in fs::read_dir(&staging).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if !path.is_dir() || path.is_symlink() {
                fs::remove_file(&path).map_err(failed)?;
                continue;
            }
            for inner in fs::read_dir(&path).map_err(failed)? {
                let inner = inner.map_err(failed)?.path();
                if btrfs::is_subvolume(&inner) {
                    btrfs::delete(&inner)?;
                }
            }
            if btrfs::is_subvolume(&path) {
                btrfs::delete(&path)?;
            } else {
                fs::remove_dir_all(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn record(&self, placed: &Placed) -> PathBuf {
        let directory = self.records().join("machines").join(placed.name.as_str());
        directory.join(placed.revision.to_string())
    }

    /// Writes the record of a revision, before its subvolume gets its name.
    ///
    /// # Errors
    ///
    /// The volume is full.
    pub fn write(&self, record: &Record) -> Result<(), String> {
        let path = self.record(&record.placed);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
        }
        let text = Text {
            kind: Some(record.placed.kind.to_string()),
            id: record.placed.id.to_string(),
            path: record.path.clone(),
            received: record.received.clone(),
            left: record.left,
        };
        let text = serde_json::to_vec(&text).map_err(|error| error.to_string())?;
        durable::replace(&path, &text)
    }

    /// Removes the record of a revision whose subvolume is gone, and the directory that was made
    /// for it, if it is empty.
    ///
    /// # Errors
    ///
    /// The volume cannot be changed.
    pub fn forget(&self, record: &Record) -> Result<(), String> {
        if let Some((directory, _)) = record.path.split_once('/') {
            // It can have a link, other revisions and files of others.
            let _ = fs::remove_dir(self.machines(record.placed.kind).join(directory));
        }
        remove_record(&self.record(&record.placed))
    }

    /// Returns the records, without those whose subvolume does not exist: the run that wrote
    /// them was interrupted, or an operator removed it. These are forgotten.
    ///
    /// # Errors
    ///
    /// The records cannot be read.
    pub fn read(&self) -> Result<Vec<Record>, String> {
        let top = self.records().join("machines");
        let mut found = Vec::new();
        for (name, directory) in names(&top)? {
            let Ok(name) = name.parse::<Name>() else {
                continue;
            };
            for (revision, path) in names(&directory)? {
                let Ok(revision) = revision.parse::<u64>() else {
                    // `5.new` is half of a record, which an interrupted run left.
                    if revision.ends_with(".new") {
                        remove_record(&path)?;
                    }
                    continue;
                };
                let Some(record) = parse(&path, &name, revision) else {
                    continue;
                };
                if self.may_exist(&record) {
                    found.push(record);
                } else {
                    self.forget(&record)?;
                }
            }
        }
        Ok(found)
    }

    /// Returns false if the subvolume of a record is certainly gone.
    fn may_exist(&self, record: &Record) -> bool {
        let path = self.subvolume(record);
        match path.symlink_metadata() {
            Ok(_) => btrfs::is_subvolume(&path),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Returns the machines that have no record, relative to the machines, at most 500.
    /// Containers without one are those of an operator, and shown by machinectl(1).
    #[must_use]
    pub fn foreign(&self, records: &[Record]) -> Vec<String> {
        let machines = self.machines(Kind::Machine);
        let mine = records
            .iter()
            .filter(|record| record.placed.kind == Kind::Machine);
        let known: BTreeSet<&str> = mine.map(|record| record.path.as_str()).collect();
        let mut found = Vec::new();
        for (name, path) in names(&machines).unwrap_or_default() {
            if btrfs::is_subvolume(&path) {
                found.push(name);
                continue;
            }
            if path.is_symlink() || !path.is_dir() {
                continue;
            }
            for (inner, path) in names(&path).unwrap_or_default() {
                if btrfs::is_subvolume(&path) {
                    found.push(format!("{name}/{inner}"));
                }
            }
        }
        found.retain(|path| !known.contains(path.as_str()));
        found.sort();
        found.truncate(MOST_FOREIGN);
        found
    }
}

fn remove_record(path: &Path) -> Result<(), String> {
    fs::remove_file(path).map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
    // It can have other revisions.
    let _ = path.parent().map(fs::remove_dir);
    Ok(())
}

fn parse(path: &Path, name: &Name, revision: u64) -> Option<Record> {
    let content = read_bounded(path, RECORD).ok()?;
    let text: Text = serde_json::from_slice(&content).ok()?;
    Some(Record {
        placed: Placed {
            kind: match text.kind {
                Some(kind) => kind.parse().ok()?,
                None => Kind::Machine,
            },
            name: name.clone(),
            revision,
            id: text.id.parse::<Digest>().ok()?,
        },
        path: text.path,
        received: text.received,
        left: text.left,
    })
}

/// Returns the entries of a directory that have text as names; nothing without a directory.
fn names(directory: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let failed = |error: io::Error| format!("cannot read {}: {error}", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_placement_leaves_nothing() {
        let top = tempfile::tempdir().unwrap();
        let tree = Tree {
            name: "default".to_owned(),
            top: top.path().to_owned(),
        };
        let name: Name = "box".parse().unwrap();
        let record = Record {
            placed: Placed {
                kind: Kind::Machine,
                name,
                revision: 5,
                id: Digest::of(b"5"),
            },
            path: "box/box-5".to_owned(),
            received: "uuid".to_owned(),
            left: None,
        };
        tree.write(&record).unwrap();
        // The subvolume was still to come; a newer record is half written.
        fs::create_dir_all(tree.machines(Kind::Machine).join("box")).unwrap();
        let records = tree.records().join("machines/box");
        fs::write(records.join("6.new"), "half").unwrap();
        assert_eq!(tree.read().unwrap(), []);
        assert!(!records.exists());
        assert!(!tree.machines(Kind::Machine).join("box").exists());
    }
}
