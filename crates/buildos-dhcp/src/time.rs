//! Defines the type of the time that a driver passes to the state machines.

/// Time since an arbitrary epoch, on a clock that never jumps and that includes
/// suspend (CLOCK_BOOTTIME).
pub type Instant = core::time::Duration;
