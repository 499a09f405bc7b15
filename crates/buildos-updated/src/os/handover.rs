//! Requests that buildos-os-handover starts another operating system, and waits for its answer.
//!
//! The request is a file, which a path unit watches. The answer is a file of the helper, which it
//! replaces for each request.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use buildos_service::file::overwrite;
use buildos_service::text::{Escaped, chain};

use crate::os_handover::files::{Handover, HandoverState};
use crate::os_handover::record::Request;
use crate::paths::Paths;
use crate::state;

/// The helper has to answer and to end, and the host to go down, within this time: more than
/// `TimeoutStartSec=` and `TimeoutStopSec=` of buildos-os-handover.service.
const LIMIT: Duration = Duration::from_secs(660);
/// Control group of the helper, below the root.
const HELPER: &str = "sys/fs/cgroup/system.slice/buildos-os-handover.service";
/// Interval between two looks at the answer.
const LOOK: Duration = Duration::from_millis(200);
/// Permissions of the request.
const READABLE: u32 = 0o644;

/// Identity of a file: a replaced one has a different one.
fn identity(path: &Path) -> Option<(u64, i64, i64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.mtime(), found.mtime_nsec()))
}

/// Writes the request and waits. Calls `loaded` once the helper has accepted it. Withdraws the
/// request if `interrupted_within` a time, which it waits for, returns true. Returns without an error if the host goes down.
///
/// # Errors
///
/// The reason for which the host still runs. The helper can still run after [`LIMIT`].
pub fn request(
    paths: &Paths,
    request: &Request,
    mut loaded: impl FnMut(),
    interrupted_within: impl Fn(Duration) -> bool,
) -> Result<(), String> {
    let answer = paths.os_handover();
    let before = identity(&answer);
    let mut text = serde_json::to_vec(request).unwrap_or_default();
    text.push(b'\n');
    overwrite(&paths.os_request(), &text, READABLE).map_err(|error| chain(&error))?;
    let began = Instant::now();
    let mut is_loaded = false;
    let mut seen = before;
    while began.elapsed() < LIMIT {
        let is_withdrawn = interrupted_within(LOOK);
        if is_withdrawn {
            // The helper can be beyond its last look at the request.
            withdraw(paths)?;
        }
        let found = identity(&answer);
        // A file that is not whole yet is read again.
        let text = (found != seen).then(|| state::read::<Handover>(&answer));
        if let Some(text) = text.flatten() {
            seen = found;
            let reason = Escaped::received(&text.reason).to_string();
            match text.state {
                HandoverState::Loaded if is_loaded => {}
                HandoverState::Loaded => {
                    is_loaded = true;
                    loaded();
                }
                HandoverState::Refused => {
                    return Err(format!("buildos-os-handover refuses it: {reason}"));
                }
                HandoverState::Failed => {
                    return Err(format!("buildos-os-handover failed: {reason}"));
                }
            }
        }
        if is_withdrawn {
            return match is_loaded {
                true => Ok(()),
                false => Err("interrupted by a choice of the operator".to_owned()),
            };
        }
    }
    let limit = LIMIT.as_secs();
    Err(match is_loaded {
        true => format!("the host still runs {limit} s after the handover"),
        false => format!("buildos-os-handover.service does not answer within {limit} s"),
    })
}

/// Withdraws the request, and waits until the helper does not run: it reads the request again
/// before it starts the new system, which stops all tasks.
///
/// # Errors
///
/// The helper still runs.
pub fn withdraw(paths: &Paths) -> Result<(), String> {
    // Without a request there is nothing to withdraw.
    let _ = fs::remove_file(paths.os_request());
    // systemd removes the control group of a service that has ended.
    let group = paths.root().join(HELPER);
    let began = Instant::now();
    while group.exists() {
        if began.elapsed() >= LIMIT {
            return Err(format!(
                "buildos-os-handover.service still runs {} s after its request was withdrawn",
                LIMIT.as_secs()
            ));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os_handover::record::{Method, TrialTerms};
    use std::cell::Cell;
    use std::sync::mpsc;

    fn wanted(agents: Vec<String>) -> Request {
        Request {
            version: "2".to_owned(),
            serial: 7,
            method: Method::Kexec,
            trial: TrialTerms {
                deadline_s: 900,
                agents,
                why_before: 0,
            },
        }
    }

    fn answered(old: &str, new: &str) -> (Result<(), String>, bool) {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        for path in [paths.os_request(), paths.os_handover()] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        if !old.is_empty() {
            overwrite(&paths.os_handover(), old.as_bytes(), READABLE).unwrap();
        }
        let wanted = wanted(vec!["bbot@x".to_owned()]);
        let is_loaded = Cell::new(false);
        let looks = Cell::new(0);
        let result = request(
            &paths,
            &wanted,
            || is_loaded.set(true),
            |_| {
                looks.set(looks.get() + 1);
                if looks.get() == 2 {
                    let text = fs::read_to_string(paths.os_request()).unwrap();
                    assert_eq!(
                        text,
                        "{\"version\":\"2\",\"serial\":7,\"method\":\"kexec\",\"deadline_s\":900,\
                         \"agents\":[\"bbot@x\"],\"why_before\":0}\n"
                    );
                    overwrite(&paths.os_handover(), new.as_bytes(), READABLE).unwrap();
                }
                looks.get() > 4
            },
        );
        withdraw(&paths).unwrap();
        assert!(!paths.os_request().exists());
        (result, is_loaded.get())
    }

    #[test]
    fn answer_counts_only_if_it_is_new() {
        let loaded = "{\"state\":\"loaded\",\"reason\":\"\"}";
        let refused = "{\"state\":\"refused\",\"reason\":\"no image\"}";
        assert_eq!(answered(refused, loaded), (Ok(()), true));
        let (result, is_loaded) = answered(loaded, refused);
        assert_eq!(
            (result.unwrap_err().as_str(), is_loaded),
            ("buildos-os-handover refuses it: no image", false)
        );
    }

    #[test]
    fn withdrawal_waits_for_the_last_answer_of_the_helper() {
        for (last, expected) in [
            ("{\"state\":\"loaded\"}", Ok(())),
            (
                "{\"state\":\"refused\",\"reason\":\"withdrawn\"}",
                Err("buildos-os-handover refuses it: withdrawn".to_owned()),
            ),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let paths = Paths::new(directory.path());
            for path in [paths.os_request(), paths.os_handover()] {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
            }
            let group = directory.path().join(HELPER);
            fs::create_dir_all(&group).unwrap();
            let wanted = wanted(Vec::new());
            let (sender, seen) = mpsc::channel();
            let result = thread::scope(|scope| {
                scope.spawn(|| {
                    let end = Instant::now() + Duration::from_secs(60);
                    while !paths.os_request().exists() && Instant::now() < end {
                        thread::yield_now();
                    }
                    sender.send(()).unwrap();
                    while paths.os_request().exists() && Instant::now() < end {
                        thread::yield_now();
                    }
                    overwrite(&paths.os_handover(), last.as_bytes(), READABLE).unwrap();
                    fs::remove_dir(&group).unwrap();
                });
                let looks = Cell::new(0);
                request(
                    &paths,
                    &wanted,
                    || {},
                    |_| {
                        looks.set(looks.get() + 1);
                        looks.get() > 1 && seen.recv().is_ok()
                    },
                )
            });
            assert_eq!(result, expected);
        }
    }
}
