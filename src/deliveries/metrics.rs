//! The counters and histograms of the dispatcher.

use strum::VariantArray as _;

use super::outcome::OutcomeClass;
use crate::telemetry::metrics::{Counter, Histogram, MetricsRegistry};
use crate::telemetry::metrics::{DURATION_BUCKETS, LONG_DURATION_BUCKETS};

/// Counts since the process began. Clones share the counters.
#[derive(Clone, Debug)]
pub struct DeliveryMetrics {
    /// In the order of [`OutcomeClass::VARIANTS`].
    attempts: Vec<Counter>,
    pub(super) leases_lost: Counter,
    pub(super) interrupted: Counter,
    pub(super) parked: Counter,
    /// How long attempts took.
    pub(super) duration: Histogram,
    /// How long deliveries had been due when an attempt began.
    pub(super) lag: Histogram,
}

impl DeliveryMetrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &MetricsRegistry) -> Self {
        let attempts = registry.register_counter_vec(
            "attesto_delivery_attempts_total",
            "Delivery attempts, by how they ended.",
            ["outcome"],
        );
        let counter = |class: &OutcomeClass| attempts.with_label_values([class.as_str()]);
        Self {
            attempts: OutcomeClass::VARIANTS.iter().map(counter).collect(),
            leases_lost: registry.register_counter(
                "attesto_leases_lost_total",
                "Attempts whose result was not written, because another process had taken over the delivery.",
            ),
            interrupted: registry.register_counter(
                "attesto_interrupted_total",
                "Deliveries whose lease expired because the process that held it died or lost the database.",
            ),
            parked: registry.register_counter(
                "attesto_parked_total",
                "Deliveries parked for an operator, because their lease expired several times in a row.",
            ),
            duration: registry.register_histogram(
                "attesto_delivery_duration_seconds",
                "How long delivery attempts took.",
                DURATION_BUCKETS,
            ),
            lag: registry.register_histogram(
                "attesto_delivery_lag_seconds",
                "How long deliveries had been due when an attempt began.",
                LONG_DURATION_BUCKETS,
            ),
        }
    }

    /// How many attempts ended with `class`. [`OutcomeClass::LeaseLost`] counts the results that were not written
    /// because another process held the lease by then.
    pub fn attempts_with_outcome(&self, class: OutcomeClass) -> u64 {
        self.attempts[class as usize].get()
    }

    /// How many expired leases this process found.
    pub fn interrupted(&self) -> u64 {
        self.interrupted.get()
    }

    pub(super) fn count_attempt(&self, class: OutcomeClass) {
        self.attempts[class as usize].inc();
    }
}
