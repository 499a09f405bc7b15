//! Maps every pair of state and event of an OS update to the next state and an action. Pure.
//!
//! ```text
//! idle → offered → fetching → fetched → draining → handed-over ─new boot→ trial → proven
//!            ↘        ↓          ↓          ↓           ↓                     ↘ returned → bad
//!             └────── held: window, lock, policy, operator, no way back, RAM, fault
//! ```
//!
//! [`transition`] is total and has no wildcard arm: a new state or event does not compile before
//! each of its pairs has an answer.

use buildos_dbus_api::update1::OsState as State;

/// Something that a run finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The channel has the pair that runs, or none.
    Same,
    /// The channel has a pair that does not run.
    New,
    /// The channel has a pair that came back before.
    KnownBad,
    /// Something holds the update.
    Hold,
    /// Nothing holds the update.
    Clear,
    /// All objects are in the spool.
    Arrived,
    /// No agent runs a task.
    Drained,
    /// The helper has accepted the request.
    Loaded,
    /// A step failed.
    Failed,
    /// The system that runs is on trial.
    OnTrial,
    /// The system that runs has passed its trial.
    Passed,
    /// This host came back from a system.
    CameBack,
}

impl Event {
    /// All events.
    pub const ALL: [Self; 12] = [
        Self::Same,
        Self::New,
        Self::KnownBad,
        Self::Hold,
        Self::Clear,
        Self::Arrived,
        Self::Drained,
        Self::Loaded,
        Self::Failed,
        Self::OnTrial,
        Self::Passed,
        Self::CameBack,
    ];
}

/// What a run does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Stay,
    /// Empties the spool.
    Tidy,
    /// Compares the pair of the channel with the pair that runs.
    Compare,
    /// Finds out whether something holds the update.
    Check,
    /// Fetches both pairs.
    Fetch,
    /// Gets the lock and drains the agents.
    Drain,
    /// Writes the request, and waits for the helper.
    HandOver,
    /// Ends the drain, releases the lock, and withdraws the request.
    GiveUp,
    /// Notes that the pair is bad.
    Note,
}

/// Returns the next state and the action, or [`None`] for an event that cannot happen in a state.
#[must_use]
pub const fn transition(state: State, event: Event) -> Option<(State, Action)> {
    match state {
        // A run begins in them. It left the working ones only if it was killed.
        State::Idle | State::Held | State::Bad | State::Proven | State::Returned => begin(event),
        State::Offered => match event {
            Event::Hold | Event::Failed => Some((State::Held, Action::Tidy)),
            Event::Clear => Some((State::Fetching, Action::Fetch)),
            Event::Arrived | Event::Drained | Event::Loaded => None,
            Event::Same
            | Event::New
            | Event::KnownBad
            | Event::OnTrial
            | Event::Passed
            | Event::CameBack => begin(event),
        },
        State::Fetching => match event {
            Event::Arrived => Some((State::Fetched, Action::Check)),
            // The next run resumes the parts.
            Event::Failed => Some((State::Held, Action::Stay)),
            Event::Hold => Some((State::Held, Action::Tidy)),
            Event::Clear | Event::Drained | Event::Loaded => None,
            Event::Same
            | Event::New
            | Event::KnownBad
            | Event::OnTrial
            | Event::Passed
            | Event::CameBack => begin(event),
        },
        State::Fetched => match event {
            Event::Clear => Some((State::Draining, Action::Drain)),
            Event::Hold | Event::Failed => Some((State::Held, Action::Tidy)),
            Event::Arrived | Event::Drained | Event::Loaded => None,
            Event::Same
            | Event::New
            | Event::KnownBad
            | Event::OnTrial
            | Event::Passed
            | Event::CameBack => begin(event),
        },
        State::Draining => match event {
            Event::Drained => Some((State::HandedOver, Action::HandOver)),
            Event::Hold | Event::Failed => Some((State::Held, Action::GiveUp)),
            Event::Clear | Event::Arrived | Event::Loaded => None,
            Event::Same
            | Event::New
            | Event::KnownBad
            | Event::OnTrial
            | Event::Passed
            | Event::CameBack => begin(event),
        },
        State::HandedOver => match event {
            Event::Loaded => Some((State::HandedOver, Action::Stay)),
            Event::Hold | Event::Failed => Some((State::Held, Action::GiveUp)),
            Event::Clear | Event::Arrived | Event::Drained => None,
            Event::Same
            | Event::New
            | Event::KnownBad
            | Event::OnTrial
            | Event::Passed
            | Event::CameBack => begin(event),
        },
        State::Trial => match event {
            // No update begins before the verdict about the last one.
            Event::Same | Event::New | Event::KnownBad | Event::OnTrial => {
                Some((State::Trial, Action::Stay))
            }
            // The verdict was not recorded: the next run repeats it.
            Event::Passed | Event::CameBack | Event::Failed => begin(event),
            Event::Hold | Event::Clear | Event::Arrived | Event::Drained | Event::Loaded => None,
        },
    }
}

/// Returns what the first events of a run lead to.
const fn begin(event: Event) -> Option<(State, Action)> {
    match event {
        Event::Same => Some((State::Idle, Action::Tidy)),
        Event::New => Some((State::Offered, Action::Check)),
        Event::KnownBad => Some((State::Bad, Action::Tidy)),
        Event::OnTrial => Some((State::Trial, Action::Stay)),
        Event::Passed => Some((State::Proven, Action::Compare)),
        Event::CameBack => Some((State::Returned, Action::Note)),
        // The operator's hold comes before the channel is known.
        Event::Hold | Event::Failed => Some((State::Held, Action::Tidy)),
        Event::Clear | Event::Arrived | Event::Drained | Event::Loaded => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events that begin a run, with the same result in every state but [`State::Trial`].
    const BEGIN: [(Event, State, Action); 6] = [
        (Event::Same, State::Idle, Action::Tidy),
        (Event::New, State::Offered, Action::Check),
        (Event::KnownBad, State::Bad, Action::Tidy),
        (Event::OnTrial, State::Trial, Action::Stay),
        (Event::Passed, State::Proven, Action::Compare),
        (Event::CameBack, State::Returned, Action::Note),
    ];

    /// The other pairs that can happen.
    const STEPS: [(State, Event, State, Action); 27] = [
        (State::Idle, Event::Hold, State::Held, Action::Tidy),
        (State::Idle, Event::Failed, State::Held, Action::Tidy),
        (State::Held, Event::Hold, State::Held, Action::Tidy),
        (State::Held, Event::Failed, State::Held, Action::Tidy),
        (State::Bad, Event::Hold, State::Held, Action::Tidy),
        (State::Bad, Event::Failed, State::Held, Action::Tidy),
        (State::Proven, Event::Hold, State::Held, Action::Tidy),
        (State::Proven, Event::Failed, State::Held, Action::Tidy),
        (State::Returned, Event::Hold, State::Held, Action::Tidy),
        (State::Returned, Event::Failed, State::Held, Action::Tidy),
        (State::Offered, Event::Hold, State::Held, Action::Tidy),
        (State::Offered, Event::Failed, State::Held, Action::Tidy),
        (State::Offered, Event::Clear, State::Fetching, Action::Fetch),
        (
            State::Fetching,
            Event::Arrived,
            State::Fetched,
            Action::Check,
        ),
        (State::Fetching, Event::Failed, State::Held, Action::Stay),
        (State::Fetching, Event::Hold, State::Held, Action::Tidy),
        (State::Fetched, Event::Clear, State::Draining, Action::Drain),
        (State::Fetched, Event::Hold, State::Held, Action::Tidy),
        (State::Fetched, Event::Failed, State::Held, Action::Tidy),
        (
            State::Draining,
            Event::Drained,
            State::HandedOver,
            Action::HandOver,
        ),
        (State::Draining, Event::Hold, State::Held, Action::GiveUp),
        (State::Draining, Event::Failed, State::Held, Action::GiveUp),
        (
            State::HandedOver,
            Event::Loaded,
            State::HandedOver,
            Action::Stay,
        ),
        (State::HandedOver, Event::Hold, State::Held, Action::GiveUp),
        (
            State::HandedOver,
            Event::Failed,
            State::Held,
            Action::GiveUp,
        ),
        // Also in BEGIN, for the states in which it is no exception.
        (State::Trial, Event::OnTrial, State::Trial, Action::Stay),
        (State::Trial, Event::Failed, State::Held, Action::Tidy),
    ];

    fn expected(state: State, event: Event) -> Option<(State, Action)> {
        let step = STEPS.iter().find(|step| (step.0, step.1) == (state, event));
        if let Some((.., next, action)) = step {
            return Some((*next, *action));
        }
        let is_offer = matches!(event, Event::Same | Event::New | Event::KnownBad);
        if state == State::Trial && is_offer {
            return Some((State::Trial, Action::Stay));
        }
        let begin = BEGIN.iter().find(|begin| begin.0 == event);
        begin.map(|(_, next, action)| (*next, *action))
    }

    #[test]
    fn every_pair_of_state_and_event_is_in_the_table() {
        for &state in State::ALL {
            for event in Event::ALL {
                let found = transition(state, event);
                assert_eq!(found, expected(state, event), "{state} {event:?}");
            }
        }
    }

    #[test]
    fn agents_are_never_left_drained() {
        for state in [State::Draining, State::HandedOver] {
            for event in [Event::Hold, Event::Failed] {
                let (_, action) = transition(state, event).unwrap();
                assert_eq!(action, Action::GiveUp, "{state} {event:?}");
            }
        }
    }

    #[test]
    fn request_follows_only_a_complete_drain() {
        for &state in State::ALL {
            for event in Event::ALL {
                let found = transition(state, event);
                if found.is_some_and(|(_, action)| action == Action::HandOver) {
                    assert_eq!((state, event), (State::Draining, Event::Drained));
                }
            }
        }
    }
}
