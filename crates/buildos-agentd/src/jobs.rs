//! What the jobs of a unit say beyond its state: whether somebody else stopped what
//! was down already, or started what was up already.
//!
//! Who holds a unit (`RefUnit`) gets its property changes, in order and each with the
//! job that is queued, without asking systemd for the signals about everything
//! (org.freedesktop.systemd1(5)).

use std::collections::VecDeque;

use zbus::zvariant::OwnedObjectPath;

use crate::instance::Event;

/// How many of our jobs are remembered. A unit has one at a time; news of those before
/// may still be on their way.
const REMEMBERED: usize = 8;

/// The jobs of one unit.
#[derive(Debug, Default)]
pub struct Jobs {
    /// Of our commands, the latest last.
    own: VecDeque<OwnedObjectPath>,
    /// Somebody else's is queued: when the unit had changed last when it came (µs since boot).
    since: Option<u64>,
}

/// A unit at the moment of a change.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The job that is queued or carried out.
    pub job: Option<&'a OwnedObjectPath>,
    /// `ActiveState` of the unit.
    pub active_state: &'a str,
    /// When that or the finer state changed last (µs since boot).
    pub changed_usec: u64,
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

    /// Takes a change of the unit.
    ///
    /// When somebody else's job is done that has left the unit down as it was, that was
    /// a stop; one that leaves it up was a start or a restart. The rest is seen in the
    /// unit itself.
    pub fn see(&mut self, change: Change<'_>) -> Option<Event> {
        match change.job {
            Some(job) if self.is_own(job) => {
                self.since = None;
                None
            }
            Some(_) => {
                self.since.get_or_insert(change.changed_usec);
                None
            }
            None => {
                let since = self.since.take()?;
                match change.active_state {
                    "inactive" | "failed" if since == change.changed_usec => {
                        Some(Event::StoppedByHand)
                    }
                    "active" => Some(Event::StartedByHand),
                    _ => None,
                }
            }
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
                changed_usec,
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
    fn old_jobs_are_forgotten() {
        let mut jobs = Jobs::default();
        for number in 1..=9 {
            jobs.add(job(number));
        }
        assert!(jobs.is_last(&job(9)) && !jobs.is_last(&job(8)));
        assert!(jobs.is_own(&job(2)) && !jobs.is_own(&job(1)));
    }
}
