//! All numbers of this process, and the page that shows them.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::kinds::{Counter, Gauge, Histogram, Shown};

/// What the page is called in `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All numbers of one process. Clones share them.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Vec<Family>>>);

/// Numbers of one name.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    show: Box<dyn Fn(&mut String) + Send + Sync>,
}

/// Numbers of one name that differ in the values of `N` labels. Clones share them.
pub struct Labelled<const N: usize, M>(Arc<Series<N, M>>);

struct Series<const N: usize, M> {
    names: [&'static str; N],
    make: Box<dyn Fn() -> M + Send + Sync>,
    known: RwLock<Vec<([Box<str>; N], M)>>,
}

impl<const N: usize, M> Clone for Labelled<N, M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<const N: usize, M> std::fmt::Debug for Labelled<N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Labelled{:?}", self.0.names)
    }
}

impl<const N: usize, M: Clone> Labelled<N, M> {
    fn new(names: [&'static str; N], make: impl Fn() -> M + Send + Sync + 'static) -> Self {
        Self(Arc::new(Series {
            names,
            make: Box::new(make),
            known: RwLock::default(),
        }))
    }

    /// The number with these values, which must not be a caller's to choose: each is kept for ever.
    pub fn with(&self, values: [&str; N]) -> M {
        let find = |known: &[([Box<str>; N], M)]| {
            let mut found = known.iter();
            let found = found.find(|(known, _)| known.iter().map(|known| &**known).eq(values));
            found.map(|(_, number)| number.clone())
        };
        // There are a few dozen at most: comparing is cheaper than hashing.
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = find(&known) {
            return number;
        }
        drop(known);
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        find(&known).unwrap_or_else(|| {
            let number = (self.0.make)();
            known.push((values.map(Box::from), number.clone()));
            number
        })
    }

    fn show(&self, page: &mut String, name: &str)
    where
        M: Shown,
    {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        for (values, number) in &*known {
            let mut labels = String::new();
            for (name, value) in self.0.names.iter().zip(values) {
                let comma = if labels.is_empty() { "" } else { "," };
                // Writing to a `String` cannot fail.
                let _ = write!(labels, "{comma}{name}=\"{}\"", escaped(value));
            }
            number.show(page, name, &labels);
        }
    }
}

impl Registry {
    /// A counter. Its name ends in `_total`.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        let counter = Counter::default();
        self.single(name, help, counter.clone());
        counter
    }

    /// A counter that counted before there was a page to show it on.
    pub fn counted(&self, name: &'static str, help: &'static str, counter: &Counter) {
        self.single(name, help, counter.clone());
    }

    /// A gauge.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.single(name, help, gauge.clone());
        gauge
    }

    /// A histogram, with limits in seconds. Its name ends in `_seconds`.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        limits: &'static [f64],
    ) -> Histogram {
        let histogram = Histogram::new(limits);
        self.single(name, help, histogram.clone());
        histogram
    }

    /// Counters that differ in labels.
    pub fn counters<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Labelled<N, Counter> {
        self.labelled(name, help, Labelled::new(labels, Counter::default))
    }

    /// Gauges that differ in labels.
    pub fn gauges<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Labelled<N, Gauge> {
        self.labelled(name, help, Labelled::new(labels, Gauge::default))
    }

    /// Histograms that differ in labels.
    pub fn histograms<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        limits: &'static [f64],
    ) -> Labelled<N, Histogram> {
        let new = move || Histogram::new(limits);
        self.labelled(name, help, Labelled::new(labels, new))
    }

    /// Numbers that are looked up while the page is written. `look` must be quick and must not wait.
    pub fn looked_up(
        &self,
        name: &'static str,
        help: &'static str,
        look: impl Fn(&mut dyn FnMut(&str, f64)) + Send + Sync + 'static,
        kind: Kind,
    ) {
        let show = move |page: &mut String| {
            look(&mut |labels, value| {
                let gauge = Gauge::default();
                gauge.set(value);
                gauge.show(page, name, labels);
            });
        };
        self.add(Family {
            name,
            help,
            kind: kind.word(),
            show: Box::new(show),
        });
    }

    /// The page, in Prometheus' text format 0.0.4.
    pub fn page(&self) -> String {
        let families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::with_capacity(32 * 1024);
        for Family {
            name,
            help,
            kind,
            show,
        } in &*families
        {
            // Writing to a `String` cannot fail.
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            show(&mut page);
        }
        page
    }

    fn single<M: Shown + Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        number: M,
    ) {
        self.add(Family {
            name,
            help,
            kind: M::KIND,
            show: Box::new(move |page| number.show(page, name, "")),
        });
    }

    fn labelled<const N: usize, M: Shown + Clone + Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        series: Labelled<N, M>,
    ) -> Labelled<N, M> {
        let shown = series.clone();
        self.add(Family {
            name,
            help,
            kind: M::KIND,
            show: Box::new(move |page| shown.show(page, name)),
        });
        series
    }

    fn add(&self, family: Family) {
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
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => Counter::KIND,
            Self::Gauge => Gauge::KIND,
        }
    }
}

/// A count as a page shows it; past 2^53 it is rounded.
#[expect(clippy::cast_precision_loss, reason = "nothing of ours gets there")]
pub fn as_number(count: u64) -> f64 {
    count as f64
}

fn escaped(value: &str) -> String {
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
        let registry = Registry::default();
        let lost = registry.counter("x_lost_total", "Lost things.");
        let asked = registry.counters("x_asked_total", "Questions.", ["store", "result"]);
        let took = registry.histogram("x_took_seconds", "How long.", &[0.1, 1.0]);
        let depth = registry.gauge("x_depth", "How many wait.");
        registry.looked_up(
            "x_free",
            "Free places.",
            |tell| tell("state=\"free\"", 3.0),
            Kind::Gauge,
        );
        lost.count();
        asked.with(["apple", "a\"b"]).add(2);
        asked.with(["apple", "a\"b"]).count();
        asked.with(["google", "valid"]);
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
        assert_eq!(registry.page(), expected);
    }
}
