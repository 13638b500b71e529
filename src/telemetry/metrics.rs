//! The metrics of this process, with `prometheus-client`.
//!
//! Names in this code are the complete names of the series. A counter's name ends in `_total`, which is removed here
//! because the OpenMetrics text format adds it again. In the same way, the full stop at the end of a description is
//! removed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric, counter, gauge, histogram};
use prometheus_client::registry::{Metric, Registry};

/// A count that only grows. Clones share it.
pub type Counter = counter::Counter;
/// A value that goes up and down. Clones share it.
pub type Gauge = gauge::Gauge<f64, AtomicU64>;
/// Observed values, counted by upper bound. Clones share them.
pub type Histogram = histogram::Histogram;

/// The `Content-Type` of [`MetricsRegistry::render_text`].
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds in seconds for durations that a caller waits for.
pub const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Upper bounds in seconds for times in a queue.
pub const LONG_DURATION_BUCKETS: &[f64] = &[
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0,
];

/// All metrics of one process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MetricsRegistry(Arc<Mutex<Registry>>);

/// Metrics of one name that differ in the values of `N` labels. Clones share them.
#[derive(Clone, Debug)]
pub struct MetricVec<const N: usize, M> {
    label_names: [&'static str; N],
    family: Family<[(&'static str, String); N], M>,
}

impl<const N: usize, M: Clone> MetricVec<N, M> {
    /// The metric with these label values. The values must not be chosen by callers of Attesto: each combination is
    /// kept until the process ends.
    pub fn with_label_values(&self, values: [&str; N]) -> M {
        let labels = std::array::from_fn(|at| (self.label_names[at], values[at].to_owned()));
        self.family.get_or_create_owned(&labels)
    }
}

impl MetricsRegistry {
    /// Adds a counter. `name` ends in `_total`.
    pub fn register_counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.add(name, help, Counter::default())
    }

    /// Adds a counter that exists already. `name` ends in `_total`.
    pub fn register_existing_counter(
        &self,
        name: &'static str,
        help: &'static str,
        counter: &Counter,
    ) {
        self.add(name, help, counter.clone());
    }

    /// Adds a gauge, which is 0 until it is set.
    pub fn register_gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.add(name, help, Gauge::default())
    }

    /// Adds a histogram with these upper bounds. `name` ends in the unit; durations are in seconds.
    pub fn register_histogram(
        &self,
        name: &'static str,
        help: &'static str,
        upper_bounds: &'static [f64],
    ) -> Histogram {
        let histogram = Histogram::new(upper_bounds.iter().copied());
        self.add(name, help, histogram)
    }

    /// Adds counters that differ in labels. `name` ends in `_total`.
    pub fn register_counter_vec<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        label_names: [&'static str; N],
    ) -> MetricVec<N, Counter> {
        self.add_vec(name, help, label_names, Family::default())
    }

    /// Adds gauges that differ in labels.
    pub fn register_gauge_vec<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        label_names: [&'static str; N],
    ) -> MetricVec<N, Gauge> {
        self.add_vec(name, help, label_names, Family::default())
    }

    /// Adds histograms that differ in labels, with the bounds [`DURATION_BUCKETS`].
    pub fn register_histogram_vec<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        label_names: [&'static str; N],
    ) -> MetricVec<N, Histogram> {
        let new_histogram: fn() -> Histogram = || Histogram::new(DURATION_BUCKETS.iter().copied());
        let family = Family::new_with_constructor(new_histogram);
        self.add_vec(name, help, label_names, family)
    }

    /// Adds values that are read when the text is written. `observe` calls its argument once for each value, with the
    /// label's name and value if there is one. It must return quickly and must not block. Values of counters are whole
    /// numbers.
    pub fn register_observable(
        &self,
        name: &'static str,
        help: &'static str,
        observe: impl Fn(&mut RecordValue<'_>) + Send + Sync + 'static,
        kind: ObservableKind,
    ) {
        self.0.lock().register_collector(Box::new(Observable {
            name,
            help,
            observe: Box::new(observe),
            kind,
        }));
    }

    /// Every metric in the OpenMetrics text format 1.0.
    pub fn render_text(&self) -> String {
        let mut text = String::with_capacity(32 * 1024);
        encode(&mut text, &self.0.lock()).expect("writing to a String cannot fail");
        text
    }

    fn add<M: Metric + Clone>(&self, name: &'static str, help: &'static str, metric: M) -> M {
        let help = help.strip_suffix('.').unwrap_or(help);
        let mut registry = self.0.lock();
        registry.register(family_name(name), help, metric.clone());
        metric
    }

    fn add_vec<const N: usize, M>(
        &self,
        name: &'static str,
        help: &'static str,
        label_names: [&'static str; N],
        family: Family<[(&'static str, String); N], M>,
    ) -> MetricVec<N, M>
    where
        M: EncodeMetric + TypedMetric + Send + Sync + fmt::Debug + 'static,
    {
        MetricVec {
            label_names,
            family: self.add(name, help, family),
        }
    }
}

/// Records one value of a metric, with a label's name and value if it has one.
pub type RecordValue<'a> = dyn FnMut(Option<(&str, &str)>, f64) + 'a;

/// The type of a metric whose values are read when the text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservableKind {
    /// The value only grows.
    Counter,
    /// The value goes up and down.
    Gauge,
}

struct Observable {
    name: &'static str,
    help: &'static str,
    observe: Box<dyn Fn(&mut RecordValue<'_>) + Send + Sync>,
    kind: ObservableKind,
}

impl fmt::Debug for Observable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observable({})", self.name)
    }
}

impl Collector for Observable {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metric_type = match self.kind {
            ObservableKind::Counter => MetricType::Counter,
            ObservableKind::Gauge => MetricType::Gauge,
        };
        let name = family_name(self.name);
        let mut metric = encoder.encode_descriptor(name, self.help, None, metric_type)?;
        let mut outcome = Ok(());
        (self.observe)(&mut |label, value| {
            let mut encode = || match label {
                // Without a label, `encode_family` would write empty braces.
                None => encode_value(&mut metric, self.kind, value),
                Some(label) => encode_value(&mut metric.encode_family(&[label])?, self.kind, value),
            };
            outcome = outcome.and_then(|()| encode());
        });
        outcome
    }
}

fn encode_value(metric: &mut MetricEncoder<'_>, kind: ObservableKind, value: f64) -> fmt::Result {
    match kind {
        ObservableKind::Counter => {
            metric.encode_counter::<NoLabelSet, _, f64>(&f64_to_u64(value), None)
        }
        ObservableKind::Gauge => metric.encode_gauge(&value),
    }
}

/// A counter's name without `_total`: in the text format, only the series has the suffix, and the family does not.
fn family_name(name: &'static str) -> &'static str {
    name.strip_suffix("_total").unwrap_or(name)
}

/// A count as the value of a gauge. Above 2^53 it is rounded.
#[expect(clippy::cast_precision_loss, reason = "no count here gets that far")]
pub fn u64_to_f64(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value was a u64 before"
)]
fn f64_to_u64(count: f64) -> u64 {
    count as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_open_metrics() {
        let registry = MetricsRegistry::default();
        let lost = registry.register_counter("x_lost_total", "Lost things.");
        let asked =
            registry.register_counter_vec("x_asked_total", "Questions.", ["store", "result"]);
        let took = registry.register_histogram("x_took_seconds", "How long.", &[0.1, 1.0]);
        let depth = registry.register_gauge("x_depth", "How many wait.");
        registry.register_observable(
            "x_free",
            "Free places.",
            |record| record(Some(("state", "free")), 3.0),
            ObservableKind::Gauge,
        );
        registry.register_observable(
            "x_refused_total",
            "Refused things.",
            |record| record(None, 7.0),
            ObservableKind::Counter,
        );
        lost.inc();
        asked.with_label_values(["apple", "a\"b"]).inc_by(2);
        asked.with_label_values(["apple", "a\"b"]).inc();
        for seconds in [0.1, 0.125, 1.0, 5.0] {
            took.observe(seconds);
        }
        depth.set(0.5);
        let expected = r#"# HELP x_lost Lost things.
# TYPE x_lost counter
x_lost_total 1
# HELP x_asked Questions.
# TYPE x_asked counter
x_asked_total{store="apple",result="a\"b"} 3
# HELP x_took_seconds How long.
# TYPE x_took_seconds histogram
x_took_seconds_sum 6.225
x_took_seconds_count 4
x_took_seconds_bucket{le="0.1"} 1
x_took_seconds_bucket{le="1.0"} 3
x_took_seconds_bucket{le="+Inf"} 4
# HELP x_depth How many wait.
# TYPE x_depth gauge
x_depth 0.5
# HELP x_free Free places.
# TYPE x_free gauge
x_free{state="free"} 3.0
# HELP x_refused Refused things.
# TYPE x_refused counter
x_refused_total 7
# EOF
"#;
        assert_eq!(registry.render_text(), expected);
    }
}
