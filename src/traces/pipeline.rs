//! From a span that ended to the collector.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::export::Exporter;
use super::queue::{Numbers, Queue};
use super::settings::Settings;
use crate::http::outbound;

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
        let root = Sampler::TraceIdRatioBased(settings.share);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(root)))
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
