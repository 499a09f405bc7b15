//! Requests that a helper places what is in its spool, and waits for its answer.
//!
//! The request is a number in a file, which a path unit watches. The answer is the same number in
//! the state of the helper, which inotify(7) reports.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use buildos_service::file::{overwrite, read_bounded};
use buildos_service::file_watch::FileWatch;
use buildos_service::text::chain;
use buildos_service::{log_to_journal, random};
use tokio::time::timeout;

use crate::messages;
use crate::paths::Paths;
use crate::state::{self, Helper};

/// The helper has to begin within this time.
const BEGIN: Duration = Duration::from_secs(90);
/// Interval between repetitions of the request: systemd starts a helper again that was
/// killed.
const REPEAT: Duration = Duration::from_secs(5);
/// Bytes of a request that are read.
const NUMBER: usize = 64;
/// Permissions of the request.
const READABLE: u32 = 0o644;

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The helper has carried out the request.
    Done,
    /// It does not.
    Failed(&'static str),
    /// It can still come within this time.
    Open(Duration),
}

/// Judges the state of the helper, for the time since the first request. It has to end within `end`.
fn judge(handled: Option<(u64, u64)>, number: u64, elapsed: Duration, end: Duration) -> Answer {
    let left = |limit: Duration, reason| match limit.saturating_sub(elapsed) {
        Duration::ZERO => Answer::Failed(reason),
        left => Answer::Open(left),
    };
    match handled {
        None => left(BEGIN, "does not run"),
        Some((_, handled)) if handled == number => Answer::Done,
        Some((handling, _)) if handling == number => left(end, "does not end"),
        Some(_) => left(BEGIN, "does not answer"),
    }
}

/// Runs a helper, a program without arguments: `run` carries out the request with this number.
#[must_use]
pub fn answer<T: Helper>(program: &str, run: fn(&Paths, u64) -> Result<(), String>) -> ExitCode {
    log_to_journal(program);
    if std::env::args_os().len() > 1 {
        tracing::error!("{program} takes no arguments");
        return ExitCode::from(2);
    }
    let paths = Paths::new(Path::new("/"));
    loop {
        let number = number::<T>(&paths);
        match run(&paths, number) {
            // A request that came meanwhile did not start the unit, which was active.
            Ok(()) if self::number::<T>(&paths) == number => return ExitCode::SUCCESS,
            Ok(()) => {}
            Err(error) => {
                messages::helper_failed(&error);
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Returns the number of the request, or 0.
fn number<T: Helper>(paths: &Paths) -> u64 {
    let content = read_bounded(&T::request(paths), NUMBER).unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    text.trim().parse().unwrap_or(0)
}

/// Lets a helper compare what is placed with its spool, and waits for its end.
///
/// # Errors
///
/// It does not begin or end in time, or cannot be watched.
pub fn request<T: Helper>(paths: &Paths) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    // The numbers of two runs differ, whatever happened to the clock.
    runtime.block_on(wait(paths, random::seed()))
}

async fn wait<T: Helper>(paths: &Paths, number: u64) -> Result<T, String> {
    let watch = FileWatch::new(paths.root(), &[T::STATE]).map_err(|error| chain(&error))?;
    let began = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        // A change after this is reported.
        watch.add_directories().map_err(|error| chain(&error))?;
        let state: Option<T> = state::read(&paths.root().join(T::STATE));
        let handled = state.as_ref().map(T::handled);
        let left = match judge(handled, number, began.elapsed(), T::END) {
            Answer::Open(left) => left,
            Answer::Failed(reason) => return Err(format!("{} {reason}", T::UNIT)),
            Answer::Done => return Ok(state.unwrap_or_default()),
        };
        if asked.is_none_or(|asked| asked.elapsed() >= REPEAT) {
            let text = format!("{number}\n");
            overwrite(&T::request(paths), text.as_bytes(), READABLE)
                .map_err(|error| chain(&error))?;
            asked = Some(Instant::now());
        }
        // After the time, there is a reason to ask again or to fail.
        if let Ok(changed) = timeout(left.min(REPEAT), watch.changed()).await {
            changed.map_err(|error| chain(&error))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Volumes;
    use std::fs;
    use std::path::Path;
    use std::thread;

    const END: Duration = <Volumes as Helper>::END;

    fn state(handling: u64, handled: u64) -> Volumes {
        Volumes {
            handling,
            handled,
            ..Volumes::default()
        }
    }

    #[test]
    fn answer_is_awaited_with_a_limit_for_begin_and_end() {
        let second = Duration::from_secs(1);
        let failed = |reason: &'static str| Answer::Failed(reason);
        for (handled, elapsed, answer) in [
            (None, Duration::ZERO, Answer::Open(BEGIN)),
            (None, BEGIN, failed("does not run")),
            (Some((1, 1)), BEGIN - second, Answer::Open(second)),
            (Some((1, 1)), BEGIN, failed("does not answer")),
            (Some((7, 1)), BEGIN, Answer::Open(END - BEGIN)),
            (Some((7, 1)), END, failed("does not end")),
            (Some((7, 7)), END, Answer::Done),
        ] {
            assert_eq!(
                judge(handled, 7, elapsed, END),
                answer,
                "{handled:?} {elapsed:?}"
            );
        }
    }

    /// Answers requests as the helper does: in a directory that it creates.
    fn answer(root: &Path) {
        let paths = Paths::new(root);
        let end = Instant::now() + Duration::from_secs(60);
        let request = loop {
            let text = fs::read_to_string(paths.request()).unwrap_or_default();
            match text.trim().parse() {
                Ok(number) => break number,
                Err(_) => thread::yield_now(),
            }
            assert!(Instant::now() < end, "no request was written: {text:?}");
        };
        let placed = paths.placed();
        fs::create_dir_all(placed.parent().unwrap()).unwrap();
        for (handling, handled) in [(request, 0), (request, request)] {
            let text = state::text(&state(handling, handled));
            overwrite(&placed, &text, READABLE).unwrap();
        }
    }

    #[test]
    fn request_returns_with_the_answer() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let paths = Paths::new(root);
        fs::create_dir_all(paths.request().parent().unwrap()).unwrap();
        let volumes = thread::scope(|scope| {
            scope.spawn(|| answer(root));
            request::<Volumes>(&paths)
        });
        let volumes = volumes.unwrap();
        assert_ne!(volumes.handled, 0);
        assert_eq!(volumes.handling, volumes.handled);
    }
}
