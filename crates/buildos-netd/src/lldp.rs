//! Learns from LLDP frames which switch and port each NIC is connected to (IEEE 802.1AB).
//!
//! | module | subject |
//! |---|---|
//! | [`frame`] | parser of a frame |
//! | [`neighbours`] | what was received, for each NIC, until it expires |
//!
//! netd never sends LLDP. What a neighbour says is shown to operators and decides nothing: any
//! device on the cable can send it.

pub mod frame;
pub mod neighbours;

pub use self::frame::{Frame, Neighbour};
pub use self::neighbours::Neighbours;
