//! Connects a run, which is a thread, with the event loop.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::state::Updated;

/// State that a run publishes, and a request to end it.
#[derive(Debug)]
pub struct Progress {
    shown: watch::Sender<Updated>,
    interrupted: AtomicBool,
    held: AtomicBool,
}

impl Progress {
    /// Returns a connection, and the receiver of the states that the run shows.
    #[must_use]
    pub fn new(state: Updated) -> (Self, watch::Receiver<Updated>) {
        let (shown, receiver) = watch::channel(state);
        let progress = Self {
            shown,
            interrupted: AtomicBool::new(false),
            held: AtomicBool::new(false),
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
        self.held.store(true, Ordering::Relaxed);
        self.interrupt();
    }

    /// Returns true once an update of the operating system has to end.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns true once the run has to end.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
