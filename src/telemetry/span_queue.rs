//! The bounded queue of ended spans.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::metrics::{Counter, MetricsRegistry};

/// The maximum number of spans in the queue. Further spans are dropped and counted.
const MAX_QUEUED_SPANS: usize = 4096;

/// Counters of spans. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct TraceMetrics {
    pub(super) exported: Counter,
    pub(super) dropped: Counter,
}

impl TraceMetrics {
    /// Adds the counters to `registry`.
    pub fn register_in(&self, registry: &MetricsRegistry) {
        registry.register_existing_counter(
            "attesto_spans_exported_total",
            "Spans of traces that the collector accepted.",
            &self.exported,
        );
        registry.register_existing_counter(
            "attesto_spans_dropped_total",
            "Spans of traces that were dropped because the queue was full, or that the collector did not accept.",
            &self.dropped,
        );
    }
}

/// Puts ended spans into the queue without waiting.
#[derive(Debug)]
pub(super) struct SpanQueue {
    sender: Sender<SpanData>,
    metrics: TraceMetrics,
}

impl SpanQueue {
    /// A queue, and the receiver of its spans.
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

    // The exporter sends the remaining spans when the pipeline shuts down.
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
    fn a_dropped_span_is_counted_unless_it_was_not_sampled() {
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
