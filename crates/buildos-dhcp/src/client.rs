//! Runs the state machine of RFC 2131, figure 5.
//!
//! | file | subject |
//! |---|---|
//! | `phase` | the states, each with its data |
//! | `exchange` | data of the current search, renewal or confirmation |
//! | `machine` | the client, its accessors and its outputs |
//! | `commands` | inputs of the driver: start, stop, select, renew, release |
//! | `receive` | messages of servers |
//! | `timers` | the deadline, and transitions at T1, T2 and expiry |
//! | `send` | DISCOVER and the REQUESTs of each state |
//! | `decline` | address conflicts |
//! | `status` | the state in one line |

mod commands;
mod decline;
mod exchange;
mod machine;
mod phase;
mod receive;
mod send;
mod status;
mod timers;

pub use exchange::Counters;
pub use machine::Client;
