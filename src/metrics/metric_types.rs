//! Counters, gauges and histograms. Clones share one number.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Until when answers are counted apart, in seconds.
pub const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// The same for what may wait for long.
pub const LONG_DURATION_BUCKETS: &[f64] = &[
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0,
];

/// One number, or several, that a page shows.
pub trait Metric {
    /// Prometheus' word for the kind.
    const TYPE_NAME: &'static str;
    /// Adds lines for `name` with `labels`, which are written already and without braces.
    fn write_samples(&self, page: &mut String, name: &str, labels: &str);
}

/// Only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many by now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metric for Counter {
    const TYPE_NAME: &'static str = "counter";

    fn write_samples(&self, page: &mut String, name: &str, labels: &str) {
        write_sample(page, name, "", labels, "", self.get());
    }
}

/// Goes up and down.
#[derive(Clone, Debug)]
pub struct Gauge(Arc<AtomicU64>);

impl Default for Gauge {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(0_f64.to_bits())))
    }
}

impl Gauge {
    /// It is this now.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Metric for Gauge {
    const TYPE_NAME: &'static str = "gauge";

    fn write_samples(&self, page: &mut String, name: &str, labels: &str) {
        write_sample(page, name, "", labels, "", self.get());
    }
}

/// How long things take.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<HistogramBuckets>);

#[derive(Debug)]
struct HistogramBuckets {
    upper_bounds: &'static [f64],
    /// One a limit, and one for what is longer than all. Each counts its own.
    counts: Vec<AtomicU64>,
    sum_micros: AtomicU64,
}

impl Histogram {
    /// With these limits in seconds, ascending.
    pub fn new(limits: &'static [f64]) -> Self {
        Self(Arc::new(HistogramBuckets {
            upper_bounds: limits,
            counts: (0..=limits.len()).map(|_| AtomicU64::new(0)).collect(),
            sum_micros: AtomicU64::new(0),
        }))
    }

    /// One that took so long.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self
            .0
            .upper_bounds
            .partition_point(|limit| *limit < seconds);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Metric for Histogram {
    const TYPE_NAME: &'static str = "histogram";

    fn write_samples(&self, page: &mut String, name: &str, labels: &str) {
        let mut so_far = 0;
        for (position, count) in self.0.counts.iter().enumerate() {
            so_far += count.load(Ordering::Relaxed);
            let limit = match self.0.upper_bounds.get(position) {
                Some(limit) => format!("le=\"{limit}\""),
                None => "le=\"+Inf\"".to_owned(),
            };
            write_sample(page, name, "_bucket", labels, &limit, so_far);
        }
        let seconds =
            Duration::from_micros(self.0.sum_micros.load(Ordering::Relaxed)).as_secs_f64();
        write_sample(page, name, "_sum", labels, "", seconds);
        // What was observed meanwhile is in neither.
        write_sample(page, name, "_count", labels, "", so_far);
    }
}

fn write_sample(
    page: &mut String,
    name: &str,
    suffix: &str,
    labels: &str,
    more: &str,
    value: impl std::fmt::Display,
) {
    let comma = if labels.is_empty() || more.is_empty() {
        ""
    } else {
        ","
    };
    // Writing to a `String` cannot fail.
    let _ = if labels.is_empty() && more.is_empty() {
        writeln!(page, "{name}{suffix} {value}")
    } else {
        writeln!(page, "{name}{suffix}{{{labels}{comma}{more}}} {value}")
    };
}
