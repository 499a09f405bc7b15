//! The heap: giving back what a daemon does not use any more.

#![allow(unsafe_code)] // malloc_trim(3) has no safe wrapper.

/// Gives pages of the heap that hold nothing back to the kernel.
///
/// The C library keeps what was freed below anything that is in use, so after a
/// burst of work, such as fifty answers of the bus at once, a daemon that then has
/// nothing to do for days would keep all that it took. To be called when it is quiet:
/// it goes through the whole heap, which takes some ten microseconds for a daemon of
/// ours.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: has no preconditions; malloc_trim(3) is thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}
