//! Whether the clock of this host is right, as far as the host can know.
//!
//! Whoever disciplines the clock (systemd-timesyncd, chrony, ntpd, ntpsec, phc2sys)
//! tells the kernel how far it may be off at most; the kernel counts that up from then
//! on, and from 16 s on it says that nobody does any more (adjtimex(2), `maxerror`;
//! `NTP_PHASE_LIMIT` in the kernel's include/linux/timex.h). That is the fact, as for
//! `NTPSynchronized` of org.freedesktop.timedate1(5). `STA_UNSYNC` is none: chrony
//! leaves it set where the kernel is not to touch the RTC.
//!
//! Besides there is systemd-timesyncd's own word, a file, which also stands where the
//! kernel may not be asked, and when the server has been away for hours.

#![allow(unsafe_code)] // clock_adjtime(2) has no safe wrapper here.

use std::io;
use std::mem::zeroed;
use std::path::Path;

/// Made by systemd-timesyncd when it has set the clock by a server
/// (systemd-timesyncd.service(8)).
const TIMESYNCD: &str = "run/systemd/timesync/synchronized";
/// From this greatest error on the kernel takes its clock for wrong, microseconds.
const LIMIT: i64 = 16_000_000;

/// Whether somebody keeps the clock in step with a server, or timesyncd has set it in
/// this boot. `root` is where the file is looked for.
#[must_use]
pub fn is_synchronised(root: &Path) -> bool {
    root.join(TIMESYNCD).exists() || kernel().is_ok_and(is_right)
}

fn is_right(greatest_error: i64) -> bool {
    greatest_error < LIMIT
}

/// How far the clock may be off at most, microseconds, by the kernel.
fn kernel() -> io::Result<i64> {
    // SAFETY: a timex is numbers, for which zero is a value.
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
    fn the_limit_is_the_kernel_s() {
        // Just set by timesyncd, a bad server, for nine hours without one, nobody.
        for (error, right) in [
            (0, true),
            (1_500_000, true),
            (15_999_999, true),
            (16_000_000, false),
        ] {
            assert_eq!(is_right(error), right, "{error}");
        }
    }

    #[test]
    fn the_kernel_can_be_asked_and_timesyncd_s_word_is_enough() {
        let error = kernel().unwrap();
        assert!((0..=LIMIT).contains(&error), "{error}");
        let root = tempfile::tempdir().unwrap();
        assert_eq!(is_synchronised(root.path()), is_right(error));
        fs::create_dir_all(root.path().join("run/systemd/timesync")).unwrap();
        fs::write(root.path().join(TIMESYNCD), "").unwrap();
        assert!(is_synchronised(root.path()));
    }
}
