//! buildos-channel-look: finds out whether the server has another channel file.
//!
//! ```text
//! timer ─every 3 to 4 min─→ look ──conditional request──→ server
//!                            ├── 304, or the same content: nothing
//!                            └── other content → changed ─path unit→ buildos-updated: a run
//! ```
//!
//! The daemon notes in `seen` which file it fetched last, also one that it refused. A refused file
//! leads to no further run before the timer of the daemon. Without `seen`, as after a run whose
//! server was away, an answer leads to a run.
//!
//! # Limits
//!
//! Nothing of an answer is used but its digest. A failure is not reported: the daemon reports that
//! of its next run.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use buildos_channel::Digest;
use buildos_service::file::{overwrite, read_bounded};
use buildos_service::log_to_journal;
use buildos_service::text::chain;

use crate::offer::SIGNED;
use crate::paths::Paths;
use crate::programs::curl::{self, Answer, Failure};
use crate::settings::{self, Settings};
use crate::{choices, offer, seen};

/// Permissions of the files.
const READABLE: u32 = 0o644;

/// Returns true if a look found another channel file between `began` and `now`, in microseconds
/// since 1970. A file of the future is from before the clock was set.
#[must_use]
pub fn is_changed_since(paths: &Paths, began: u64, now: u64) -> bool {
    let modified = fs::metadata(paths.changed()).and_then(|metadata| metadata.modified());
    let modified = modified
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let period = u128::from(began) + 1..=u128::from(now);
    modified.is_some_and(|time| period.contains(&time.as_micros()))
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal("buildos-channel-look");
    if std::env::args_os().len() > 1 {
        tracing::error!("buildos-channel-look takes no arguments");
        return ExitCode::from(2);
    }
    let paths = Paths::new(Path::new("/"));
    let (settings, _) = settings::load(paths.root());
    match look(&paths, &settings, Path::new("curl")) {
        Ok(()) => {}
        Err(reason) => tracing::debug!("{reason}"),
    }
    ExitCode::SUCCESS
}

/// Asks the server, and requests a run if it has another file.
fn look(paths: &Paths, settings: &Settings, curl: &Path) -> Result<(), String> {
    let Some(source) = &settings.source else {
        return Ok(());
    };
    // A run would fetch nothing.
    if choices::are_awaited(paths) || choices::load(paths)?.hold.is_some() {
        return Ok(());
    }
    let url = offer::url(settings, source);
    let seen = seen::read(paths).filter(|seen| seen.url == url);
    let known = seen.as_ref().map(|seen| &seen.validators);
    let fetched = paths.look();
    let answer = curl::fetch_if_changed(curl, &url, known, &fetched, SIGNED as u64, settings);
    let digest = match answer {
        Ok(Answer::Unchanged) => return Ok(()),
        Ok(Answer::Fetched(_)) => {
            let file = read_bounded(&fetched, SIGNED);
            file.map(|file| Digest::of(&file))
                .map_err(|error| format!("cannot read {}: {error}", fetched.display()))
        }
        Err(Failure::CannotResume) => Err(format!("{url}: the transfer broke off")),
        Err(Failure::Other(reason)) => Err(reason),
    };
    // The next look replaces it.
    let _ = fs::remove_file(&fetched);
    let digest = digest?;
    if seen.is_some_and(|seen| seen.digest == digest) {
        return Ok(());
    }
    overwrite(&paths.changed(), format!("{digest}\n").as_bytes(), READABLE)
        .map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::curl::Validators;
    use crate::seen::{Seen, note};
    use std::os::unix::fs::PermissionsExt as _;

    /// A host with a server that `script` plays: `$out` is the file, standard output the headers.
    struct Site {
        directory: tempfile::TempDir,
        settings: Settings,
    }

    impl Site {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let paths = Paths::new(directory.path());
            for path in [paths.seen(), paths.choices()] {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
            }
            let settings = Settings {
                source: Some("http://x".parse().unwrap()),
                ..Settings::default()
            };
            Self {
                directory,
                settings,
            }
        }

        fn paths(&self) -> Paths {
            Paths::new(self.directory.path())
        }

        /// Looks once. Returns true if a run is requested.
        fn look(&self, script: &str) -> Result<bool, String> {
            let paths = self.paths();
            let program = self.directory.path().join("curl");
            let out = paths.look();
            let script = format!("#!/bin/sh\nout={}\n{script}\n", out.display());
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let _ = fs::remove_file(paths.changed());
            look(&paths, &self.settings, &program)?;
            Ok(paths.changed().exists())
        }
    }

    fn seen_of(content: &str) -> Seen {
        Seen {
            url: "http://x/channel/stable".to_owned(),
            validators: Validators {
                etag: "\"a\"".to_owned(),
                last_modified: String::new(),
            },
            digest: Digest::of(content.as_bytes()),
        }
    }

    #[test]
    fn only_other_content_leads_to_a_run() {
        let site = Site::new();
        let ok = |content: &str| format!("printf {content} >$out; printf '200\\n\\n\\n'");
        // The server was away when the daemon asked.
        assert_eq!(site.look(&ok("one")), Ok(true));
        note(&site.paths(), &seen_of("one"));
        assert_eq!(site.look(&ok("one")), Ok(false));
        assert_eq!(site.look("printf '304\\n\\n\\n'"), Ok(false));
        assert_eq!(site.look(&ok("two")), Ok(true));
        assert!(!site.paths().look().exists());
        assert!(site.look("exit 7").is_err());
        assert!(!site.paths().changed().exists());
    }

    #[test]
    fn request_is_conditional_for_the_same_url_only() {
        let mut site = Site::new();
        note(&site.paths(), &seen_of("one"));
        let condition = "case \"$*\" in *If-None-Match*) printf '304\\n\\n\\n';; *) exit 22;; esac";
        assert_eq!(site.look(condition), Ok(false));
        site.settings.channel = "other".parse().unwrap();
        assert!(site.look(condition).is_err());
    }

    #[test]
    fn nothing_is_asked_while_updates_are_held_or_without_source() {
        let mut site = Site::new();
        let held = choices::Choices {
            hold: Some("x".to_owned()),
            ..choices::Choices::default()
        };
        choices::store(&site.paths(), &held).unwrap();
        assert_eq!(site.look("exit 1"), Ok(false));
        fs::remove_file(site.paths().choices()).unwrap();
        assert!(site.look("exit 1").is_err());
        site.settings.source = None;
        assert_eq!(site.look("exit 1"), Ok(false));
    }

    #[test]
    fn change_counts_until_a_run_begins_after_it() {
        let site = Site::new();
        let before = offer::now_usec();
        assert!(!is_changed_since(&site.paths(), 0, before));
        fs::write(site.paths().changed(), "x").unwrap();
        let after = offer::now_usec() + 1_000_000;
        assert!(is_changed_since(&site.paths(), 0, after));
        assert!(!is_changed_since(&site.paths(), after, after + 1));
        // The clock was set back meanwhile.
        assert!(!is_changed_since(&site.paths(), 0, before - 1_000_000));
    }
}
