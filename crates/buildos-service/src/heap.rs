//! Returns free memory to the kernel, and measures the heap.

#![allow(unsafe_code)] // malloc_trim(3) and mallinfo(3) have no safe wrapper.

use std::time::Duration;

/// Time after its start at which a daemon has published its first state.
const START: Duration = Duration::from_secs(30);

/// Returns what only the start has needed: a configuration, replies from the bus, the first plan.
pub async fn trim_after_start() {
    tokio::time::sleep(START).await;
    trim();
}

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

/// Returns the bytes that the process has allocated, or 0 if the C library does not count them.
#[must_use]
pub fn allocated() -> usize {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: has no preconditions; mallinfo(3) is thread-safe but for a total that other
        // threads change meanwhile.
        let info = unsafe { libc::mallinfo2() };
        info.uordblks + info.hblkhd
    }
    #[cfg(not(target_env = "gnu"))]
    0
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn allocation_is_counted_until_it_is_freed() {
        const SIZE: usize = 256 << 20;
        let memory = vec![0_u8; SIZE];
        assert!(allocated() >= SIZE);
        drop(memory);
        assert!(allocated() < SIZE);
    }
}
