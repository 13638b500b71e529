//! Numbers about this process, for Prometheus.
//!
//! Promises: counting is an atomic addition, and nobody who counts waits for anybody who reads; a page is written from
//! memory, without a question to the database; nothing is labelled with what a caller may choose, so the number of lines
//! is bounded.
//!
//! - [`kinds`]: counters, gauges and histograms
//! - [`registry`]: all of them, and the page in Prometheus' text format 0.0.4
//! - [`process`]: what the operating system knows of this process

pub mod metric_types;
pub mod process;
pub mod registry;

pub use metric_types::{Counter, Gauge, Histogram};
pub use registry::{METRICS_CONTENT_TYPE, MetricVec, MetricsRegistry};
