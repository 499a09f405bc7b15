//! Reads the size of the terminal at standard output (ioctl_tty(2)).

#![allow(unsafe_code)] // TIOCGWINSZ has no safe wrapper.

use libc::{STDOUT_FILENO, TIOCGWINSZ, winsize};

/// Returns the characters of a line. [`None`] if standard output is not a terminal, or one of
/// unknown size, such as a serial console.
pub(super) fn columns() -> Option<usize> {
    let mut size = winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel writes one `winsize`, which outlives the call.
    let result = unsafe { libc::ioctl(STDOUT_FILENO, TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}
