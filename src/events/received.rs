//! Counts what the stores send.

use super::record::Receipt;
use super::word::Source;
use crate::metrics::{Counter, Labelled, Registry};

/// Counts notifications by what became of them. Clones share it.
#[derive(Clone, Debug)]
pub struct Received(Labelled<2, Counter>);

impl Received {
    /// Counts into `registry`.
    pub fn new(registry: &Registry) -> Self {
        let counters = registry.counters(
            "attesto_notifications_total",
            "Notifications received from the stores: stored, repeated (stored before), refused, or failed (the store sends \
             it again).",
            ["store", "outcome"],
        );
        for source in [Source::Apple, Source::Google] {
            for outcome in ["stored", "repeated", "refused", "failed"] {
                counters.with([source.as_str(), outcome]);
            }
        }
        Self(counters)
    }

    /// One notification of `source`: its receipt, or the HTTP status that it was answered with.
    pub fn note(&self, source: Source, outcome: Result<&Receipt, u16>) {
        let outcome = match outcome {
            Ok(receipt) if receipt.is_new => "stored",
            Ok(_) => "repeated",
            Err(500..) => "failed",
            Err(_) => "refused",
        };
        self.0.with([source.as_str(), outcome]).count();
    }
}
