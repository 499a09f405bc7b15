//! What the jobs of a unit say beyond its state: whether somebody else stopped what
//! was down already, or started what was up already.
//!
//! Who holds a unit (`RefUnit`) gets its property changes, in order and each with the
//! job that is queued, without asking systemd for the signals about everything
//! (org.freedesktop.systemd1(5)). How a job of somebody else ended it does not get: that
//! is what is made out here.

use std::collections::VecDeque;

use zbus::zvariant::OwnedObjectPath;

use crate::lifecycle::instance::Event;

/// How many of our jobs are remembered. A unit has one at a time; news of those before
/// may still be on their way.
const REMEMBERED: usize = 8;

/// The jobs of one unit.
#[derive(Debug, Default)]
pub struct Jobs {
    /// Of our commands, the latest last.
    own: VecDeque<OwnedObjectPath>,
    /// Somebody else's that is queued, and the unit when that came.
    other: Option<(OwnedObjectPath, Marks)>,
}

/// When something happened to a unit last (µs since boot).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Its state changed, or the finer one.
    pub changed_usec: u64,
    /// Its conditions were tested, with which each start of what is down begins.
    pub tested_usec: u64,
}

/// A unit at the moment of a change.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The job that is queued or carried out.
    pub job: Option<&'a OwnedObjectPath>,
    /// `ActiveState` of the unit.
    pub active_state: &'a str,
    /// What happened to it before.
    pub marks: Marks,
}

impl Jobs {
    /// A job of ours is queued.
    pub fn add(&mut self, job: OwnedObjectPath) {
        if self.own.len() == REMEMBERED {
            self.own.pop_front();
        }
        self.own.push_back(job);
    }

    /// Whether a job is ours.
    #[must_use]
    pub fn is_own(&self, job: &OwnedObjectPath) -> bool {
        self.own.contains(job)
    }

    /// Whether none of our jobs came after this one.
    #[must_use]
    pub fn is_last(&self, job: &OwnedObjectPath) -> bool {
        self.own.back() == Some(job)
    }

    /// Changes may have been missed.
    pub fn missed(&mut self) {
        self.other = None;
    }

    /// Takes a change of the unit.
    ///
    /// When somebody else's job is done that has left the unit down as it was, without
    /// trying to start it, that was a stop (or a start that was taken back); one that
    /// leaves it up was a start or a restart. The rest is seen in the unit itself.
    pub fn see(&mut self, change: Change<'_>) -> Option<Event> {
        if let Some(job) = change.job {
            let marks = match self.other.take() {
                Some((_, marks)) => marks,
                None => change.marks,
            };
            self.other = (!self.is_own(job)).then(|| (job.clone(), marks));
            return None;
        }
        let (job, marks) = self.other.take()?;
        // Ours, into which systemd has merged somebody else's.
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

    /// Sees `(job or 0, state, time)` one after the other.
    fn see(jobs: &mut Jobs, changes: &[(u32, &str, u64)]) -> Vec<Event> {
        let see = |&(number, active_state, changed_usec): &(u32, &str, u64)| {
            let job = (number != 0).then(|| job(number));
            jobs.see(Change {
                job: job.as_ref(),
                active_state,
                marks: Marks {
                    changed_usec,
                    tested_usec: 3,
                },
            })
        };
        changes.iter().filter_map(see).collect()
    }

    #[test]
    fn a_stop_that_finds_the_unit_down_is_seen() {
        for state in ["inactive", "failed"] {
            let events = see(&mut Jobs::default(), &[(7, state, 5), (0, state, 5)]);
            assert!(matches!(events[..], [Event::StoppedByHand]), "{events:?}");
        }
    }

    #[test]
    fn what_the_unit_tells_by_itself_is_not_told_again() {
        let stop = [(7, "active", 5), (7, "deactivating", 6), (0, "failed", 7)];
        let failed_start = [(7, "inactive", 5), (7, "activating", 6), (0, "failed", 7)];
        let waits = [(7, "inactive", 5), (0, "activating", 6)];
        for changes in [&stop[..], &failed_start, &waits] {
            let events = see(&mut Jobs::default(), changes);
            assert!(events.is_empty(), "{changes:?}: {events:?}");
        }
    }

    #[test]
    fn a_start_that_finds_the_unit_up_is_seen_and_a_restart() {
        let restart = [
            (7, "active", 5),
            (7, "deactivating", 6),
            (7, "inactive", 7),
            (7, "activating", 8),
            (0, "active", 9),
        ];
        let start = [(7, "active", 5), (0, "active", 5)];
        for changes in [&restart[..], &start] {
            let events = see(&mut Jobs::default(), changes);
            assert!(matches!(events[..], [Event::StartedByHand]), "{events:?}");
        }
    }

    #[test]
    fn our_own_jobs_tell_nothing() {
        let mut jobs = Jobs::default();
        jobs.add(job(7));
        let changes = [(7, "inactive", 5), (0, "inactive", 5), (0, "active", 6)];
        assert!(see(&mut jobs, &changes).is_empty());
        // Also when ours takes the place of somebody else's.
        let changes = [(6, "inactive", 5), (7, "inactive", 5), (0, "inactive", 5)];
        assert!(see(&mut jobs, &changes).is_empty());
        // But when somebody else's takes the place of ours.
        let changes = [(7, "inactive", 5), (8, "inactive", 5), (0, "inactive", 5)];
        assert!(matches!(
            see(&mut jobs, &changes)[..],
            [Event::StoppedByHand]
        ));
    }

    #[test]
    fn a_start_that_is_refused_is_no_stop() {
        let mut jobs = Jobs::default();
        let mut see = |job: Option<&OwnedObjectPath>, tested_usec| {
            let marks = Marks {
                changed_usec: 5,
                tested_usec,
            };
            jobs.see(Change {
                job,
                active_state: "inactive",
                marks,
            })
        };
        assert!(see(Some(&job(7)), 3).is_none());
        assert!(see(None, 6).is_none());
    }

    #[test]
    fn a_job_that_becomes_ours_tells_nothing() {
        let mut jobs = Jobs::default();
        assert!(see(&mut jobs, &[(7, "inactive", 5)]).is_empty());
        jobs.add(job(7));
        assert!(see(&mut jobs, &[(0, "inactive", 5)]).is_empty());
    }

    #[test]
    fn what_was_missed_is_not_guessed() {
        let mut jobs = Jobs::default();
        assert!(see(&mut jobs, &[(7, "active", 5)]).is_empty());
        jobs.missed();
        assert!(see(&mut jobs, &[(0, "active", 5)]).is_empty());
    }

    #[test]
    fn old_jobs_are_forgotten() {
        let mut jobs = Jobs::default();
        for number in 1..=9 {
            jobs.add(job(number));
        }
        assert!(jobs.is_last(&job(9)) && !jobs.is_last(&job(8)));
        assert!(jobs.is_own(&job(2)) && !jobs.is_own(&job(1)));
    }
}
