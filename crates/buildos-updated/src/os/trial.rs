//! Reads the state of a trial, which buildos-os-trial.service writes.

use buildos_service::text::Escaped;

use super::pair::Pair;
use crate::os_handover::files::{self, TrialState};
use crate::paths::Paths;

/// What is known about a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    #[allow(missing_docs)]
    pub state: TrialState,
    #[allow(missing_docs)]
    pub version: String,
    /// The pair on trial, or the one from which the host came back.
    pub pair: Pair,
    #[allow(missing_docs)]
    pub reason: String,
}

/// Returns the trial of this boot, if there is one.
#[must_use]
pub fn read(paths: &Paths) -> Option<Trial> {
    let text = files::Trial::read(paths.root())?;
    let pair = format!("{}:{}", text.image, text.initrd);
    Some(Trial {
        state: text.state,
        version: Escaped::received(&text.version).to_string(),
        pair: pair.parse().ok()?,
        reason: Escaped::received(&text.reason).to_string(),
    })
}

/// Returns true while the system is on trial: also before buildos-os-trial.service has written a
/// state, while the previous system is in RAM.
#[must_use]
pub fn is_on(paths: &Paths) -> bool {
    match read(paths) {
        Some(trial) => trial.state == TrialState::Trial,
        // A directory that cannot be read has one, too.
        None => paths.previous_os().try_exists().unwrap_or(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::Digest;

    #[test]
    fn trial_is_read_from_the_file_of_the_service() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        assert_eq!(read(&paths), None);
        std::fs::create_dir_all(paths.trial().parent().unwrap()).unwrap();
        let digest = Digest::of(b"x");
        let text = format!(
            "{{\"state\":\"returned\",\"version\":\"2\",\"image\":\"{digest}\",\
             \"initrd\":\"{digest}\",\"reason\":\"no poll\",\"since_usec\":1,\"deadline_usec\":2}}"
        );
        std::fs::write(paths.trial(), text).unwrap();
        let trial = read(&paths).unwrap();
        assert_eq!(trial.state, TrialState::Returned);
        assert_eq!(
            (trial.version.as_str(), trial.reason.as_str()),
            ("2", "no poll")
        );
        std::fs::write(paths.trial(), "{\"state\":\"other\"}").unwrap();
        assert_eq!(read(&paths), None);
    }

    #[test]
    fn system_without_a_verdict_is_on_trial_while_the_previous_one_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        assert!(!is_on(&paths));
        for path in [paths.trial(), paths.previous_os()] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        std::fs::write(paths.previous_os(), "{}").unwrap();
        assert!(is_on(&paths));
        let digest = Digest::of(b"x");
        for (state, expected) in [("trial", true), ("proven", false), ("returned", false)] {
            let text =
                format!("{{\"state\":\"{state}\",\"image\":\"{digest}\",\"initrd\":\"{digest}\"}}");
            std::fs::write(paths.trial(), text).unwrap();
            assert_eq!(is_on(&paths), expected, "{state}");
        }
    }
}
