//! Counts the notifications of the stores.

use super::event_type::EventSource;
use super::recorder::AcceptedNotification;
use crate::telemetry::metrics::{Counter, MetricVec, MetricsRegistry};

/// Counts notifications by store and outcome. Clones share the counters.
#[derive(Clone, Debug)]
pub struct NotificationMetrics(MetricVec<2, Counter>);

impl NotificationMetrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &MetricsRegistry) -> Self {
        let counters = registry.register_counter_vec(
            "attesto_notifications_total",
            "Notifications received from the stores: stored, repeated (stored before), refused, or failed (the store sends \
             it again).",
            ["store", "outcome"],
        );
        for source in [EventSource::Apple, EventSource::Google] {
            for outcome in ["stored", "repeated", "refused", "failed"] {
                counters.with_label_values([source.as_str(), outcome]);
            }
        }
        Self(counters)
    }

    /// Counts one notification. `outcome` is the accepted notification, or the HTTP status of the error response.
    pub fn count_notification(
        &self,
        source: EventSource,
        outcome: Result<&AcceptedNotification, u16>,
    ) {
        let outcome = match outcome {
            Ok(accepted) if accepted.is_new => "stored",
            Ok(_) => "repeated",
            Err(500..) => "failed",
            Err(_) => "refused",
        };
        self.0.with_label_values([source.as_str(), outcome]).inc();
    }
}
