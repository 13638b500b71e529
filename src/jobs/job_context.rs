//! What jobs work with.

use std::sync::Arc;

use crate::base::clock::Clock;
use crate::config::groups::{ExpiryThresholds, JobIntervals, RetentionSettings};
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::deliveries::Sender;

/// What jobs work with.
#[derive(Clone)]
pub struct JobContext {
    /// Every job reads or writes it.
    pub database: Database,
    /// The encryption keys. `None` when none is configured: the jobs that need them fail.
    pub keyring: Option<Arc<Keyring>>,
    /// Connects to callbacks. `None` when this machine has no root certificates: the job `probe` fails.
    pub sender: Option<Sender>,
    /// The time, for what is judged by it.
    pub clock: Clock,
    /// How often each job runs.
    pub intervals: JobIntervals,
    /// Whether the run was requested: then it also repeats what an earlier run did recently.
    pub is_forced: bool,
    /// For the job `retention`.
    pub retention: RetentionSettings,
    /// For the job `expiry`.
    pub cadences: ExpiryThresholds,
}
