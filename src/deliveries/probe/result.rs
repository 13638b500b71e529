//! The words for the results of probes.

use crate::deliveries::OutcomeClass;
use crate::deliveries::sender::ProbeOutcome;

/// Every result that a callback is counted under. `delivered`: an event was delivered recently, so it was not probed.
/// `unknown`: a fault on our side. The others say that it can be reached, or why not.
pub(crate) const PROBE_RESULTS: [&str; 8] = [
    "delivered",
    "reachable",
    "dns",
    "connect",
    "tls",
    "blocked",
    "timeout",
    "unknown",
];

pub(super) fn probe_result(probe: &ProbeOutcome) -> &'static str {
    match probe {
        ProbeOutcome::Reachable { .. } => "reachable",
        ProbeOutcome::Unreachable { class, .. } => match class {
            OutcomeClass::Dns => "dns",
            OutcomeClass::Tls => "tls",
            OutcomeClass::Blocked => "blocked",
            OutcomeClass::Timeout => "timeout",
            _ => "connect",
        },
        ProbeOutcome::Unknown => "unknown",
    }
}
