//! Returns free memory to the kernel.

#![allow(unsafe_code)] // malloc_trim(3) has no safe wrapper.

/// Returns free pages of the heap to the kernel.
///
/// The C library keeps free memory below memory in use. After a burst of work, such as
/// fifty replies from the bus, an idle daemon would keep its largest heap for days. Call
/// it when the daemon is idle: it walks the whole heap, which takes about ten
/// microseconds.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: has no preconditions; malloc_trim(3) is thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}
