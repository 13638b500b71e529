//! What this process reports about itself: its log, its metrics, its traces.
//!
//! - `log`: JSON lines for machines, one short line for people; nothing secret in either
//! - [`metrics`]: counters, gauges and histograms, and their OpenMetrics text
//! - [`process_metrics`]: memory, files and threads, as the operating system counts them
//! - [`trace_settings`], `trace_pipeline`, `span_queue`, `span_exporter`: spans, from where they end to an OpenTelemetry
//!   collector, as OTLP over HTTP in protobuf
//! - [`request_span`]: the span around the answer to a request, and whose trace it continues
//!
//! Metrics: counting is an atomic addition and never waits for a scrape; a scrape is written from memory and asks the
//! database nothing; no label has a value that a caller may choose, so the number of series is bounded.
//!
//! Traces: without `OTEL_EXPORTER_OTLP_ENDPOINT` a span costs a look at one flag. With it, neither a request nor a delivery
//! waits for the collector, memory is bounded, and a collector that is away costs one line of the log and a counter. No span
//! holds a secret, a purchase, a path as it was requested, or a query. A span is one of `tracing`, made with `info_span!`
//! where the work is; only this room names OpenTelemetry. Attributes are named by its semantic conventions where these have
//! a name, else they begin with `attesto.`; whole numbers are `i64`, the only kind there is.

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
