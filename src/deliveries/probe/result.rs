//! What a look can find, in words.

use crate::deliveries::OutcomeClass;
use crate::deliveries::sender::ProbeOutcome;

/// Every word under which a callback is counted: events were delivered to it lately, it can be reached, why not, or this
/// machine could not find out.
pub const PROBE_RESULTS: [&str; 8] = [
    "delivered",
    "reachable",
    "dns",
    "connect",
    "tls",
    "blocked",
    "timeout",
    "unknown",
];

/// The word for what a look found.
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
