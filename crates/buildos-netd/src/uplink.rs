//! Chooses the uplink, the NIC that becomes the port of br0.
//!
//! | module | subject |
//! |---|---|
//! | [`candidate`] | links that may become the uplink |
//! | [`contender`] | a candidate and its DHCP client |
//! | [`election`] | the choice among the contenders, and the move of br0 within one LAN |
//! | [`gateway`] | reachability of a gateway |
//! | [`notice`] | decisions that are logged |
//! | [`path`] | VLANs by which NICs lead to their networks |
//! | [`rank`] | order of offers and leases |
//! | [`listeners`] | sockets that the contenders need |
//! | `ipv6_port` | the search for a port of br0 without a lease |
//! | `takeover` | the question whether a NIC is on the LAN of br0's lease |

pub mod candidate;
pub mod contender;
pub mod election;
pub mod gateway;
mod ipv6_port;
pub mod listeners;
pub mod notice;
pub mod path;
pub mod rank;
mod takeover;
