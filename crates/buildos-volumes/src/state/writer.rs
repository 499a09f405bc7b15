//! Runs the keeper in a thread: only this thread touches the disk.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

use super::keeper::Keeper;
use super::order::{Order, Outcome};

/// The thread. It has one order at a time, so its queues are bounded.
pub struct Writer {
    orders: SyncSender<Order>,
    outcomes: UnboundedReceiver<Outcome>,
    busy_since: Option<Instant>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The host has no process left.
    pub fn start(mut keeper: Keeper) -> io::Result<Self> {
        let (orders, received) = sync_channel(1);
        let (done, outcomes) = unbounded_channel();
        thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || {
                for order in received {
                    // The loop has ended if it does not receive any more.
                    if done.send(keeper.carry_out(order)).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            orders,
            outcomes,
            busy_since: None,
        })
    }

    /// Returns true while an order is carried out.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy_since.is_some()
    }

    /// Returns the time of the present order.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.busy_since.unwrap_or_else(Instant::now)
    }

    /// Gives an order. Call it only while the writer is not busy.
    pub fn order(&mut self, order: Order) {
        // The thread ends with this process only.
        if self.orders.try_send(order).is_ok() {
            self.busy_since = Some(Instant::now());
        }
    }

    /// Waits for the end of the present order. Cancel-safe.
    pub async fn outcome(&mut self) -> Outcome {
        let outcome = self.outcomes.recv().await.unwrap_or_default();
        self.busy_since = None;
        outcome
    }
}
