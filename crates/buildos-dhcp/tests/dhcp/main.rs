//! The machine from outside: a host with a clock that the test moves, and the
//! messages of servers, good and bad.

mod golden;
mod host;
mod keeping;
mod reply;
mod search;
mod table;
