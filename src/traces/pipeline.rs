//! From a span that ended to the collector.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{ParentBasedSampler, Sampler, SdkTracer, SdkTracerProvider};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::export::Exporter;
use super::queue::{Numbers, Queue};
use super::settings::Settings;
use crate::outbound;

/// Takes spans, and sends them.
pub struct Pipeline {
    tracer: SdkTracer,
    numbers: Numbers,
    stop: CancellationToken,
    exporting: JoinHandle<()>,
}

impl Pipeline {
    /// Begins to send what `host` does to where `settings` say. Call it where a runtime is.
    pub fn begin(settings: Settings, host: &str) -> reqwest::Result<Self> {
        let client = outbound::client()?;
        let numbers = Numbers::default();
        // Nothing is read from the environment, where secrets are.
        let resource = Resource::builder_empty()
            .with_service_name(settings.service.clone())
            .with_attributes([
                KeyValue::new("service.version", crate::VERSION),
                KeyValue::new("host.name", host.to_owned()),
                KeyValue::new("process.pid", i64::from(std::process::id())),
            ])
            .build();
        let (queue, spans) = Queue::new(&numbers);
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler(settings.share))
            .with_resource(resource.clone())
            .with_span_processor(queue)
            .build();
        let exporter = Exporter::new(settings, client, &resource, &numbers);
        let stop = CancellationToken::new();
        let exporting = tokio::spawn(exporter.run(spans, stop.clone()));
        Ok(Self {
            tracer: provider.tracer("attesto"),
            numbers,
            stop,
            exporting,
        })
    }

    /// What makes spans.
    pub fn tracer(&self) -> SdkTracer {
        self.tracer.clone()
    }

    /// What is counted.
    pub fn numbers(&self) -> Numbers {
        self.numbers.clone()
    }

    /// Sends what is left, for up to `patience`.
    pub async fn end(self, patience: Duration) {
        self.stop.cancel();
        let mut exporting = self.exporting;
        if timeout(patience, &mut exporting).await.is_err() {
            exporting.abort();
        }
    }
}

/// The share decides for what begins here and for what continues a caller's trace. A request's span begins before anybody
/// knows whose it is, so a `traceparent` may be a stranger's: its flag neither has a request traced nor keeps it from
/// being traced. What happens within a request follows the request.
fn sampler(share: f64) -> ParentBasedSampler {
    let share = Sampler::TraceIdRatioBased(share);
    Sampler::parent_based(share.clone())
        .with_remote_parent_sampled(share.clone())
        .with_remote_parent_not_sampled(share)
}

#[cfg(test)]
mod tests {
    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    };
    use opentelemetry_sdk::trace::{SamplingDecision, ShouldSample as _};

    use super::*;

    /// Whether a span is traced whose parent is remote or not, and sampled or not.
    fn is_traced(share: f64, id: TraceId, is_remote: bool, flags: TraceFlags) -> bool {
        let span = SpanId::from_bytes([1; 8]);
        let parent = SpanContext::new(id, span, flags, is_remote, TraceState::NONE);
        let parent = Context::new().with_remote_span_context(parent);
        let sampled =
            sampler(share).should_sample(Some(&parent), id, "", &SpanKind::Server, &[], &[]);
        sampled.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn a_callers_flag_decides_nothing() {
        let ids = || (1..=1000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for (share, least, most) in [(0.0, 0, 0), (0.5, 400, 600), (1.0, 1000, 1000)] {
            for flags in [TraceFlags::SAMPLED, TraceFlags::default()] {
                let traced = ids()
                    .map(|id| TraceId::from_bytes(u128::from(id).to_be_bytes()))
                    .filter(|id| is_traced(share, *id, true, flags))
                    .count();
                assert!(
                    (least..=most).contains(&traced),
                    "{share} {flags:?}: {traced}"
                );
            }
        }
    }

    #[test]
    fn what_is_within_a_request_follows_it() {
        let id = TraceId::from_bytes([7; 16]);
        assert!(is_traced(0.0, id, false, TraceFlags::SAMPLED));
        assert!(!is_traced(1.0, id, false, TraceFlags::default()));
    }
}
