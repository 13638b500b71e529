//! Where time went, for one request at a time: spans, sent to an OpenTelemetry collector as OTLP over HTTP in protobuf.
//!
//! Promises: without `OTEL_EXPORTER_OTLP_ENDPOINT` nothing listens for spans, and each of them costs a look at one flag;
//! with it, nobody who is answered or delivered to waits for a collector, memory is bounded, and a collector that is away
//! costs one line of the log and a number; no span holds a secret, a purchase, a path as it was asked for or a query; what
//! is sent to stores and to callbacks does not change.
//!
//! A span is one of `tracing`, made with `info_span!` where the work is; this room alone knows OpenTelemetry. Attributes
//! have the names of its semantic conventions where there are such, else they begin with `attesto.`; numbers
//! are `i64`, the only kind of whole number there is.
//!
//! - [`settings`]: where they go
//! - [`pipeline`]: from a span that ended to the collector
//! - `queue`: what waits in between, and what finds no room
//! - `export`: batches of it, in protobuf
//! - [`request`]: the span around an answer, and whose it continues

mod export;
pub mod pipeline;
mod queue;
pub mod request;
pub mod settings;

pub use pipeline::TracePipeline;
pub use queue::TraceMetrics;
pub use settings::TraceSettings;
