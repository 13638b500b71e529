//! Connects the tracer, the queue and the exporter of spans.

use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TraceId, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    IdGenerator as _, ParentBasedSampler, RandomIdGenerator, Sampler, SamplingResult, SdkTracer,
    SdkTracerProvider, ShouldSample,
};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::span_exporter::OtlpExporter;
use super::span_queue::{SpanQueue, TraceMetrics};
use super::trace_settings::TraceSettings;

/// Makes spans and sends them to the collector.
pub struct TracePipeline {
    tracer: SdkTracer,
    metrics: TraceMetrics,
    stop: CancellationToken,
    export_task: JoinHandle<()>,
}

impl TracePipeline {
    /// Starts to export the spans of this process. `host` is its host name, and `client` sends the requests. Must be
    /// called within a Tokio runtime.
    pub fn start(settings: TraceSettings, client: reqwest::Client, host: &str) -> Self {
        let metrics = TraceMetrics::default();
        // The resource is not detected from the environment, which contains secrets.
        let resource = Resource::builder_empty()
            .with_service_name(settings.service_name.clone())
            .with_attributes([
                KeyValue::new("service.version", crate::VERSION),
                KeyValue::new("host.name", host.to_owned()),
                KeyValue::new("process.pid", i64::from(std::process::id())),
            ])
            .build();
        let (queue, spans) = SpanQueue::new(&metrics);
        let provider = SdkTracerProvider::builder()
            .with_sampler(build_sampler(settings.sample_ratio))
            .with_resource(resource.clone())
            .with_span_processor(queue)
            .build();
        let exporter = OtlpExporter::new(settings, client, &resource, &metrics);
        let stop = CancellationToken::new();
        let export_task = tokio::spawn(exporter.export_until_stopped(spans, stop.clone()));
        Self {
            tracer: provider.tracer("attesto"),
            metrics,
            stop,
            export_task,
        }
    }

    /// The tracer that makes spans.
    pub fn tracer(&self) -> SdkTracer {
        self.tracer.clone()
    }

    /// The counters of exported and dropped spans.
    pub fn trace_metrics(&self) -> TraceMetrics {
        self.metrics.clone()
    }

    /// Sends the remaining spans, and stops after `wait_limit` in any case.
    pub async fn shut_down(self, wait_limit: Duration) {
        self.stop.cancel();
        let mut export_task = self.export_task;
        if timeout(wait_limit, &mut export_task).await.is_err() {
            export_task.abort();
        }
    }
}

/// Samples the configured share of traces, both those that begin here and those that continue a caller's. The span of a
/// request begins before the caller is authenticated, so `traceparent` may be forged: neither its flag nor its trace id
/// may cause or prevent sampling. Spans within a request are sampled if the request's span is.
fn build_sampler(share: f64) -> ParentBasedSampler {
    let share = RatioSampler(Sampler::TraceIdRatioBased(share));
    Sampler::parent_based(share.clone())
        .with_remote_parent_sampled(share.clone())
        .with_remote_parent_not_sampled(share)
}

/// Samples by a random id instead of the trace id, which a caller may have chosen.
#[derive(Clone, Debug)]
struct RatioSampler(Sampler);

impl ShouldSample for RatioSampler {
    fn should_sample(
        &self,
        _: Option<&Context>,
        _: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let drawn = RandomIdGenerator::default().new_trace_id();
        self.0
            .should_sample(None, drawn, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceState};
    use opentelemetry_sdk::trace::SamplingDecision;

    use super::*;

    /// Whether a span is sampled whose parent is remote or local, and sampled or not.
    fn is_traced(share: f64, id: TraceId, is_remote: bool, flags: TraceFlags) -> bool {
        let span = SpanId::from_bytes([1; 8]);
        let parent = SpanContext::new(id, span, flags, is_remote, TraceState::NONE);
        let parent = Context::new().with_remote_span_context(parent);
        let sampled =
            build_sampler(share).should_sample(Some(&parent), id, "", &SpanKind::Server, &[], &[]);
        sampled.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn neither_a_callers_flag_nor_the_id_it_chose_decides_anything() {
        // If the trace id decided, the first one would always be sampled and the last one never.
        let ids = [1, u128::from(u64::MAX / 2), u128::MAX];
        for (share, least, most) in [(0.0, 0, 0), (0.5, 400, 600), (1.0, 1000, 1000)] {
            for flags in [TraceFlags::SAMPLED, TraceFlags::default()] {
                for id in ids.map(|id| TraceId::from_bytes(id.to_be_bytes())) {
                    // More than six standard deviations in both directions.
                    let traced = (0..1000).filter(|_| is_traced(share, id, true, flags));
                    let traced = traced.count();
                    assert!(
                        (least..=most).contains(&traced),
                        "{share} {id} {flags:?}: {traced}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_span_within_a_request_is_sampled_if_the_requests_span_is() {
        let id = TraceId::from_bytes([7; 16]);
        assert!(is_traced(0.0, id, false, TraceFlags::SAMPLED));
        assert!(!is_traced(1.0, id, false, TraceFlags::default()));
    }
}
