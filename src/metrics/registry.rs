//! All numbers of this process, and the page that shows them.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::metric_types::{Counter, Gauge, Histogram, Metric};

/// What the page is called in `Content-Type`.
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All numbers of one process. Clones share them.
#[derive(Clone, Default)]
pub struct MetricsRegistry(Arc<Mutex<Vec<MetricFamily>>>);

/// Numbers of one name.
struct MetricFamily {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    write_samples: Box<dyn Fn(&mut String) + Send + Sync>,
}

/// Numbers of one name that differ in the values of `N` labels. Clones share them.
pub struct MetricVec<const N: usize, M>(Arc<MetricVecInner<N, M>>);

struct MetricVecInner<const N: usize, M> {
    label_names: [&'static str; N],
    new_metric: Box<dyn Fn() -> M + Send + Sync>,
    series: RwLock<Vec<([Box<str>; N], M)>>,
}

impl<const N: usize, M> Clone for MetricVec<N, M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<const N: usize, M> std::fmt::Debug for MetricVec<N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Labelled{:?}", self.0.label_names)
    }
}

impl<const N: usize, M: Clone> MetricVec<N, M> {
    fn new(names: [&'static str; N], make: impl Fn() -> M + Send + Sync + 'static) -> Self {
        Self(Arc::new(MetricVecInner {
            label_names: names,
            new_metric: Box::new(make),
            series: RwLock::default(),
        }))
    }

    /// The number with these values, which must not be a caller's to choose: each is kept for ever.
    pub fn with_label_values(&self, values: [&str; N]) -> M {
        let find = |known: &[([Box<str>; N], M)]| {
            let mut found = known.iter();
            let found = found.find(|(known, _)| known.iter().map(|known| &**known).eq(values));
            found.map(|(_, number)| number.clone())
        };
        // There are a few dozen at most: comparing is cheaper than hashing.
        let known = self.0.series.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = find(&known) {
            return number;
        }
        drop(known);
        let mut known = self
            .0
            .series
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        find(&known).unwrap_or_else(|| {
            let number = (self.0.new_metric)();
            known.push((values.map(Box::from), number.clone()));
            number
        })
    }

    fn write_samples(&self, page: &mut String, name: &str)
    where
        M: Metric,
    {
        let known = self.0.series.read().unwrap_or_else(PoisonError::into_inner);
        for (values, number) in &*known {
            let mut labels = String::new();
            for (name, value) in self.0.label_names.iter().zip(values) {
                let comma = if labels.is_empty() { "" } else { "," };
                // Writing to a `String` cannot fail.
                let _ = write!(labels, "{comma}{name}=\"{}\"", escape_label_value(value));
            }
            number.write_samples(page, name, &labels);
        }
    }
}

impl MetricsRegistry {
    /// A counter. Its name ends in `_total`.
    pub fn register_counter(&self, name: &'static str, help: &'static str) -> Counter {
        let counter = Counter::default();
        self.register_metric(name, help, counter.clone());
        counter
    }

    /// A counter that counted before there was a page to show it on.
    pub fn register_existing_counter(
        &self,
        name: &'static str,
        help: &'static str,
        counter: &Counter,
    ) {
        self.register_metric(name, help, counter.clone());
    }

    /// A gauge.
    pub fn register_gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.register_metric(name, help, gauge.clone());
        gauge
    }

    /// A histogram, with limits in seconds. Its name ends in `_seconds`.
    pub fn register_histogram(
        &self,
        name: &'static str,
        help: &'static str,
        limits: &'static [f64],
    ) -> Histogram {
        let histogram = Histogram::new(limits);
        self.register_metric(name, help, histogram.clone());
        histogram
    }

    /// Counters that differ in labels.
    pub fn register_counter_vec<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> MetricVec<N, Counter> {
        self.register_metric_vec(name, help, MetricVec::new(labels, Counter::default))
    }

    /// Gauges that differ in labels.
    pub fn register_gauge_vec<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> MetricVec<N, Gauge> {
        self.register_metric_vec(name, help, MetricVec::new(labels, Gauge::default))
    }

    /// Histograms that differ in labels.
    pub fn register_histogram_vec<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        limits: &'static [f64],
    ) -> MetricVec<N, Histogram> {
        let new = move || Histogram::new(limits);
        self.register_metric_vec(name, help, MetricVec::new(labels, new))
    }

    /// Numbers that are looked up while the page is written. `look` must be quick and must not wait.
    pub fn register_observable(
        &self,
        name: &'static str,
        help: &'static str,
        look: impl Fn(&mut dyn FnMut(&str, f64)) + Send + Sync + 'static,
        kind: ObservableKind,
    ) {
        let show = move |page: &mut String| {
            look(&mut |labels, value| {
                let gauge = Gauge::default();
                gauge.set(value);
                gauge.write_samples(page, name, labels);
            });
        };
        self.add_family(MetricFamily {
            name,
            help,
            kind: kind.as_str(),
            write_samples: Box::new(show),
        });
    }

    /// The page, in Prometheus' text format 0.0.4.
    pub fn render_text(&self) -> String {
        let families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::with_capacity(32 * 1024);
        for MetricFamily {
            name,
            help,
            kind,
            write_samples: show,
        } in &*families
        {
            // Writing to a `String` cannot fail.
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            show(&mut page);
        }
        page
    }

    fn register_metric<M: Metric + Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        number: M,
    ) {
        self.add_family(MetricFamily {
            name,
            help,
            kind: M::TYPE_NAME,
            write_samples: Box::new(move |page| number.write_samples(page, name, "")),
        });
    }

    fn register_metric_vec<const N: usize, M: Metric + Clone + Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        series: MetricVec<N, M>,
    ) -> MetricVec<N, M> {
        let shown = series.clone();
        self.add_family(MetricFamily {
            name,
            help,
            kind: M::TYPE_NAME,
            write_samples: Box::new(move |page| shown.write_samples(page, name)),
        });
        series
    }

    fn add_family(&self, family: MetricFamily) {
        let mut families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        debug_assert!(
            families.iter().all(|known| known.name != family.name),
            "{} is there already",
            family.name
        );
        families.push(family);
    }
}

/// What a number that is looked up is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservableKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl ObservableKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => Counter::TYPE_NAME,
            Self::Gauge => Gauge::TYPE_NAME,
        }
    }
}

/// A count as a page shows it; past 2^53 it is rounded.
#[expect(clippy::cast_precision_loss, reason = "nothing of ours gets there")]
pub fn u64_to_f64(count: u64) -> f64 {
    count as f64
}

fn escape_label_value(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let registry = MetricsRegistry::default();
        let lost = registry.register_counter("x_lost_total", "Lost things.");
        let asked =
            registry.register_counter_vec("x_asked_total", "Questions.", ["store", "result"]);
        let took = registry.register_histogram("x_took_seconds", "How long.", &[0.1, 1.0]);
        let depth = registry.register_gauge("x_depth", "How many wait.");
        registry.register_observable(
            "x_free",
            "Free places.",
            |tell| tell("state=\"free\"", 3.0),
            ObservableKind::Gauge,
        );
        lost.increment();
        asked.with_label_values(["apple", "a\"b"]).add(2);
        asked.with_label_values(["apple", "a\"b"]).increment();
        asked.with_label_values(["google", "valid"]);
        for millis in [100, 101, 1000, 5000] {
            took.observe(Duration::from_millis(millis));
        }
        depth.set(0.5);
        let expected = r#"# HELP x_lost_total Lost things.
# TYPE x_lost_total counter
x_lost_total 1
# HELP x_asked_total Questions.
# TYPE x_asked_total counter
x_asked_total{store="apple",result="a\"b"} 3
x_asked_total{store="google",result="valid"} 0
# HELP x_took_seconds How long.
# TYPE x_took_seconds histogram
x_took_seconds_bucket{le="0.1"} 1
x_took_seconds_bucket{le="1"} 3
x_took_seconds_bucket{le="+Inf"} 4
x_took_seconds_sum 6.201
x_took_seconds_count 4
# HELP x_depth How many wait.
# TYPE x_depth gauge
x_depth 0.5
# HELP x_free Free places.
# TYPE x_free gauge
x_free{state="free"} 3
"#;
        assert_eq!(registry.render_text(), expected);
    }
}
