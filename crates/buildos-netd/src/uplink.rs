//! Chooses the uplink, the NIC that becomes the port of br0.
//!
//! | module | subject |
//! |---|---|
//! | [`candidate`] | links that may become the uplink |
//! | [`contender`] | a candidate and its DHCP client |
//! | [`election`] | the choice among the contenders |
//! | [`gateway`] | reachability of a gateway |
//! | [`notice`] | decisions that are logged |
//! | [`rank`] | order of offers and leases |
//! | [`listeners`] | sockets that the contenders need |

pub mod candidate;
pub mod contender;
pub mod election;
pub mod gateway;
pub mod listeners;
pub mod notice;
pub mod rank;
