//! Reads the clocks.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::lifecycle::table::Now;

/// Returns the current time on all clocks.
pub(super) fn now() -> Now {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        instant: Instant::now(),
        realtime_usec: u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX),
        uptime: uptime(Path::new("/")),
    }
}

/// Reads the time since boot from `/proc/uptime` (proc_uptime(5)), in steps of 10 ms. Returns
/// zero if it cannot be read.
fn uptime(root: &Path) -> Duration {
    let text = fs::read_to_string(root.join("proc/uptime")).unwrap_or_default();
    let seconds = text.split_whitespace().next().and_then(|s| s.parse().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or_default()
}

/// Waits until the deadline, or indefinitely without one.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_read_or_zero() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(uptime(root.path()), Duration::ZERO);
        assert!(uptime(Path::new("/")) > Duration::ZERO);
    }
}
