//! Connects a run, which is a thread, with the event loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::state::Updated;

/// State that a run publishes, and a request to end it.
#[derive(Debug)]
pub struct Progress {
    shown: watch::Sender<Updated>,
    interrupted: AtomicBool,
    held: Mutex<bool>,
    held_changed: Condvar,
}

impl Progress {
    /// Returns a connection, and the receiver of the states that the run shows.
    #[must_use]
    pub fn new(state: Updated) -> (Self, watch::Receiver<Updated>) {
        let (shown, receiver) = watch::channel(state);
        let progress = Self {
            shown,
            interrupted: AtomicBool::new(false),
            held: Mutex::new(false),
            held_changed: Condvar::new(),
        };
        (progress, receiver)
    }

    /// Shows a state.
    pub fn show(&self, state: &Updated) {
        self.shown.send_replace(state.clone());
    }

    /// Lets the run end after the piece or the machine that it has begun.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    /// Lets the run end also while it updates the operating system: updates are held, or the
    /// daemon is stopped.
    pub fn hold(&self) {
        *self.held() = true;
        self.held_changed.notify_all();
        self.interrupt();
    }

    /// Returns true once an update of the operating system has to end.
    #[must_use]
    pub fn is_held(&self) -> bool {
        *self.held()
    }

    /// Waits for [`Self::hold`], but at most for `time`. Returns [`Self::is_held`].
    pub fn wait_until_held(&self, time: Duration) -> bool {
        let waited = self
            .held_changed
            .wait_timeout_while(self.held(), time, |held| !*held);
        let (held, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *held
    }

    /// A thread that panicked leaves a valid value.
    fn held(&self) -> MutexGuard<'_, bool> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true once the run has to end.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn hold_ends_a_wait() {
        let (progress, _receiver) = Progress::new(Updated::default());
        assert!(!progress.wait_until_held(Duration::ZERO));
        thread::scope(|scope| {
            let waits = scope.spawn(|| progress.wait_until_held(Duration::MAX));
            progress.hold();
            assert!(waits.join().unwrap());
        });
        assert!(progress.is_held() && progress.is_interrupted());
    }
}
