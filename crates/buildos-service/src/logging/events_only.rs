//! A [`Subscriber`] that events reach, and spans do not.
//!
//! No program of buildos opens a span, and those of libraries are disabled here. The registry of
//! tracing-subscriber would hold 32 kB for spans in each daemon.

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::registry::{Extensions, ExtensionsMut, LookupSpan, SpanData};

/// The root below the layers of a logger.
pub(super) struct EventsOnly;

/// A span, of which there are none.
pub(super) enum NoSpan {}

impl Subscriber for EventsOnly {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        // Not called for disabled spans. An id is not zero.
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

// The layers that write events ask for their spans.
impl LookupSpan<'_> for EventsOnly {
    type Data = NoSpan;

    fn span_data(&self, _: &Id) -> Option<NoSpan> {
        None
    }
}

impl SpanData<'_> for NoSpan {
    fn id(&self) -> Id {
        match *self {}
    }

    fn metadata(&self) -> &'static Metadata<'static> {
        match *self {}
    }

    fn parent(&self) -> Option<&Id> {
        match *self {}
    }

    fn extensions(&self) -> Extensions<'_> {
        match *self {}
    }

    fn extensions_mut(&self) -> ExtensionsMut<'_> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt as _;

    /// Keeps what a layer writes.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn event_in_a_span_is_written_without_it() {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .without_time()
            .with_target(false);
        tracing::subscriber::with_default(EventsOnly.with(layer), || {
            let span = tracing::error_span!("call", member = "Hello");
            assert!(span.is_disabled());
            span.in_scope(|| tracing::info!(interface = "eth0", "carrier"));
        });
        let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(written, " INFO carrier interface=\"eth0\"\n");
    }
}
