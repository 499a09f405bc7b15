//! Infers stops and starts that agentd did not request and that change no state: a stop
//! of a unit that is down, a start of a unit that is up.
//!
//! A client that references a unit (`RefUnit`) gets its property changes, in order and
//! each with the queued job (org.freedesktop.systemd1(5)). systemd does not report the
//! results of jobs queued by other clients; this module infers them.

use std::collections::VecDeque;

use zbus::zvariant::OwnedObjectPath;

use crate::lifecycle::instance::Event;

/// Number of own jobs to remember. A unit has one job at a time, but signals of earlier
/// jobs may still be queued.
const OWN_LIMIT: usize = 8;

/// Jobs of one unit.
#[derive(Debug, Default)]
pub struct Jobs {
    /// Jobs that agentd requested, the latest last.
    own: VecDeque<OwnedObjectPath>,
    /// Queued job of another client, and the unit when the job was queued.
    foreign: Option<(OwnedObjectPath, Marks)>,
}

/// Times of the last events of a unit, CLOCK_MONOTONIC microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Change of `ActiveState` or `SubState`.
    pub changed_usec: u64,
    /// Last check of its conditions. Each start of an inactive unit begins with that check.
    pub conditions_usec: u64,
}

/// Unit at the time of a change.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Queued or running job.
    pub job: Option<&'a OwnedObjectPath>,
    /// `ActiveState` of the unit.
    pub active_state: &'a str,
    /// Times of its last events.
    pub marks: Marks,
}

impl Jobs {
    /// Records a job that agentd requested.
    pub fn add(&mut self, job: OwnedObjectPath) {
        if self.own.len() == OWN_LIMIT {
            self.own.pop_front();
        }
        self.own.push_back(job);
    }

    /// Returns true if agentd requested the job.
    #[must_use]
    pub fn is_own(&self, job: &OwnedObjectPath) -> bool {
        self.own.contains(job)
    }

    /// Returns true if the job is the last that agentd requested.
    #[must_use]
    pub fn is_last(&self, job: &OwnedObjectPath) -> bool {
        self.own.back() == Some(job)
    }

    /// Forgets the queued job: changes may have been lost.
    pub fn reset(&mut self) {
        self.foreign = None;
    }

    /// Handles a change of the unit.
    ///
    /// | after the job of another client | the job was |
    /// |---|---|
    /// | unit down, unchanged, conditions not checked | a stop, or a cancelled start |
    /// | unit up | a start or restart |
    /// | otherwise | reported by the state of the unit |
    pub fn update(&mut self, change: Change<'_>) -> Option<Event> {
        if let Some(job) = change.job {
            let marks = match self.foreign.take() {
                Some((_, marks)) => marks,
                None => change.marks,
            };
            self.foreign = (!self.is_own(job)).then(|| (job.clone(), marks));
            return None;
        }
        let (job, marks) = self.foreign.take()?;
        // systemd has merged the job of the other client into one of agentd.
        if self.is_own(&job) {
            return None;
        }
        match change.active_state {
            "inactive" | "failed" if change.marks == marks => Some(Event::StoppedByHand),
            "active" => Some(Event::StartedByHand),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u32) -> OwnedObjectPath {
        let path = format!("/org/freedesktop/systemd1/job/{number}");
        path.try_into().expect("a path")
    }

    /// Applies changes: job or 0, state, time.
    fn update(jobs: &mut Jobs, changes: &[(u32, &str, u64)]) -> Vec<Event> {
        let update = |&(number, active_state, changed_usec): &(u32, &str, u64)| {
            let job = (number != 0).then(|| job(number));
            jobs.update(Change {
                job: job.as_ref(),
                active_state,
                marks: Marks {
                    changed_usec,
                    conditions_usec: 3,
                },
            })
        };
        changes.iter().filter_map(update).collect()
    }

    #[test]
    fn stop_of_inactive_unit_is_reported() {
        for state in ["inactive", "failed"] {
            let events = update(&mut Jobs::default(), &[(7, state, 5), (0, state, 5)]);
            assert!(matches!(events[..], [Event::StoppedByHand]), "{events:?}");
        }
    }

    #[test]
    fn state_changing_job_is_not_reported() {
        let stop = [(7, "active", 5), (7, "deactivating", 6), (0, "failed", 7)];
        let failed_start = [(7, "inactive", 5), (7, "activating", 6), (0, "failed", 7)];
        let waits = [(7, "inactive", 5), (0, "activating", 6)];
        for changes in [&stop[..], &failed_start, &waits] {
            let events = update(&mut Jobs::default(), changes);
            assert!(events.is_empty(), "{changes:?}: {events:?}");
        }
    }

    #[test]
    fn start_and_restart_of_active_unit_are_reported() {
        let restart = [
            (7, "active", 5),
            (7, "deactivating", 6),
            (7, "inactive", 7),
            (7, "activating", 8),
            (0, "active", 9),
        ];
        let start = [(7, "active", 5), (0, "active", 5)];
        for changes in [&restart[..], &start] {
            let events = update(&mut Jobs::default(), changes);
            assert!(matches!(events[..], [Event::StartedByHand]), "{events:?}");
        }
    }

    #[test]
    fn own_jobs_are_not_reported() {
        let mut jobs = Jobs::default();
        jobs.add(job(7));
        let changes = [(7, "inactive", 5), (0, "inactive", 5), (0, "active", 6)];
        assert!(update(&mut jobs, &changes).is_empty());
        // An own job replaces the job of another client.
        let changes = [(6, "inactive", 5), (7, "inactive", 5), (0, "inactive", 5)];
        assert!(update(&mut jobs, &changes).is_empty());
        // The job of another client replaces an own job.
        let changes = [(7, "inactive", 5), (8, "inactive", 5), (0, "inactive", 5)];
        assert!(matches!(
            update(&mut jobs, &changes)[..],
            [Event::StoppedByHand]
        ));
    }

    #[test]
    fn start_refused_by_condition_is_not_a_stop() {
        let mut jobs = Jobs::default();
        let mut update = |job: Option<&OwnedObjectPath>, conditions_usec| {
            let marks = Marks {
                changed_usec: 5,
                conditions_usec,
            };
            jobs.update(Change {
                job,
                active_state: "inactive",
                marks,
            })
        };
        assert!(update(Some(&job(7)), 3).is_none());
        assert!(update(None, 6).is_none());
    }

    #[test]
    fn job_merged_into_own_is_not_reported() {
        let mut jobs = Jobs::default();
        assert!(update(&mut jobs, &[(7, "inactive", 5)]).is_empty());
        jobs.add(job(7));
        assert!(update(&mut jobs, &[(0, "inactive", 5)]).is_empty());
    }

    #[test]
    fn reset_forgets_queued_job() {
        let mut jobs = Jobs::default();
        assert!(update(&mut jobs, &[(7, "active", 5)]).is_empty());
        jobs.reset();
        assert!(update(&mut jobs, &[(0, "active", 5)]).is_empty());
    }

    #[test]
    fn oldest_own_job_is_forgotten() {
        let mut jobs = Jobs::default();
        for number in 1..=9 {
            jobs.add(job(number));
        }
        assert!(jobs.is_last(&job(9)) && !jobs.is_last(&job(8)));
        assert!(jobs.is_own(&job(2)) && !jobs.is_own(&job(1)));
    }
}
