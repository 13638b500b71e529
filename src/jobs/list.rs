//! All jobs.

use std::sync::Arc;

use super::{Job, expiry, reseal, retention, statistics};
use crate::clock::Clock;
use crate::config::settings::{Cadences, JobIntervals, Retention};
use crate::crypto::keyring::Keyring;
use crate::db::Database;

/// What jobs work with.
#[derive(Clone)]
pub struct Tools {
    /// Where everything is.
    pub database: Database,
    /// The encryption keys. `None`: this process was given none, and the jobs that need them fail.
    pub keyring: Option<Arc<Keyring>>,
    /// What time it is.
    pub clock: Clock,
    /// How often each runs.
    pub intervals: JobIntervals,
    /// How long what is kept.
    pub retention: Retention,
    /// When what is warned of.
    pub cadences: Cadences,
}

/// The names of all jobs.
pub const NAMES: [&str; 4] = ["expiry", "reseal", "retention", "statistics"];

/// Every job there is, in the order in which they are shown.
pub fn all(tools: &Tools) -> Vec<Job> {
    vec![
        expiry::job(tools),
        reseal::job(tools),
        retention::job(tools),
        statistics::job(tools),
    ]
}
