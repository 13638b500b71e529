//! What this process reports about itself: log lines, metrics and traces.
//!
//! - `log`: JSON lines for machines, or short lines for people; neither contains secrets
//! - [`metrics`]: counters, gauges and histograms, and their OpenMetrics text
//! - [`process_metrics`]: memory, open files and threads, as the operating system counts them
//! - [`trace_settings`], `trace_pipeline`, `span_queue`, `span_exporter`: sends ended spans to an OpenTelemetry
//!   collector, as OTLP over HTTP in protobuf
//! - [`request_span`]: the span of a request, and the trace that it belongs to
//!
//! Metrics: counting is an atomic addition and never waits for a scrape. A scrape is written from memory and queries no
//! database. No label has a value that a caller can choose, so the number of series is bounded.
//!
//! Traces: without `OTEL_EXPORTER_OTLP_ENDPOINT`, a span costs the check of one flag. With it, no request or delivery
//! waits for the collector, and memory is bounded. If the collector is not reachable, spans are dropped and counted,
//! and one line is logged. No span contains a secret, a purchase, a requested path or a query. Spans are made with
//! `info_span!` of `tracing` where the work is done; only this room uses OpenTelemetry. Attributes have the names of
//! its semantic conventions, or else begin with `attesto.`. Whole numbers are `i64`, because OTLP has no other integer
//! type.

mod log;
pub mod metrics;
pub mod process_metrics;
pub mod request_span;
mod span_exporter;
mod span_queue;
mod trace_pipeline;
pub mod trace_settings;

pub use log::{
    LogFormat, LogSettings, LogWriter, build_subscriber, current_request_id, install_logging,
    install_to, scope_request_id,
};
pub use span_queue::TraceMetrics;
pub use trace_pipeline::TracePipeline;
pub use trace_settings::TraceSettings;
