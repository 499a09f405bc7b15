//! The directories of a volume, and the records of what was placed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
    /// Path relative to the machines.
    pub path: String,
    /// UUID of the subvolume at the sender: a subvolume of another origin at the same path
    /// has a different one.
    pub received: String,
}

#[derive(Serialize, Deserialize)]
struct Text {
    id: String,
    path: String,
    received: String,
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

    /// Returns the directory that agents see.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.top.join("machines")
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
            id: record.placed.id.to_string(),
            path: record.path.clone(),
            received: record.received.clone(),
        };
        let text = serde_json::to_vec(&text).map_err(|error| error.to_string())?;
        durable::replace(&path, &text)
    }

    /// Removes the record of a revision whose subvolume is gone.
    ///
    /// # Errors
    ///
    /// The volume cannot be changed.
    pub fn forget(&self, placed: &Placed) -> Result<(), String> {
        let path = self.record(placed);
        fs::remove_file(&path)
            .map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
        // It can have other revisions.
        let _ = path.parent().map(fs::remove_dir);
        Ok(())
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
                // `5.new` is half of a record.
                let Ok(revision) = revision.parse::<u64>() else {
                    continue;
                };
                let Some(record) = parse(&path, &name, revision) else {
                    continue;
                };
                if self.may_exist(&record) {
                    found.push(record);
                } else {
                    self.forget(&record.placed)?;
                }
            }
        }
        Ok(found)
    }

    /// Returns false if the subvolume of a record is certainly gone.
    fn may_exist(&self, record: &Record) -> bool {
        let path = self.machines().join(&record.path);
        match path.symlink_metadata() {
            Ok(_) => btrfs::is_subvolume(&path),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Returns the subvolumes that have no record, relative to the machines, at most 500.
    #[must_use]
    pub fn foreign(&self, records: &[Record]) -> Vec<String> {
        let known: BTreeSet<&str> = records.iter().map(|record| record.path.as_str()).collect();
        let machines = self.machines();
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

fn parse(path: &Path, name: &Name, revision: u64) -> Option<Record> {
    let content = read_bounded(path, RECORD).ok()?;
    let text: Text = serde_json::from_slice(&content).ok()?;
    Some(Record {
        placed: Placed {
            name: name.clone(),
            revision,
            id: text.id.parse::<Digest>().ok()?,
        },
        path: text.path,
        received: text.received,
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
