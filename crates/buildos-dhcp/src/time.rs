//! Defines the time that the state machines are driven with.

/// Time since an arbitrary epoch, on a clock that never jumps and that includes
/// suspend (CLOCK_BOOTTIME).
pub type Instant = core::time::Duration;
