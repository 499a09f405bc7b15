//! Decides what a build host runs, from a signed channel file.
//!
//! A channel is one file, `channel/NAME` on a static HTTP server: TOML inside a cleartext
//! signature. Everything that it names is an object, `objects/<sha256>`, so a server or a
//! mirror can be replaced but not change anything.
//!
//! ```text
//! signed file ─sqv(1)→ text ─grammar→ Channel ─policy→ accepted ─rollout→ desired here
//!                                                                            │
//!                    pieces to fetch, in this host's order ←plan─ PieceList ←┘
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`model`] | what a channel file says |
//! | [`grammar`] | parses the text of a channel file |
//! | [`write`](mod@write) | writes the text of a channel file |
//! | [`policy`] | accepts or refuses a channel: signatures, clock, validity, serial |
//! | [`rollout`] | decides whether a host belongs to the percentage of a rollout |
//! | [`pieces`] | cuts streams into pieces; lists of pieces |
//! | [`plan`] | which stream to fetch, and which pieces of it, in which order |
//! | [`query`] | datagrams by which hosts of a LAN find each other's pieces |
//! | [`swarm`] | which piece comes from which host, and which from the origin |
//! | [`contents`] | content id of a machine, and changes between two revisions |
//! | [`digest`], [`name`], [`time`] | validated values |
//!
//! # Limits
//!
//! The crate does no I/O and has no clock. It does not check signatures: sqv(1) does, and
//! passes on exactly the text that was signed.

pub mod contents;
pub mod digest;
pub mod grammar;
pub mod model;
pub mod name;
pub mod pieces;
pub mod plan;
pub mod policy;
pub mod query;
pub mod rollout;
pub mod swarm;
mod table;
pub mod time;
pub mod write;

pub use digest::Digest;
pub use model::Channel;
pub use name::{HostId, Name};
pub use time::Timestamp;
