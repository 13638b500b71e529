//! All jobs.

use super::{Job, Tools, drift, expiry, probe, reseal, retention, statistics};

/// The names of all jobs.
pub const NAMES: [&str; 6] = [
    "drift",
    "expiry",
    "probe",
    "reseal",
    "retention",
    "statistics",
];

/// Every job there is, in the order in which they are shown.
pub fn all(tools: &Tools) -> Vec<Job> {
    vec![
        drift::job(tools),
        expiry::job(tools),
        probe::job(tools),
        reseal::job(tools),
        retention::job(tools),
        statistics::job(tools),
    ]
}
