//! What a look can find, in words.

use crate::deliveries::Class;
use crate::deliveries::sender::Probe;

/// Every word under which a callback is counted: events were delivered to it lately, it can be reached, why not, or this
/// machine could not find out.
pub const RESULTS: [&str; 8] = [
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
pub(super) fn word(probe: &Probe) -> &'static str {
    match probe {
        Probe::Reachable { .. } => "reachable",
        Probe::Unreachable { class, .. } => match class {
            Class::Dns => "dns",
            Class::Tls => "tls",
            Class::Blocked => "blocked",
            Class::Timeout => "timeout",
            _ => "connect",
        },
        Probe::Unknown => "unknown",
    }
}
