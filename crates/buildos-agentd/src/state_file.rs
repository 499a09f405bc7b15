//! Saves the state of the agents that survives a restart of agentd.
//!
//! The file holds what systemd does not know: which agents were up in this boot, which are
//! drained, and how often each failed in a row.
//!
//! | unit is down, and | meaning | agentd |
//! |---|---|---|
//! | it was up in this boot | an operator stopped it | keeps it stopped |
//! | it was not | it has not been started yet | starts it when its requirements are met |
//!
//! An agent that ended by itself while agentd did not run is not down: systemd keeps its
//! unit in `auto-restart`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use buildos_service::file::{WriteError, replace};
use serde::{Deserialize, Serialize};

use crate::agent::id::Id;
use crate::lifecycle::instance::Remembered;

/// Path of the file.
pub const FILE: &str = "/run/buildos/agentd/state.json";

/// State file.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
}

/// Ids are text: the id of another version may be invalid, which is not an error.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Content {
    agents: BTreeMap<String, Remembered>,
}

/// Reason why an existing file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file does not contain the expected JSON.
    #[error("{} is damaged; remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The position in the file.
        source: serde_json::Error,
    },
}

impl StateFile {
    /// Uses the file at `path`, normally [`FILE`].
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Returns true if no state was saved in this boot.
    #[must_use]
    pub fn is_new(&self) -> bool {
        !self.path.exists()
    }

    /// Reads the saved agents; none before the first save.
    ///
    /// # Errors
    ///
    /// Reason why an existing file cannot be used.
    pub fn load(&self) -> Result<BTreeMap<Id, Remembered>, StateFileError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(source) => {
                return Err(StateFileError::Read {
                    path: self.path.clone(),
                    source,
                });
            }
        };
        let content: Content =
            serde_json::from_slice(&text).map_err(|source| StateFileError::Damaged {
                path: self.path.clone(),
                source,
            })?;
        Ok(content
            .agents
            .into_iter()
            .filter_map(|(id, remembered)| Some((id.parse().ok()?, remembered)))
            .collect())
    }

    /// Replaces the saved agents. Does not write if nothing changed.
    ///
    /// # Errors
    ///
    /// The runtime directory is not writable, or the file system is full.
    pub fn save<'a>(
        &self,
        agents: impl Iterator<Item = (&'a Id, Remembered)>,
    ) -> Result<(), WriteError> {
        let content = Content {
            agents: agents.map(|(id, kept)| (id.to_string(), kept)).collect(),
        };
        // A map of strings to strings and numbers is always JSON.
        let text = serde_json::to_vec(&content).unwrap_or_default();
        replace(&self.path, &text, 0o644).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::instance::Drain;
    use std::time::Duration;

    #[test]
    fn saved_agents_are_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let file = StateFile::new(&path);
        assert!(file.is_new());
        assert_eq!(file.load().unwrap(), BTreeMap::new());
        let [a, b]: [Id; 2] = ["bbot@a", "bslave@b"].map(|id| id.parse().unwrap());
        let kept = BTreeMap::from([
            (
                a,
                Remembered {
                    launched: true,
                    drain: Some(Drain::Until(Duration::from_millis(90_500))),
                    disk_shortage: true,
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
        file.save(kept.iter().map(|(id, kept)| (id, kept.clone())))
            .unwrap();
        assert!(!file.is_new());
        assert_eq!(file.load().unwrap(), kept);
    }

    #[test]
    fn unknown_fields_and_agents_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(
            &path,
            r#"{"agents":{"bbot@a":{"launched":true,"x":1},"cbot@b":{}},"y":2}"#,
        )
        .unwrap();
        let loaded: Vec<_> = StateFile::new(&path).load().unwrap().into_iter().collect();
        let launched = Remembered {
            launched: true,
            ..Remembered::default()
        };
        assert_eq!(loaded, [("bbot@a".parse().unwrap(), launched)]);
    }

    #[test]
    fn error_names_damaged_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(&path, "{").unwrap();
        let error = StateFile::new(&path).load().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{} is damaged; remove it", path.display())
        );
    }
}
