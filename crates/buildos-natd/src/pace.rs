//! Limits how often notifications cause a reconciliation.
//!
//! A machine decides how often its link changes. A reconciliation per change would let it take
//! a CPU from builds.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Least time between the results of two notifications.
const INTERVAL: Duration = Duration::from_millis(250);

/// Merges notifications that follow each other within [`INTERVAL`]. The first one is not
/// delayed.
#[derive(Debug)]
pub struct Pace {
    not_before: Instant,
    /// True while a notification waits for the interval to end.
    pending: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            not_before: Instant::now(),
            pending: false,
        }
    }
}

impl Pace {
    /// Waits for a notification, and until the interval after the last one has passed.
    /// Cancel-safe if `notification` is.
    ///
    /// # Errors
    ///
    /// As `notification`.
    pub async fn next<T, E>(
        &mut self,
        notification: impl Future<Output = Result<T, E>>,
    ) -> Result<(), E> {
        if !self.pending {
            notification.await?;
            self.pending = true;
        }
        sleep_until(self.not_before).await;
        self.pending = false;
        self.not_before = Instant::now() + INTERVAL;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::future::{pending, ready};

    type Never = Result<(), Infallible>;

    #[tokio::test]
    async fn second_notification_waits_for_interval() {
        let mut pace = Pace::default();
        let began = Instant::now();
        pace.next(ready(Never::Ok(()))).await.unwrap();
        let first = Instant::now();
        pace.next(ready(Never::Ok(()))).await.unwrap();
        pace.next(ready(Never::Ok(()))).await.unwrap();
        assert!(began.elapsed() >= 2 * INTERVAL);
        assert!(first >= began);
    }

    #[tokio::test]
    async fn cancelled_wait_keeps_notification() {
        let mut pace = Pace::default();
        pace.next(ready(Never::Ok(()))).await.unwrap();
        tokio::select! {
            biased;
            _ = pace.next(ready(Never::Ok(()))) => panic!("not delayed"),
            () = ready(()) => {}
        }
        // The notification that was taken in is not asked for again.
        pace.next(pending::<Never>()).await.unwrap();
    }
}
