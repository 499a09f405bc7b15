//! Sends log events with their fields to the journal, or to standard error if it is not
//! connected to the journal.
//!
//! Fields have no prefix: `interface` becomes `INTERFACE=`, `message_id` becomes
//! `MESSAGE_ID=`. A daemon's own fields begin with `buildos_`. `BUILDOS_LOG=debug` in the
//! unit's environment lowers the level.
//!
//! | level | meaning |
//! |---|---|
//! | error | the operator must act |
//! | warn | the operator should look |
//! | info | transition, with its reason |
//! | debug | detail |
//! | trace | packet |
//!
//! Lines that repeat are held back and counted, as [`limit`] describes.

mod events_only;
pub(crate) mod journal;
mod limit;

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;

use events_only::EventsOnly;
use journal::Limited;

/// Installs the logger of a helper without [`crate::Service`]. It holds nothing back.
pub fn init(identifier: &str) {
    install(identifier, false);
}

/// Installs the logger of a daemon, in which [`journal::report_held`] runs.
pub(crate) fn init_limited(identifier: &str) {
    install(identifier, true);
}

fn install(identifier: &str, limited: bool) {
    let level = std::env::var("BUILDOS_LOG")
        .ok()
        .and_then(|level| level.parse::<LevelFilter>().ok())
        .unwrap_or(LevelFilter::INFO);
    // systemd sets it if standard error is the journal (systemd.exec(5)).
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| journal::writer(identifier).ok());
    let subscriber = EventsOnly.with(level);
    let result = match journal {
        Some(journal) if limited => {
            tracing::subscriber::set_global_default(subscriber.with(Limited::new(journal)))
        }
        Some(journal) => tracing::subscriber::set_global_default(subscriber.with(journal)),
        None => {
            let stderr = tracing_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(false)
                .without_time()
                .with_target(false);
            tracing::subscriber::set_global_default(subscriber.with(stderr))
        }
    };
    // A second call in a process fails; the first logger remains.
    drop(result);
}
