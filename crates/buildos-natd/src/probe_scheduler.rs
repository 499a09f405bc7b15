//! Decides when the network of machines is probed, and keeps the last result.
//!
//! The probe is a separate program in its own unit (`buildos_probe`). natd has no right to
//! start it: natd writes a request, systemd sees the file change (buildos-probe.path) and
//! starts the unit, and the probe writes a report with the number of the request. A report
//! with another number belongs to an earlier request and is ignored.
//!
//! ```text
//!            update                  request                  report, lost
//! Off, Held ────────► Scheduled(now) ────────► Requested ────────────────► Scheduled(later)
//!     ▲                                                                        │
//!     └──── switch_off, hold ◄──── every state                  request ◄──────┘
//! ```
//!
//! The scheduler is a state machine without files and clocks.

use std::time::Duration;

use buildos_dbus_api::nat1::ProbeState;
use buildos_dbus_api::system::UnitState;
use buildos_probe::{Outcome, Report, Request, Step};
use tokio::time::Instant;

use crate::probe_request::same;

/// Unit of the probe.
pub const UNIT: &str = "buildos-probe.service";
/// Time until a probe without a report counts as lost. systemd misses a request that is
/// written while it processes the previous one, and a probe can be killed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two checks whether the unit still runs.
const RUNNING_INTERVAL: Duration = Duration::from_millis(250);
/// Delay after the first failure; doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(2);
/// Minimum time between the end of a probe and an expedited one.
const MIN_GAP: Duration = Duration::from_secs(10);

/// The result of probing, as published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// [`None`] before the first reconciliation.
    pub state: Option<ProbeState>,
    /// The report of the last probe.
    pub report: Option<Report>,
}

impl Health {
    /// Returns the state as published by nat1.
    #[must_use]
    pub fn state(&self) -> ProbeState {
        self.state.unwrap_or(ProbeState::Pending)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The configuration switches probes off.
    Off,
    /// A requirement of the probe is missing.
    Held,
    /// The next probe is due at this time.
    Scheduled {
        request: Request,
        /// The report of the last probe with an equal request.
        last: Option<Report>,
        due: Instant,
    },
    /// The request is written; the report is awaited.
    Requested {
        request: Request,
        last: Option<Report>,
        timeout: Instant,
    },
}

/// Schedules probes.
#[derive(Debug)]
pub struct ProbeScheduler {
    state: State,
    /// Consecutive failures.
    failures: u32,
    /// Time of the last report.
    finished: Option<Instant>,
}

impl ProbeScheduler {
    /// Creates a scheduler. Resumes the report of an earlier natd's last request if that
    /// probe passed.
    #[must_use]
    pub fn resume(request: Option<Request>, report: Option<Report>, now: Instant) -> Self {
        let held = Self {
            state: State::Held,
            failures: 0,
            finished: None,
        };
        match (request, report) {
            (Some(request), Some(report))
                if request.id == report.id && matches!(report.outcome, Outcome::Passed { .. }) =>
            {
                Self {
                    state: State::Scheduled {
                        request,
                        last: Some(report),
                        due: now + MIN_GAP,
                    },
                    finished: Some(now),
                    ..held
                }
            }
            _ => held,
        }
    }

    /// Returns the last result.
    #[must_use]
    pub fn health(&self) -> Health {
        let (state, report) = match &self.state {
            State::Off => (ProbeState::Off, None),
            State::Held => (ProbeState::Pending, None),
            State::Scheduled { last, .. } | State::Requested { last, .. } => {
                let state = match last.as_ref().map(|report| &report.outcome) {
                    None => ProbeState::Pending,
                    Some(Outcome::Passed { .. }) => ProbeState::Passed,
                    Some(Outcome::Failed { .. }) => ProbeState::Failed,
                };
                (state, last.clone())
            }
        };
        Health {
            state: Some(state),
            report,
        }
    }

    /// Returns the time by which [`ProbeScheduler::update`] must be called.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Off | State::Held => None,
            State::Scheduled { due, .. } => Some(due),
            State::Requested { timeout, .. } => Some(timeout),
        }
    }

    /// Makes the next probe due sooner, because a change might affect machines.
    pub fn expedite(&mut self, now: Instant) {
        let earliest = self.finished.map_or(now, |at| at + MIN_GAP).max(now);
        if let State::Scheduled { due, .. } = &mut self.state {
            *due = earliest.min(*due);
        }
    }

    /// Drops request and result: a requirement of the probe is missing.
    pub fn hold(&mut self) {
        self.state = State::Held;
    }

    /// Drops request and result: probes are switched off.
    pub fn switch_off(&mut self) {
        self.state = State::Off;
    }

    /// Processes the report file and the desired request, whose number is ignored.
    /// Returns true if a probe is due: then call [`ProbeScheduler::request`].
    pub fn update(
        &mut self,
        now: Instant,
        desired: &Request,
        interval: Duration,
        report: Option<Report>,
    ) -> bool {
        if let State::Requested { request, .. } = &self.state {
            let request = request.clone();
            if let Some(report) = report.filter(|report| report.id == request.id) {
                self.finish(now, request, interval, report);
            }
        }
        let current = match &self.state {
            State::Off | State::Held => false,
            State::Scheduled { request, .. } | State::Requested { request, .. } => {
                same(request, desired)
            }
        };
        if !current {
            // The last report belongs to another network or to an earlier dnsmasq.
            self.state = State::Scheduled {
                request: desired.clone(),
                last: None,
                due: now,
            };
        }
        self.due().is_some_and(|due| now >= due)
    }

    /// Returns the request to write, with the number `id`. Returns [`None`] while the unit
    /// runs, as systemd would miss the request, and if a request was lost.
    pub fn request(
        &mut self,
        now: Instant,
        interval: Duration,
        unit: Option<&UnitState>,
        id: u64,
    ) -> Option<Request> {
        let running = unit.is_some_and(|unit| {
            let state = unit.active_state.as_str();
            ["activating", "active", "deactivating"].contains(&state)
        });
        match &mut self.state {
            State::Off | State::Held => None,
            State::Scheduled { due: at, .. } | State::Requested { timeout: at, .. } if running => {
                *at = now + RUNNING_INTERVAL;
                None
            }
            State::Requested { request, .. } => {
                let request = request.clone();
                let report = lost(request.id, unit);
                self.finish(now, request, interval, report);
                None
            }
            State::Scheduled { request, last, .. } => {
                let request = Request {
                    id,
                    ..request.clone()
                };
                self.state = State::Requested {
                    request: request.clone(),
                    last: last.take(),
                    timeout: now + TIMEOUT,
                };
                Some(request)
            }
        }
    }

    fn finish(&mut self, now: Instant, request: Request, interval: Duration, report: Report) {
        let delay = match report.outcome {
            Outcome::Passed { .. } => {
                self.failures = 0;
                interval
            }
            Outcome::Failed { .. } => {
                let delay = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(16));
                self.failures = self.failures.saturating_add(1);
                delay.min(interval)
            }
        };
        self.finished = Some(now);
        self.state = State::Scheduled {
            request,
            last: Some(report),
            due: now + delay,
        };
    }
}

/// Returns the report of a probe that left none.
fn lost(id: u64, unit: Option<&UnitState>) -> Report {
    let state = match unit {
        None => "systemd does not answer".to_owned(),
        Some(unit) if unit.load_state != "loaded" => format!("it is {}", unit.load_state),
        Some(unit) => format!("it is {}", unit.active_state),
    };
    Report {
        id,
        finished_us: 0,
        took_ms: 0,
        outcome: Outcome::Failed {
            step: Step::Link,
            reason: format!("{UNIT} left no report: {state}; see journalctl -u {UNIT}"),
        },
    }
}

#[cfg(test)]
mod tests;
