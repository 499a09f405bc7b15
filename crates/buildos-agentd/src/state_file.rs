//! What agentd must know after its own restart and systemd cannot tell: which
//! agents were up in this boot, which are drained, and how often each has ended
//! in a row.
//!
//! A unit that is down has either not been started yet, and is started when its
//! needs are met, or somebody stopped it, and it stays so. A unit that was up
//! and is down now was stopped, even while agentd was away: had it ended by
//! itself, systemd would hold it in `auto-restart`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use buildos_service::file::{self, WriteError};
use serde::{Deserialize, Serialize};

use crate::agent::id::Id;
use crate::lifecycle::instance::Remembered;

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
    agents: BTreeMap<String, Remembered>,
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

    /// Whether nothing has been saved in this boot.
    #[must_use]
    pub fn is_new(&self) -> bool {
        !self.path.exists()
    }

    /// What is known of agents; nothing when there is no file yet.
    ///
    /// # Errors
    ///
    /// The file exists and cannot be used.
    pub fn load(&self) -> Result<BTreeMap<Id, Remembered>, MemoryError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
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
            .agents
            .into_iter()
            .filter_map(|(id, remembered)| Some((id.parse().ok()?, remembered)))
            .collect())
    }

    /// Remembers these agents and no others. Writes only what is new.
    ///
    /// # Errors
    ///
    /// The runtime directory is not writable, or memory is full.
    pub fn save<'a>(
        &self,
        agents: impl Iterator<Item = (&'a Id, Remembered)>,
    ) -> Result<(), WriteError> {
        let content = Content {
            agents: agents.map(|(id, kept)| (id.to_string(), kept)).collect(),
        };
        // A map of strings to strings and numbers is always JSON.
        let text = serde_json::to_vec(&content).unwrap_or_default();
        file::replace(&self.path, &text, 0o644).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::instance::Drain;
    use std::time::Duration;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let memory = Memory::new(&path);
        assert!(memory.is_new());
        assert_eq!(memory.load().unwrap(), BTreeMap::new());
        let [a, b]: [Id; 2] = ["bbot@a", "bslave@b"].map(|id| id.parse().unwrap());
        let kept = BTreeMap::from([
            (
                a,
                Remembered {
                    launched: true,
                    drain: Some(Drain::Until(Duration::from_millis(90_500))),
                    failures: 2,
                    ended_usec: 7,
                    last_failure: "exit code 1".into(),
                    last_exit: "exit code 1".into(),
                },
            ),
            (
                b,
                Remembered {
                    drain: Some(Drain::Done),
                    ..Remembered::default()
                },
            ),
        ]);
        memory
            .save(kept.iter().map(|(id, kept)| (id, kept.clone())))
            .unwrap();
        assert!(!memory.is_new());
        assert_eq!(memory.load().unwrap(), kept);
    }

    #[test]
    fn what_another_version_wrote_is_taken_as_far_as_it_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(
            &path,
            r#"{"agents":{"bbot@a":{"launched":true,"x":1},"cbot@b":{}},"y":2}"#,
        )
        .unwrap();
        let loaded: Vec<_> = Memory::new(&path).load().unwrap().into_iter().collect();
        let launched = Remembered {
            launched: true,
            ..Remembered::default()
        };
        assert_eq!(loaded, [("bbot@a".parse().unwrap(), launched)]);
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
