//! Reads CLOCK_BOOTTIME and waits for it.
//!
//! The clock is monotonic and advances while the machine sleeps, as leases do.

#![allow(unsafe_code)] // clock_gettime(2) and timerfd(2) have no safe wrapper here.

use std::cell::Cell;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::null_mut;
use std::time::Duration;

use buildos_dhcp::Instant;
use tokio::io::unix::AsyncFd;

/// Returns the time since boot.
#[must_use]
pub fn now() -> Instant {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec that the kernel writes to. The call cannot fail
    // with this clock; otherwise the time would remain zero.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}

/// A timer that expires on time even if the machine slept. Timers of tokio use
/// CLOCK_MONOTONIC, which stops while the machine sleeps.
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    /// Deadline that the timer is set to.
    set_to: Cell<Option<Instant>>,
}

impl Alarm {
    /// Creates a timer.
    ///
    /// # Errors
    ///
    /// The process has too many open files.
    pub fn new() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no pointers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an OwnedFd returns the same open descriptor until it is
        // dropped, and the AsyncFd owns it.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)?;
        Ok(Self {
            timer: fd,
            set_to: Cell::new(None),
        })
    }

    /// Waits until `deadline`, or indefinitely without one. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The kernel refuses the timer, which is not known to happen.
    pub async fn wait(&self, deadline: Option<Instant>) -> io::Result<()> {
        let Some(deadline) = deadline else {
            return std::future::pending().await;
        };
        if deadline <= now() {
            return Ok(());
        }
        if self.set_to.get() != Some(deadline) {
            self.set(deadline)?;
        }
        while now() < deadline {
            // The readiness might belong to an earlier deadline.
            self.timer.readable().await?.clear_ready();
        }
        Ok(())
    }

    fn set(&self, deadline: Instant) -> io::Result<()> {
        // SAFETY: an itimerspec of zeroes is valid: a timer that expires once.
        let mut timer: libc::itimerspec = unsafe { zeroed() };
        timer.it_value.tv_sec = deadline.as_secs().try_into().unwrap_or(libc::time_t::MAX);
        timer.it_value.tv_nsec = deadline.subsec_nanos().into();
        let (fd, absolute) = (self.timer.as_raw_fd(), libc::TFD_TIMER_ABSTIME);
        // SAFETY: `timer` lives in this function; the kernel writes nothing back.
        // Setting the timer clears an earlier expiry.
        let set = unsafe { libc::timerfd_settime(fd, absolute, &raw const timer, null_mut()) };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        self.set_to.set(Some(deadline));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn alarm_reused_expires_at_each_deadline() {
        let alarm = Alarm::new().unwrap();
        for _ in 0..3 {
            let deadline = now() + Duration::from_millis(20);
            alarm.wait(Some(deadline)).await.unwrap();
            assert!(now() >= deadline);
        }
        alarm.wait(Some(Duration::ZERO)).await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn alarm_cancelled_wait_does_not_end_later_wait() {
        let alarm = Alarm::new().unwrap();
        let soon = now() + Duration::from_millis(20);
        // On a busy machine it may have expired already; it must not expire again.
        let _ = tokio::time::timeout(Duration::ZERO, alarm.wait(Some(soon))).await;
        let later = now() + Duration::from_millis(60);
        alarm.wait(Some(later)).await.unwrap();
        assert!(now() >= later);
    }
}
