//! Reads the request, runs the steps in order, and writes the report.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use buildos_service::{file, text};

use crate::report::{Outcome, REPORT, Report, Step};
use crate::request::{REQUEST, Request};
use crate::{dns, lease, link, targets};

/// The probe could not write a report. A failed step is not an error.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// natd has not written a request, or the sandbox hides it.
    #[error("cannot read {}", path.display())]
    Read {
        /// The request.
        path: PathBuf,
        /// Reason.
        #[source]
        source: io::Error,
    },
    /// A different version of natd wrote the request.
    #[error("cannot parse {}", path.display())]
    Request {
        /// The request.
        path: PathBuf,
        /// Reason.
        #[source]
        source: serde_json::Error,
    },
    /// The report does not serialize: a bug.
    #[error("cannot encode the report")]
    Encode(#[source] serde_json::Error),
    /// The file system refuses the report.
    #[error(transparent)]
    Write(#[from] file::WriteError),
}

/// Limit of the request, bytes.
const REQUEST_LIMIT: usize = 64 << 10;

/// Runs the steps of the request below `root`, and writes the report there.
///
/// # Errors
///
/// [`ProbeError`].
pub fn run(root: &Path) -> Result<(), ProbeError> {
    let path = root.join(REQUEST);
    let request = match file::read_bounded(&path, REQUEST_LIMIT) {
        Ok(request) => request,
        Err(source) => return Err(ProbeError::Read { path, source }),
    };
    let request = match serde_json::from_slice(&request) {
        Ok(request) => request,
        Err(source) => return Err(ProbeError::Request { path, source }),
    };
    let started = Instant::now();
    let outcome = run_steps(&request);
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

fn run_steps(request: &Request) -> Outcome {
    if let Err(error) = link::connect(&request.bridge) {
        return failed(Step::Link, &error);
    }
    let held = match lease::acquire(request.host) {
        Ok(held) => held,
        Err(error) => return failed(Step::Lease, &error),
    };
    let outcome = match link::configure(&held.lease, held.gateway) {
        Ok(()) => run_steps_with_address(request, &held),
        Err(error) => failed(Step::Link, &error),
    };
    held.release();
    outcome
}

/// Runs the steps that need an address.
fn run_steps_with_address(request: &Request, held: &lease::HeldLease) -> Outcome {
    if let Some(question) = &request.question {
        if let Err(error) = dns::resolve(request.host, question) {
            return failed(Step::Names, &error);
        }
    }
    match targets::reach(&request.targets) {
        Ok(target) => Outcome::Passed {
            address: held.lease.address,
            target: target.map(|target| target.to_string()),
        },
        Err(error) => failed(Step::Outside, &error),
    }
}

fn failed(step: Step, error: &dyn std::error::Error) -> Outcome {
    Outcome::Failed {
        step,
        // The reason contains text of DHCP servers, escaped.
        reason: text::Escaped::received(&text::chain(error)).into(),
    }
}

/// Converts to microseconds; times before 1970 are 0.
fn micros<E>(time: Result<std::time::Duration, E>) -> u64 {
    time.map_or(0, |time| {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    })
}
