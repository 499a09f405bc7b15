//! The edges that every buildos daemon shares: logging to the journal,
//! readiness and status towards systemd, the watchdog, configuration from
//! files and the kernel command line, files that are replaced as a whole, the heap,
//! and what the kernel says of the clock.
//!
//! Nothing here knows what a daemon does. A daemon's `main.rs` hands its
//! schema and its `run` function to [`main`]; `run` gets a [`Service`], asks
//! it for [`Request`]s in its one `select!`, and tells it when it is ready and
//! what it waits for.

mod arguments;
pub mod clock;
pub mod cmdline;
pub mod config;
pub mod file;
pub mod heap;
mod logging;
pub mod notify;
pub mod random;
mod service;
pub mod text;

pub use logging::init as log_to_journal;
pub use service::{Inspection, Refused, Request, Service, main, main_with_print};
