//! All jobs.

use super::{Job, JobContext, drift, expiry, probe, reseal, statistics};
use crate::retention;

/// The names of all jobs.
pub const JOB_NAMES: [&str; 6] = [
    "drift",
    "expiry",
    "probe",
    "reseal",
    "retention",
    "statistics",
];

/// Every job there is, in the order in which they are shown.
pub fn all_jobs(tools: &JobContext) -> Vec<Job> {
    vec![
        drift::drift_job(tools),
        expiry::expiry_job(tools),
        probe::probe_job(tools),
        reseal::reseal_job(tools),
        retention::retention_job(tools),
        statistics::statistics_job(tools),
    ]
}
