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

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry;

/// Installs the process's logger. [`crate::main`] calls it; a helper without
/// [`crate::Service`] calls it directly.
pub fn init(identifier: &str) {
    let level = std::env::var("BUILDOS_LOG")
        .ok()
        .and_then(|level| level.parse::<LevelFilter>().ok())
        .unwrap_or(LevelFilter::INFO);
    // zbus creates a span for each message, which is too much at level info.
    let zbus = match level {
        LevelFilter::DEBUG | LevelFilter::TRACE => level,
        other => other.min(LevelFilter::WARN),
    };
    let level = Targets::new().with_default(level).with_target("zbus", zbus);
    // systemd sets it if standard error is the journal (systemd.exec(5)).
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| journal(identifier).ok());
    let result = match journal {
        Some(journal) => {
            tracing::subscriber::set_global_default(registry().with(level).with(journal))
        }
        None => {
            let stderr = tracing_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(false)
                .without_time()
                .with_target(false);
            tracing::subscriber::set_global_default(registry().with(level).with(stderr))
        }
    };
    // A second call in a process fails; the first logger remains.
    drop(result);
}

fn journal(identifier: &str) -> io::Result<tracing_journald::Layer> {
    // The library maps info to notice and debug to informational by default.
    let priorities = PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        ..PriorityMappings::new()
    };
    Ok(tracing_journald::layer()?
        .with_field_prefix(None)
        .with_syslog_identifier(identifier.to_owned())
        .with_priority_mappings(priorities)
        // Facility 3 is "system daemons" (RFC 5424).
        .with_custom_fields([("SYSLOG_FACILITY", "3")]))
}
