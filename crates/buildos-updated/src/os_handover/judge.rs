//! Judges a new system: proven, to be given more time, or to be left.
//!
//! | observed | counts as |
//! |---|---|
//! | `buildosctl why` ends with 0 or 3, each agent that ran before runs | good |
//! | the step of before the update fails, each agent that ran before runs | good |
//! | the controllers do not answer (19) | outside |
//! | a later step than before the update fails | outside |
//! | the step of before the update fails, an agent does not run | outside |
//! | anything else | fault |
//!
//! | time | good | outside | fault |
//! |---|---|---|---|
//! | before the deadline | proven after [`PROOF`] | wait | wait |
//! | up to [`EXTENSION`] after the deadline | proven after [`PROOF`] | wait | return after [`PATIENCE`] |
//! | later | return | return | return |
//!
//! A missing carrier or lease is a fault: the new kernel can lack the driver of the NIC.
//!
//! A system that an hour without controller does not disprove still has to prove itself.

use std::fmt;
use std::time::Duration;

/// Time for which all must be good without interruption.
pub const PROOF: Duration = Duration::from_secs(120);
/// Time after the deadline in which what is outside the host may become good.
pub const EXTENSION: Duration = Duration::from_secs(24 * 3600);
/// Time for which a fault must last. Agents start again when a controller comes back, and the DHCP
/// server can be away for a moment.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Most bytes of the name of an agent in a code.
const LONGEST_NAME: usize = 64;
/// Most bytes of [`Reason::code`].
pub const LONGEST_CODE: usize = "agent-".len() + LONGEST_NAME;

/// First step of `buildosctl why`.
const FIRST_STEP: u8 = 10;
/// Exit status of `buildosctl why` if no controller answers.
const CONTROLLERS: u8 = 19;
/// Exit status of `buildosctl why` if an operator stopped the agents.
const OUT_OF_SERVICE: u8 = 3;
/// Names of the steps, from [`FIRST_STEP`].
const STEPS: [&str; 10] = [
    "daemons",
    "carrier",
    "lease",
    "bridges",
    "name",
    "nat",
    "clock",
    "needs",
    "agent",
    "controllers",
];

/// What a system has to fulfil.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Time from the start of the kernel.
    pub deadline: Duration,
    /// Exit status of `buildosctl why` before the update, if it is known.
    pub why_before: Option<u8>,
}

/// The state of the new system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Exit status of `buildosctl why`, as if no tasks ran.
    pub why: u8,
    /// An agent that ran before the update and does not run now.
    pub missing: Option<String>,
}

/// Why a host returns to the previous system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// `buildosctl why` ends with this status.
    Why(u8),
    /// An agent that ran before does not run.
    Agent(String),
    /// The trial was extended for the longest time.
    TooLong,
}

/// What an observation says about the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Nothing is missing.
    Good,
    /// The system is not to blame.
    Outside,
    /// The system is to blame.
    Fault(Reason),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Observe again.
    Wait,
    /// Keep the system.
    Proven,
    /// Return to the previous system.
    Return(Reason),
}

/// A trial. Times are those since the start of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    terms: Terms,
    good_since: Option<Duration>,
    fault_since: Option<Duration>,
}

impl Trial {
    #[allow(missing_docs)]
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            good_since: None,
            fault_since: None,
        }
    }

    /// Takes an observation in.
    pub fn observe(&mut self, now: Duration, finding: Finding) -> Decision {
        self.good_since = match finding {
            Finding::Good => self.good_since.or(Some(now)),
            Finding::Outside | Finding::Fault(_) => None,
        };
        self.fault_since = match finding {
            Finding::Fault(_) => self.fault_since.or(Some(now)),
            Finding::Good | Finding::Outside => None,
        };
        let lasts = |since: Option<Duration>, time| since.is_some_and(|since| now >= since + time);
        if lasts(self.good_since, PROOF) {
            return Decision::Proven;
        }
        let deadline = self.terms.deadline;
        if now >= deadline.saturating_add(EXTENSION) {
            return Decision::Return(match finding {
                Finding::Fault(reason) => reason,
                Finding::Good | Finding::Outside => Reason::TooLong,
            });
        }
        match finding {
            Finding::Fault(reason) if now >= deadline && lasts(self.fault_since, PATIENCE) => {
                Decision::Return(reason)
            }
            Finding::Good | Finding::Outside | Finding::Fault(_) => Decision::Wait,
        }
    }
}

/// Compares an observation with the state before the update.
#[must_use]
pub fn finding(terms: Terms, observation: &Observation) -> Finding {
    let why = observation.why;
    let healthy = why == 0 || why == OUT_OF_SERVICE;
    // Other statuses do not name a step: buildosctl does not work then.
    let steps = FIRST_STEP..=CONTROLLERS;
    let before = terms
        .why_before
        .filter(|before| steps.contains(before) && steps.contains(&why));
    let as_before = before == Some(why);
    let later = before.is_some_and(|before| why > before) || why == CONTROLLERS;
    match &observation.missing {
        None if healthy || as_before => Finding::Good,
        Some(agent) if healthy => Finding::Fault(Reason::Agent(agent.clone())),
        _ if as_before || later => Finding::Outside,
        _ => Finding::Fault(Reason::Why(why)),
    }
}

/// Returns the exit status of `buildosctl why` for a step.
#[must_use]
pub fn status_of_step(name: &str) -> Option<u8> {
    let mut steps = STEPS.iter().zip(FIRST_STEP..);
    let found = steps.find(|(step, _)| **step == name);
    found.map(|(_, status)| status)
}

impl Reason {
    /// Returns the reason as a word for the kernel command line.
    #[must_use]
    pub fn code(&self) -> String {
        let word = |c: char| c.is_ascii_alphanumeric() || "@._-".contains(c);
        match self {
            Self::Why(status) => format!("why-{status}"),
            Self::Agent(name) if name.len() <= LONGEST_NAME && name.chars().all(word) => {
                format!("agent-{name}")
            }
            Self::Agent(_) => "agent-".to_owned(),
            Self::TooLong => "too-long".to_owned(),
        }
    }

    /// Returns the reason of a code.
    #[must_use]
    pub fn of_code(code: &str) -> Option<Self> {
        if code == "too-long" {
            return Some(Self::TooLong);
        }
        if let Some(agent) = code.strip_prefix("agent-") {
            return Some(Self::Agent(agent.to_owned()));
        }
        code.strip_prefix("why-")?.parse().ok().map(Self::Why)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Why(status) => {
                write!(f, "buildosctl why ended with {status}")?;
                let index = status.checked_sub(FIRST_STEP).map(usize::from);
                match index.and_then(|index| STEPS.get(index)) {
                    Some(step) => write!(f, " ({step})"),
                    None => Ok(()),
                }
            }
            Self::Agent(name) if name.is_empty() => {
                write!(f, "an agent does not run that ran before the update")
            }
            Self::Agent(name) => write!(
                f,
                "agent {name} does not run, although it ran before the update"
            ),
            Self::TooLong => write!(
                f,
                "the system was not proven within {} hours after the deadline",
                EXTENSION.as_secs() / 3600
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: u64 = 900;

    fn terms(why_before: Option<u8>) -> Terms {
        Terms {
            deadline: Duration::from_secs(DEADLINE),
            why_before,
        }
    }

    fn found(before: Option<u8>, why: u8, missing: Option<&str>) -> Finding {
        let missing = missing.map(str::to_owned);
        finding(terms(before), &Observation { why, missing })
    }

    #[test]
    fn finding_compares_with_the_state_before() {
        let fault = |status| Finding::Fault(Reason::Why(status));
        let agent = Finding::Fault(Reason::Agent("bbot@a".to_owned()));
        let gone = Some("bbot@a");
        for (before, why, missing, expected) in [
            (Some(0), 0, None, Finding::Good),
            (Some(0), 3, None, Finding::Good),
            // An agent does not run, although all it needs is there.
            (Some(0), 0, gone, agent.clone()),
            (Some(3), 0, gone, agent),
            // The image broke it.
            (Some(0), 10, gone, fault(10)),
            (Some(0), 11, None, fault(11)),
            (Some(0), 12, gone, fault(12)),
            (Some(0), 15, None, fault(15)),
            (None, 12, None, fault(12)),
            (Some(15), 12, None, fault(12)),
            (Some(19), 10, None, fault(10)),
            // It was broken before.
            (Some(12), 12, None, Finding::Good),
            // Less is broken, but what follows was not judged before.
            (Some(12), 17, None, Finding::Outside),
            (Some(12), 17, gone, Finding::Outside),
            (Some(12), 12, gone, Finding::Outside),
            (Some(17), 17, None, Finding::Good),
            // The controllers are away.
            (Some(0), 19, None, Finding::Outside),
            (Some(0), 19, gone, Finding::Outside),
            (Some(19), 19, None, Finding::Good),
            // buildosctl does not work.
            (Some(0), 1, None, fault(1)),
            (Some(1), 1, None, fault(1)),
            (Some(0), 127, None, fault(127)),
            (Some(12), 124, None, fault(124)),
            (Some(12), 127, gone, fault(127)),
            (Some(12), 134, None, fault(134)),
            (Some(124), 124, None, fault(124)),
        ] {
            assert_eq!(
                found(before, why, missing),
                expected,
                "{before:?} {why} {missing:?}"
            );
        }
    }

    /// Observes `(until, finding)` every 10 s from 10 s on; returns the end.
    fn run(plan: &[(u64, Finding)]) -> (u64, Decision) {
        let mut trial = Trial::new(terms(Some(0)));
        let mut now = 0;
        for (until, finding) in plan {
            while now < *until {
                now += 10;
                let decision = trial.observe(Duration::from_secs(now), finding.clone());
                if decision != Decision::Wait {
                    return (now, decision);
                }
            }
        }
        (now, Decision::Wait)
    }

    #[test]
    fn trial_ends_by_the_table() {
        use Finding::{Good, Outside};
        let fault = || Finding::Fault(Reason::Why(15));
        let back = |now| (now, Decision::Return(Reason::Why(15)));
        let proven = |now| (now, Decision::Proven);
        let day = EXTENSION.as_secs();
        for (plan, expected) in [
            (vec![(500, Good)], proven(130)),
            // Slow to start, then good.
            (vec![(600, fault()), (1000, Good)], proven(730)),
            // Good shortly before the deadline.
            (vec![(880, fault()), (2000, Good)], proven(1010)),
            // An interruption starts the two minutes again.
            (vec![(100, Good), (110, fault()), (500, Good)], proven(240)),
            (vec![(100, Good), (110, Outside), (500, Good)], proven(240)),
            (vec![(2000, fault())], back(900)),
            // Good and faulty in turn, also around the deadline.
            (
                vec![(850, fault()), (910, Good), (2000, fault())],
                back(980),
            ),
            // A fault at the deadline, for a moment.
            (
                vec![(880, Outside), (930, fault()), (2000, Good)],
                proven(1060),
            ),
            // The controller is away for an hour.
            (vec![(4500, Outside), (9000, Good)], proven(4630)),
            // What comes back with the controller may need a moment.
            (
                vec![(4500, Outside), (4550, fault()), (9000, Good)],
                proven(4680),
            ),
            (vec![(4500, Outside), (9000, fault())], back(4570)),
            (
                vec![(200_000, Outside)],
                (DEADLINE + day, Decision::Return(Reason::TooLong)),
            ),
        ] {
            assert_eq!(run(&plan), expected, "{plan:?}");
        }
    }

    #[test]
    fn reasons_have_codes_and_sentences() {
        for (reason, code, text) in [
            (
                Reason::Why(15),
                "why-15",
                "buildosctl why ended with 15 (nat)",
            ),
            (Reason::Why(1), "why-1", "buildosctl why ended with 1"),
            (Reason::Why(20), "why-20", "buildosctl why ended with 20"),
            (
                Reason::Agent("bbot@default".to_owned()),
                "agent-bbot@default",
                "agent bbot@default does not run, although it ran before the update",
            ),
            (
                Reason::TooLong,
                "too-long",
                "the system was not proven within 24 hours after the deadline",
            ),
        ] {
            assert_eq!(reason.code(), code);
            assert_eq!(reason.to_string(), text);
            assert_eq!(Reason::of_code(code), Some(reason));
        }
        assert_eq!(Reason::Agent("a b".to_owned()).code(), "agent-");
        let longest = Reason::Agent("x".repeat(LONGEST_NAME)).code();
        assert_eq!(longest.len(), LONGEST_CODE);
        assert_eq!(Reason::of_code("why-x"), None);
    }
}
