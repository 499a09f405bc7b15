//! What agentd must know after its own restart and systemd cannot tell: which
//! agents were up in this boot.
//!
//! A unit that is down has either not been started yet, and is started when its
//! needs are met, or somebody stopped it, and it stays so. A unit that was up
//! and is down now was stopped, even while agentd was away: had it ended by
//! itself, systemd would hold it in `auto-restart`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use buildos_service::file::{self, WriteError};
use serde::{Deserialize, Serialize};

use crate::agent::Id;

/// The file, in the daemon's runtime directory.
pub const FILE: &str = "/run/buildos/agentd/state.json";

/// The memory and its file.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
}

/// Ids as text: a name that an older version took for one is no error.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Content {
    launched: BTreeSet<String>,
}

/// The file exists and cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not what agentd writes.
    #[error("{} is damaged; remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
}

impl Memory {
    /// The memory in the file at `path`, normally [`FILE`].
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The agents that were up in this boot; none when there is no file yet.
    ///
    /// # Errors
    ///
    /// The file exists and cannot be used.
    pub fn load(&self) -> Result<BTreeSet<Id>, MemoryError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(source) => {
                return Err(MemoryError::Read {
                    path: self.path.clone(),
                    source,
                });
            }
        };
        let content: Content =
            serde_json::from_slice(&text).map_err(|source| MemoryError::Damaged {
                path: self.path.clone(),
                source,
            })?;
        Ok(content
            .launched
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect())
    }

    /// Remembers these agents and no others. Writes only what is new.
    ///
    /// # Errors
    ///
    /// The runtime directory is not writable, or memory is full.
    pub fn save<'a>(&self, launched: impl Iterator<Item = &'a Id>) -> Result<(), WriteError> {
        let content = Content {
            launched: launched.map(ToString::to_string).collect(),
        };
        // A set of strings is always JSON.
        let text = serde_json::to_vec(&content).unwrap_or_default();
        file::replace(&self.path, &text, 0o644).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let memory = Memory::new(&path);
        assert_eq!(memory.load().unwrap(), BTreeSet::new());
        let ids: BTreeSet<Id> = ["bbot@a", "bslave@b"].map(|id| id.parse().unwrap()).into();
        memory.save(ids.iter()).unwrap();
        assert_eq!(memory.load().unwrap(), ids);
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            r#"{"launched":["bbot@a","bslave@b"]}"#
        );
    }

    #[test]
    fn a_damaged_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(&path, "{").unwrap();
        let error = Memory::new(&path).load().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{} is damaged; remove it", path.display())
        );
    }
}
