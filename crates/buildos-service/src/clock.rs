//! Determines whether the clock of the host is synchronised.
//!
//! A time daemon (systemd-timesyncd, chrony, ntpd, ntpsec, phc2sys) passes the maximum
//! error of the clock to the kernel (adjtimex(2), `maxerror`). The kernel increases it
//! from then on. At 16 s it considers the clock unsynchronised (`NTP_PHASE_LIMIT`,
//! include/linux/timex.h), and so does `NTPSynchronized` of org.freedesktop.timedate1(5).
//! `STA_UNSYNC` is not a criterion: chrony leaves it set, so that the kernel does not
//! write the RTC.
//!
//! systemd-timesyncd also creates a file when it has set the clock. The file exists even
//! if the kernel refuses the call, or the server has been away for hours.

#![allow(unsafe_code)] // clock_adjtime(2) has no safe wrapper here.

use std::io;
use std::mem::zeroed;
use std::path::Path;

/// File that systemd-timesyncd creates when it has set the clock
/// (systemd-timesyncd.service(8)).
const TIMESYNCD: &str = "run/systemd/timesync/synchronized";
/// Maximum error at which the clock counts as unsynchronised, microseconds.
const LIMIT: i64 = 16_000_000;

/// Returns true if a time daemon keeps the clock synchronised, or timesyncd has set it in
/// this boot. Looks for timesyncd's file below `root`.
#[must_use]
pub fn is_synchronised(root: &Path) -> bool {
    root.join(TIMESYNCD).exists() || maximum_error().is_ok_and(is_synchronised_within)
}

fn is_synchronised_within(maximum_error: i64) -> bool {
    maximum_error < LIMIT
}

/// Returns the kernel's maximum error of the clock, microseconds.
fn maximum_error() -> io::Result<i64> {
    // SAFETY: a timex consists of numbers, and zero is a valid value of each.
    let mut clock: libc::timex = unsafe { zeroed() };
    // SAFETY: `clock` is a valid timex that the kernel writes to; without `modes`
    // nothing is set.
    if unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut clock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(clock.maxerror)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn clock_is_synchronised_below_kernel_limit() {
        // Just set by timesyncd; a bad server; nine hours without a server; no daemon.
        for (error, expected) in [
            (0, true),
            (1_500_000, true),
            (15_999_999, true),
            (16_000_000, false),
        ] {
            assert_eq!(is_synchronised_within(error), expected, "{error}");
        }
    }

    #[test]
    fn file_of_timesyncd_is_sufficient() {
        let error = maximum_error().unwrap();
        assert!((0..=LIMIT).contains(&error), "{error}");
        let root = tempfile::tempdir().unwrap();
        assert_eq!(is_synchronised(root.path()), is_synchronised_within(error));
        fs::create_dir_all(root.path().join("run/systemd/timesync")).unwrap();
        fs::write(root.path().join(TIMESYNCD), "").unwrap();
        assert!(is_synchronised(root.path()));
    }
}
