//! The bounded queue of spans that ended and wait to be sent.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::metrics::{Counter, MetricsRegistry};

/// Spans in the queue. When it is full, further spans are dropped and counted.
const MAX_QUEUED_SPANS: usize = 4096;

/// Counters of spans. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct TraceMetrics {
    pub(super) exported: Counter,
    pub(super) dropped: Counter,
}

impl TraceMetrics {
    /// Adds them to `registry`.
    pub fn register_in(&self, registry: &MetricsRegistry) {
        registry.register_existing_counter(
            "attesto_spans_exported_total",
            "Spans of traces that the collector took.",
            &self.exported,
        );
        registry.register_existing_counter(
            "attesto_spans_dropped_total",
            "Spans of traces that found no room while they waited, or that the collector did not take.",
            &self.dropped,
        );
    }
}

/// Puts spans that end into the queue, and never waits.
#[derive(Debug)]
pub(super) struct SpanQueue {
    sender: Sender<SpanData>,
    metrics: TraceMetrics,
}

impl SpanQueue {
    /// A queue and its receiver.
    pub(super) fn new(metrics: &TraceMetrics) -> (Self, Receiver<SpanData>) {
        let (sender, receiver) = channel(MAX_QUEUED_SPANS);
        let metrics = metrics.clone();
        (Self { sender, metrics }, receiver)
    }
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.sender.try_send(span).is_err() {
            self.metrics.dropped.inc();
        }
    }

    // The pipeline sends what is left when it ends.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_and_what_is_not_sampled_is_not() {
        let metrics = TraceMetrics::default();
        let (queue, spans) = SpanQueue::new(&metrics);
        let provider = |sampler, queue| {
            let builder = SdkTracerProvider::builder().with_sampler(sampler);
            builder.with_span_processor(queue).build()
        };
        let traced = provider(Sampler::AlwaysOn, queue);
        for _ in 0..MAX_QUEUED_SPANS + 5 {
            traced.tracer("test").start("span").end();
        }
        assert_eq!((spans.len(), metrics.dropped.get()), (MAX_QUEUED_SPANS, 5));

        let (queue, spans) = SpanQueue::new(&metrics);
        let untraced = provider(Sampler::AlwaysOff, queue);
        untraced.tracer("test").start("span").end();
        assert_eq!((spans.len(), metrics.dropped.get()), (0, 5));
    }
}
