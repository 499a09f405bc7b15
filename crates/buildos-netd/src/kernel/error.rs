//! Defines the errors of requests to the kernel.

use std::io;
use std::time::Duration;

/// Limit for the kernel's answers to all requests of a step of the event loop. The first
/// bridge makes the kernel load a module, which takes seconds while a machine boots. The limit
/// must stay below `WatchdogSec=` of the unit.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// Reason why a request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused a netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel answered with an error.
    #[error("cannot {operation}")]
    Request {
        /// The request; completes "cannot …".
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not answer.
    #[error("cannot {operation}: no answer from the kernel within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// The request; completes "cannot …".
        operation: String,
    },
    /// A setting below `/proc/sys` cannot be written.
    #[error("cannot write {value} to {path}")]
    Sysctl {
        /// Path of the setting.
        path: String,
        /// The refused value.
        value: i32,
        /// The error of write(2).
        source: io::Error,
    },
    /// The socket for notifications failed.
    #[error("cannot receive notifications from the kernel")]
    Monitor(#[source] io::Error),
}
