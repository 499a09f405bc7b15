//! Carries requests of operators from the bus to the event loop.

use tokio::sync::{mpsc, oneshot};

use super::Wanted;
use crate::open_port::OpenPort;

/// Requests that wait for the event loop. Further ones wait at the bus.
const WAITING: usize = 4;

/// An answer: the opened port, or a sentence.
pub type Answer<T> = oneshot::Sender<Result<T, String>>;

/// A request.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Request {
    Open(Wanted, Answer<OpenPort>),
    /// Closes this port of br0.
    Close(u16, Answer<()>),
}

/// Returns a new channel for requests.
#[must_use]
pub fn channel() -> (mpsc::Sender<Request>, mpsc::Receiver<Request>) {
    mpsc::channel(WAITING)
}
