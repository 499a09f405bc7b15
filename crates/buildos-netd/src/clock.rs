//! CLOCK_BOOTTIME: monotonic, and it counts the time that the machine sleeps.
//! Leases go on while a machine sleeps.

#![allow(unsafe_code)] // clock_gettime(2) has no safe wrapper in the standard library.

use std::time::Duration;

/// Time since the machine booted.
#[must_use]
pub fn now() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec that the kernel writes to. The call
    // cannot fail with this clock; if it did, the time would stay zero.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}
