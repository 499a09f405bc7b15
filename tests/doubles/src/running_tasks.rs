//! Keeps the list of running tasks and interrupts them.

use crate::controller::Priority;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The running tasks, shared by the threads that poll and build.
#[derive(Debug, Clone, Default)]
pub struct RunningTasks(Arc<(Mutex<Vec<RunningTask>>, Condvar)>);

#[derive(Debug)]
struct RunningTask {
    priority: Priority,
    interrupted: Arc<AtomicBool>,
}

impl RunningTasks {
    fn lock(&self) -> MutexGuard<'_, Vec<RunningTask>> {
        // A thread that panicked leaves a consistent list.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the priorities of the tasks, in the order of their start.
    pub(crate) fn priorities(&self) -> Vec<Priority> {
        self.lock().iter().map(|task| task.priority).collect()
    }

    /// Interrupts all tasks and waits until their machines and redirections are gone.
    pub fn interrupt_all(&self) {
        let mut tasks = self.lock();
        while !tasks.is_empty() {
            for task in tasks.iter() {
                task.interrupted.store(true, Ordering::Relaxed);
            }
            let waited = self.0.1.wait(tasks);
            tasks = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Interrupts the tasks at these indexes of [`RunningTasks::priorities`].
    pub(crate) fn interrupt(&self, indexes: &[usize]) {
        for (index, running) in self.lock().iter().enumerate() {
            if indexes.contains(&index) {
                running.interrupted.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Adds a task and returns the flag that interrupts it.
    pub(crate) fn begin(&self, priority: Priority) -> Arc<AtomicBool> {
        let interrupted = Arc::new(AtomicBool::new(false));
        self.lock().push(RunningTask {
            priority,
            interrupted: Arc::clone(&interrupted),
        });
        interrupted
    }

    /// Removes a task.
    pub(crate) fn end(&self, task: &Arc<AtomicBool>) {
        self.lock()
            .retain(|running| !Arc::ptr_eq(&running.interrupted, task));
        self.0.1.notify_all();
    }
}
