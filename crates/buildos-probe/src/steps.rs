//! The steps in their order, between the two files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use buildos_service::{file, text};

use crate::report::{Outcome, REPORT, Report, Step};
use crate::request::{REQUEST, Request};
use crate::{dns, lease, link, targets};

/// The program could not do its work; what it found out is no error.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// natd has not asked for anything, or the sandbox hides it.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was written by another version of natd.
    #[error("cannot understand {}", path.display())]
    Request {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The report has no JSON; a bug.
    #[error("cannot encode the report")]
    Encode(#[source] serde_json::Error),
    /// The report could not be left.
    #[error(transparent)]
    Write(#[from] file::WriteError),
}

/// Does what the request below `root` asks for and leaves a report there.
///
/// # Errors
///
/// [`ProbeError`].
pub fn run(root: &Path) -> Result<(), ProbeError> {
    let path = root.join(REQUEST);
    let request = match fs::read(&path) {
        Ok(request) => request,
        Err(source) => return Err(ProbeError::Read { path, source }),
    };
    let request = match serde_json::from_slice(&request) {
        Ok(request) => request,
        Err(source) => return Err(ProbeError::Request { path, source }),
    };
    let started = Instant::now();
    let outcome = try_out(&request);
    let report = Report {
        id: request.id,
        finished_us: micros(SystemTime::now().duration_since(UNIX_EPOCH)),
        took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        outcome,
    };
    let report = serde_json::to_vec(&report).map_err(ProbeError::Encode)?;
    file::replace(&root.join(REPORT), &report, 0o644)?;
    Ok(())
}

fn try_out(request: &Request) -> Outcome {
    if let Err(error) = link::plug(&request.bridge) {
        return failed(Step::Link, &error);
    }
    let holding = match lease::take(request.host) {
        Ok(holding) => holding,
        Err(error) => return failed(Step::Lease, &error),
    };
    let outcome = match link::configure(&holding.lease, holding.gateway) {
        Ok(()) => beyond(request, &holding),
        Err(error) => failed(Step::Link, &error),
    };
    holding.release();
    outcome
}

/// The steps that need an address.
fn beyond(request: &Request, holding: &lease::Holding) -> Outcome {
    if let Some(question) = &request.question {
        if let Err(error) = dns::ask(request.host, question) {
            return failed(Step::Names, &error);
        }
    }
    match targets::reach(&request.targets) {
        Ok(target) => Outcome::Passed {
            address: holding.lease.address,
            target: target.map(|target| target.to_string()),
        },
        Err(error) => failed(Step::Outside, &error),
    }
}

fn failed(step: Step, error: &dyn std::error::Error) -> Outcome {
    Outcome::Failed {
        step,
        reason: text::escape(&text::chain(error)),
    }
}

fn micros<E>(time: Result<std::time::Duration, E>) -> u64 {
    // Before 1970 there is no clock.
    time.map_or(0, |time| {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    })
}
