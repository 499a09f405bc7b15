//! Decides when an agent is started, stopped and started again, without clock,
//! random numbers or I/O.
//!
//! systemd holds the facts, this state machine the intentions. The template units set
//! `Restart=always` with an infinite delay, so one look at a unit distinguishes:
//!
//! - the agent ended by itself: the unit stays in `auto-restart` ([`Phase::Ended`]);
//! - an operator stopped it: the unit is inactive ([`Phase::Down`]).
//!
//! This also holds for what happened while agentd did not run.
//!
//! ```text
//!          requirements met          unit runs
//!  Waiting ----------------> Starting --------> Running
//!     ^                       |   ^              |   |
//!     | deadline              |   |              |   | Drain
//!     |                       v   |              |   v
//!     +--------------------- Delayed <-----------+  Draining
//!                            (agent ended              | idle, or deadline
//!                             by itself)               v
//!                                               StoppingAfterDrain
//!                                                      | unit down
//!                                                      v
//!                                                   Drained
//!
//!  any state: unit stopped by an operator -> Stopped (Drained while draining)
//!             unit started by an operator -> Starting, Running
//! ```
//!
//! | file | contents |
//! |---|---|
//! | [`table`] | state × trigger → state, action |
//! | [`instance`] | one agent: turns events into triggers, carries out actions |
//! | [`status`] | state, reason and counters for D-Bus, journal and `STATUS=` |
//! | [`backoff`] | delay before the next start |
//!
//! [`Phase::Ended`]: crate::unit::phase::Phase::Ended
//! [`Phase::Down`]: crate::unit::phase::Phase::Down

pub mod backoff;
pub mod instance;
pub mod status;
pub mod table;
