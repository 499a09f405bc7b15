//! Keeps the data of the current search, renewal or confirmation.

use crate::message::{ClientMessage, MessageKind};
use crate::time::Instant;

/// Number of broadcasts sent without the broadcast flag. Every second broadcast after them
/// has it, because some relays cannot deliver a unicast answer.
const UNICAST_ATTEMPTS: u32 = 4;

/// Messages counted since the current search, renewal or confirmation began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// DISCOVERs sent.
    pub discovers: u32,
    /// REQUESTs sent.
    pub requests: u32,
    /// Usable OFFERs received.
    pub offers: u32,
    /// OFFERs and ACKs refused for their content.
    pub refused: u32,
    /// Payloads that are not a message to this client, or not expected in its state.
    pub ignored: u32,
}

/// A series of messages with their retransmissions.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// Transaction id. Answers with any other id are ignored.
    pub(super) xid: u32,
    /// Start of the search, renewal or confirmation; `secs` counts from it.
    pub(super) began: Instant,
    /// `secs` of the last DISCOVER; the REQUEST repeats it (RFC 2131, section 4.4.1).
    pub(super) secs: u16,
    /// Broadcast flag: servers answer by broadcast.
    pub(super) broadcast: bool,
    /// Number of transmissions of the current message.
    pub(super) sent: u32,
    /// Time of the first transmission of the REQUEST; the times of a lease count from it.
    pub(super) requested_at: Instant,
}

impl Exchange {
    pub(super) fn new(now: Instant, xid: u32) -> Self {
        Self {
            xid,
            began: now,
            requested_at: now,
            ..Self::default()
        }
    }

    /// Counts a broadcast message and sets its broadcast flag, which `always` requires.
    pub(super) fn count_broadcast(&mut self, always: bool) {
        self.sent = self.sent.saturating_add(1);
        let now_and_then = self.sent % 2 == 1 && self.sent > UNICAST_ATTEMPTS;
        self.broadcast = always || now_and_then;
    }

    pub(super) fn set_secs(&mut self, now: Instant) {
        let seconds = now.saturating_sub(self.began).as_secs();
        self.secs = u16::try_from(seconds).unwrap_or(u16::MAX);
    }

    /// Returns a message with the fields that all messages of the exchange share.
    pub(super) fn message(&self, kind: MessageKind) -> ClientMessage {
        ClientMessage {
            secs: self.secs,
            broadcast: self.broadcast,
            ..ClientMessage::new(kind, self.xid)
        }
    }
}
