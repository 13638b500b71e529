//! Sends batches of spans to the collector, as OTLP over HTTP in protobuf.
//!
//! Messages and their encoding are those of `opentelemetry-proto`. `opentelemetry-otlp` is not used, for three reasons.
//! It reads headers, protocol and compression from environment variables even if they are passed to it, where ours can
//! come from a file or a flag. It does not report how many spans of a batch the collector refused, which a counter here
//! shows. Its retries do not end when the process stops. The SDK's batch processor is not used because it does not
//! report dropped spans either.

use std::time::Duration;

use hyper::body::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use prost::Message as _;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::span_queue::TraceMetrics;
use super::trace_settings::TraceSettings;
use crate::base::error::root_cause;

/// The maximum number of spans in one request.
const MAX_BATCH_SPANS: usize = 512;
/// How long a span waits for further spans of its batch.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit for the collector's response.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The delays before the retries of a batch. After the last retry it is dropped.
const RETRY_DELAYS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// The number of bytes of a response that are read.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Sends ended spans to the collector.
pub(super) struct OtlpExporter {
    settings: TraceSettings,
    client: reqwest::Client,
    resource: ResourceAttributesWithSchema,
    metrics: TraceMetrics,
    /// Whether the last batch was dropped. This is logged when it begins.
    is_unreachable: bool,
}

/// Why the collector did not accept a batch.
struct ExportError {
    reason: String,
    /// Whether a retry may succeed.
    is_retryable: bool,
}

impl OtlpExporter {
    pub(super) fn new(
        settings: TraceSettings,
        client: reqwest::Client,
        resource: &Resource,
        metrics: &TraceMetrics,
    ) -> Self {
        Self {
            settings,
            client,
            resource: resource.into(),
            metrics: metrics.clone(),
            is_unreachable: false,
        }
    }

    /// Sends spans until `stop` is cancelled. Then sends the spans that remain, without retries.
    pub(super) async fn export_until_stopped(
        mut self,
        mut spans: Receiver<SpanData>,
        stop: CancellationToken,
    ) {
        while !stop.is_cancelled() {
            let mut batch = Vec::new();
            let first = spans.recv_many(&mut batch, MAX_BATCH_SPANS);
            if stop.run_until_cancelled(first).await == Some(0) {
                return;
            }
            let gathering = async {
                while batch.len() < MAX_BATCH_SPANS {
                    let room = MAX_BATCH_SPANS - batch.len();
                    if spans.recv_many(&mut batch, room).await == 0 {
                        return;
                    }
                }
            };
            let _ = stop
                .run_until_cancelled(timeout(BATCH_INTERVAL, gathering))
                .await;
            self.export_batch(batch, &stop).await;
        }
        spans.close();
        loop {
            let mut batch = Vec::new();
            if spans.recv_many(&mut batch, MAX_BATCH_SPANS).await == 0 {
                return;
            }
            self.export_batch(batch, &stop).await;
        }
    }

    async fn export_batch(&mut self, batch: Vec<SpanData>, stop: &CancellationToken) {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        if count == 0 {
            return;
        }
        let message = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        let message = Bytes::from(message.encode_to_vec());
        match self.send_with_retry(&message, stop).await {
            Ok(refused) => {
                let refused = refused.min(count);
                self.metrics.exported.inc_by(count - refused);
                self.metrics.dropped.inc_by(refused);
                if std::mem::take(&mut self.is_unreachable) {
                    tracing::info!("traces_exported_again");
                }
            }
            Err(why) => {
                self.metrics.dropped.inc_by(count);
                // Logged once, until the collector is reachable again.
                if !std::mem::replace(&mut self.is_unreachable, true) {
                    let collector = self.settings.url.as_str();
                    tracing::warn!(collector, error = why, "traces_not_exported");
                }
            }
        }
    }

    /// Sends a batch, with retries unless the process stops. Returns how many of its spans the collector refused, or
    /// why it accepted none.
    async fn send_with_retry(
        &self,
        message: &Bytes,
        stop: &CancellationToken,
    ) -> Result<u64, String> {
        let mut pauses = RETRY_DELAYS.iter();
        loop {
            let refused = match timeout(EXPORT_TIMEOUT, self.send_request(message.clone())).await {
                Ok(Ok(refused)) => return Ok(refused),
                Ok(Err(refused)) => refused,
                Err(_) => ExportError {
                    reason: format!("no answer within {} s", EXPORT_TIMEOUT.as_secs()),
                    is_retryable: true,
                },
            };
            // There are no retries while the collector is known to be unreachable.
            let pause = pauses
                .next()
                .filter(|_| refused.is_retryable && !self.is_unreachable);
            let Some(pause) = pause else {
                return Err(refused.reason);
            };
            if stop.run_until_cancelled(sleep(*pause)).await.is_none() {
                return Err(refused.reason);
            }
        }
    }

    async fn send_request(&self, message: Bytes) -> Result<u64, ExportError> {
        let broken = |error: reqwest::Error| ExportError {
            reason: root_cause(&error.without_url()),
            is_retryable: true,
        };
        let mut response = self
            .client
            .post(self.settings.url.clone())
            .headers(self.settings.headers.clone())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(message)
            .send()
            .await
            .map_err(broken)?;
        let status = response.status().as_u16();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if answer.len() + chunk.len() > MAX_RESPONSE_BYTES {
                break;
            }
            answer.extend_from_slice(&chunk);
        }
        match status {
            200..300 => {
                let answer = ExportTraceServiceResponse::decode(answer.as_slice());
                let partly = answer.ok().and_then(|answer| answer.partial_success);
                let refused = partly.map_or(0, |partly| partly.rejected_spans);
                Ok(u64::try_from(refused).unwrap_or(0))
            }
            // The status codes that OTLP defines as retryable.
            429 | 502..=504 => Err(ExportError {
                reason: format!("it answers {status}"),
                is_retryable: true,
            }),
            _ => Err(ExportError {
                reason: format!("it answers {status}"),
                is_retryable: false,
            }),
        }
    }
}
