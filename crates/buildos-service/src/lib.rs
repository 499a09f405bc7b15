//! Provides the code that the buildos daemons share.
//!
//! | module | does |
//! |---|---|
//! | [`main`], [`Service`] | arguments, readiness, status, watchdog, signals |
//! | [`config`] | settings from files and the [kernel command line](cmdline) |
//! | [`log_to_journal`] | journal |
//! | [`file`](mod@file) | atomic replacement of files |
//! | [`file_watch`] | notifications of changed files |
//! | [`text`] | escapes, chains of errors |
//! | [`clock`] | synchronisation of the clock |
//! | [`random`] | seeds for jitter |
//! | [`heap`] | return of free memory to the kernel |
//!
//! A daemon passes its schema and its `run` function to [`main`]. `run` gets a
//! [`Service`]: its one `select!` awaits [`Service::request`], and it reports readiness
//! and status.

mod arguments;
pub mod clock;
pub mod cmdline;
pub mod config;
pub mod file;
pub mod file_watch;
pub mod heap;
mod logging;
pub mod notify;
pub mod random;
mod service;
pub mod text;

pub use logging::init as log_to_journal;
pub use service::{Inspection, Refused, Request, Service, main, main_with_print};
